//! Who a certificate says its holder is, in both directions.

use roost_domain::id::HostId;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Error;

/// The name in the scheduler's own certificate, whatever address it is reached at.
pub const SCHEDULER_NAME: &str = "scheduler.roost.internal";
const URI_HOST: &str = "roost://host/";
const URI_SCHEDULER: &str = "roost://scheduler";

/// The three processes of a host that have an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    Agent,
    Edge,
    Egress,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Agent, Role::Edge, Role::Egress];

    pub fn word(self) -> &'static str {
        match self {
            Role::Agent => "agent",
            Role::Edge => "edge",
            Role::Egress => "egress",
        }
    }

    pub fn parse(word: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.word() == word)
    }
}

/// A caller or a server in the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    Scheduler,
    Host { host_id: String, role: Role },
}

impl Identity {
    pub fn uri(&self) -> String {
        match self {
            Identity::Scheduler => URI_SCHEDULER.to_owned(),
            Identity::Host { host_id, role } => format!("{URI_HOST}{host_id}/{}", role.word()),
        }
    }

    /// The name TLS clients ask for.
    pub fn dns_name(&self) -> String {
        match self {
            Identity::Scheduler => SCHEDULER_NAME.to_owned(),
            Identity::Host { host_id, role } => format!("{}.{host_id}.roost.internal", role.word()),
        }
    }

    fn parse(uri: &str) -> Option<Identity> {
        if uri == URI_SCHEDULER {
            return Some(Identity::Scheduler);
        }
        let (host_id, role) = uri.strip_prefix(URI_HOST)?.split_once('/')?;
        HostId::parse(host_id).ok()?;
        Some(Identity::Host { host_id: host_id.to_owned(), role: Role::parse(role)? })
    }

    /// The one identity in a certificate that TLS has already verified against the fleet root.
    pub fn from_certificate(der: &[u8]) -> Result<Identity, Error> {
        let caller = |problem| Error::Caller { problem };
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| caller("it cannot be parsed"))?;
        let names = certificate.subject_alternative_name().map_err(|_| caller("its names are malformed"))?;
        let names = names.ok_or_else(|| caller("it has no names"))?;
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => {
                Identity::parse(uri).ok_or_else(|| caller("its URI names nobody of the fleet"))
            }
            _ => Err(caller("it does not have exactly one URI")),
        }
    }
}

/// True if the first certificate of the chain has exactly these DNS names and lasts beyond `until_us`.
pub(super) fn is_good_for(chain_pem: &str, dns_names: &[String], until_us: i64) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(chain_pem.as_bytes()) else { return false };
    let Ok(certificate) = pem.parse_x509() else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    let found: Vec<&str> = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(dns) => Some(*dns),
            _ => None,
        })
        .collect();
    let lasts = certificate.validity().not_after.timestamp().saturating_mul(1_000_000) > until_us;
    lasts && found.len() == dns_names.len() && dns_names.iter().all(|name| found.contains(&name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_survive_and_nothing_else_is_an_identity() {
        let host = Identity::Host { host_id: "host_01d39zy06fgsctvn4t2v9pkhfz".into(), role: Role::Egress };
        assert_eq!(host.uri(), "roost://host/host_01d39zy06fgsctvn4t2v9pkhfz/egress");
        assert_eq!(host.dns_name(), "egress.host_01d39zy06fgsctvn4t2v9pkhfz.roost.internal");
        for identity in [host, Identity::Scheduler] {
            assert_eq!(Identity::parse(&identity.uri()), Some(identity));
        }
        for uri in [
            "",
            "roost://scheduler/",
            "roost://host/host_01d39zy06fgsctvn4t2v9pkhfz",
            "roost://host/host_01d39zy06fgsctvn4t2v9pkhfz/",
            "roost://host/host_01d39zy06fgsctvn4t2v9pkhfz/root",
            "roost://host/host_01d39zy06fgsctvn4t2v9pkhfz/agent/",
            "roost://host/sbx_01d39zy06fgsctvn4t2v9pkhfz/agent",
            "roost://host/../agent",
            "https://host/host_01d39zy06fgsctvn4t2v9pkhfz/agent",
        ] {
            assert_eq!(Identity::parse(uri), None, "{uri}");
        }
    }
}
