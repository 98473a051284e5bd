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
