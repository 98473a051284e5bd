//! The `[egress]` section of the settings file: what an operator says about all guests of the host.

use std::net::IpAddr;

use ipnet::IpNet;
use roost_domain::address::{Exception, Floor, parse_cidr};
use roost_domain::host_name::{Host, Pattern};
use roost_domain::placeholder::{self, Format};
use serde::{Deserialize, Deserializer};

use super::UpstreamRoots;
use super::policy::Policy;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub policy: Policy,
    /// Hosts whose TLS is passed through uninspected: pinned clients.
    pub bypass: Vec<Pattern>,
    /// Further roots to trust for some upstreams.
    pub upstream_roots: Vec<UpstreamRoots>,
    /// Exceptions from the deny floor; the agent may hand on more.
    pub floor_exceptions: Vec<Exception>,
    /// Names with fixed addresses, where no resolver knows them. The deny floor holds for them too.
    pub hosts: Vec<NamedHost>,
    /// The installation's own public addresses, which no guest may dial.
    #[serde(deserialize_with = "exact_nets")]
    pub own_addresses: Vec<IpNet>,
    pub placeholders: Placeholders,
}

/// A name and where it is.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedHost {
    #[serde(deserialize_with = "host")]
    pub name: Host,
    pub addresses: Vec<IpAddr>,
}

/// The brand's form of placeholders; the scheduler has the same.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Placeholders {
    pub marker: String,
    pub generic_prefix: String,
}

impl Default for Placeholders {
    fn default() -> Self {
        Self {
            marker: placeholder::DEFAULT_MARKER.to_owned(),
            generic_prefix: roost_domain::presets::GENERIC_PREFIX.to_owned(),
        }
    }
}

impl Placeholders {
    pub(super) fn format(&self) -> Result<Format, placeholder::Error> {
        Format::new(&self.marker, &self.generic_prefix)
    }
}

impl Settings {
    pub(super) fn fixed_hosts(&self) -> Vec<roost_dial::FixedHost> {
        let fixed = |host: &NamedHost| roost_dial::FixedHost {
            name: host.name.clone(),
            addresses: host.addresses.clone(),
        };
        self.hosts.iter().map(fixed).collect()
    }

    pub(super) fn floor(&self, more: Vec<Exception>) -> Floor {
        let exceptions = self.floor_exceptions.iter().cloned().chain(more).collect();
        Floor { own: self.own_addresses.clone(), exceptions }
    }
}

fn host<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Host, D::Error> {
    Host::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn exact_nets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| parse_cidr(text).map_err(serde::de::Error::custom)).collect()
}

#[cfg(test)]
mod tests {
    use crate::egress::policy::Effect;

    #[test]
    fn the_settings_of_the_help_text_are_read() {
        let help = include_str!("../main.rs");
        let begin = help.find("  [egress]").unwrap();
        let section = &help[begin..begin + help[begin..].find("Files in").unwrap()];
        let text = format!("[process]\ndirectory = \"/a\"\ncontrol_socket = \"/b/c\"\n{section}");
        let settings: crate::config::Settings =
            roost_daemon::config::parse(&text, std::path::Path::new("help")).unwrap();
        let settings = settings.egress.unwrap();
        assert_eq!((settings.bypass.len(), settings.upstream_roots.len(), settings.hosts.len()), (1, 1, 1));
        assert_eq!((settings.floor_exceptions.len(), settings.own_addresses.len()), (1, 1));
        assert_eq!((settings.policy.default_effect, settings.policy.rules.len()), (Effect::Allow, 1));
    }

    #[test]
    fn what_is_misspelt_is_refused() {
        for text in [
            "bypas = []",
            "own_addresses = [\"10.0.0.1/8\"]",
            "bypass = [\"*.com\"]",
            "policy = { mode = 1 }",
        ] {
            assert!(toml_error(text), "{text}");
        }
    }

    fn toml_error(text: &str) -> bool {
        let text = format!("[process]\ndirectory = \"/a\"\ncontrol_socket = \"/b/c\"\n[egress]\n{text}\n");
        roost_daemon::config::parse::<crate::config::Settings>(&text, std::path::Path::new("x")).is_err()
    }
}
