//! The deny floor: addresses and names no guest, webhook or OAuth fetch is ever dialled at.
//!
//! Knows ranges, not rules: tenants' policies narrow what is left. An operator's exception lifts the floor for one
//! (name, port, range); nothing lifts it for metadata services and the link-local ranges they live in. An IPv6
//! address that carries an IPv4 address (mapped, NAT64, 6to4, …) is refused as such, and the carried address must
//! pass as well.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer};

use crate::host_name::{Host, Pattern};
use crate::sabotage::Defence;

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn v6(text: [u16; 8], prefix: u8) -> IpNet {
    let [a, b, c, d, e, f, g, h] = text;
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix))
}

/// Metadata services, wherever they are; looked at before everything else.
const METADATA: &[IpNet] = &[
    v4(169, 254, 0, 0, 16),
    v4(100, 100, 100, 200, 32),
    v4(192, 0, 0, 192, 32),
    // Azure's, inside a public range.
    v4(168, 63, 129, 16, 32),
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128),
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128),
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
];

/// Names of metadata services; their subdomains count as well.
const METADATA_NAMES: &[&str] =
    &["metadata.google.internal", "metadata.goog", "metadata.azure.internal", "instance-data.ec2.internal"];
/// Names that a resolver's search list completes to one of the above.
const METADATA_SHORT_NAMES: &[&str] = &["metadata", "instance-data"];

const FLOOR: &[IpNet] = &[
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
    // Unspecified, loopback and the IPv4-compatible addresses.
    v6([0, 0, 0, 0, 0, 0, 0, 0], 96),
    v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96),
    // IPv4-translated (SIIT).
    v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96),
    v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96),
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32),
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16),
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
    v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16),
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

/// Why an address or a name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No exception lifts this one.
    #[error("it belongs to a metadata service")]
    Metadata,
    #[error("it is in the reserved range {0}")]
    Reserved(IpNet),
    #[error("it is in {0}, which belongs to this installation")]
    Own(IpNet),
}

/// An operator's exception: this name, on this port, may be at these addresses.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exception {
    pub name: Pattern,
    pub port: u16,
    #[serde(deserialize_with = "exact_net")]
    pub cidr: IpNet,
}

impl Exception {
    fn lifts(&self, host: &Host, port: u16, address: IpAddr) -> bool {
        self.port == port && self.cidr.contains(&address) && self.name.matches(host)
    }
}

/// Why a text is not a range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a range of addresses such as 10.1.0.0/16, with nothing set beyond its prefix")]
pub struct CidrError {
    text: String,
}

/// Reads a range strictly: `10.0.0.0/` and `10.0.0.1/8` are mistakes, not `/0` and `10.0.0.0/8`.
pub fn parse_cidr(text: &str) -> Result<IpNet, CidrError> {
    let is_exact = |net: &IpNet| *net == net.trunc();
    text.parse::<IpNet>().ok().filter(is_exact).ok_or_else(|| CidrError { text: text.to_owned() })
}

fn exact_net<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    parse_cidr(&text).map_err(serde::de::Error::custom)
}

/// The floor with what an installation adds to it and takes from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Floor {
    /// This installation's own public addresses: control plane, databases, preview edge.
    pub own: Vec<IpNet>,
    pub exceptions: Vec<Exception>,
}

impl Floor {
    /// Whether a name may be looked up at all.
    pub fn check_name(&self, host: &Host) -> Result<(), Refusal> {
        let name = host.as_str();
        let is_metadata = METADATA_SHORT_NAMES.contains(&name)
            || METADATA_NAMES.iter().any(|known| {
                name.strip_suffix(known).is_some_and(|head| head.is_empty() || head.ends_with('.'))
            });
        if is_metadata { Err(Refusal::Metadata) } else { Ok(()) }
    }

    /// Whether `host` may be dialled at this address and port.
    pub fn check(&self, host: &Host, port: u16, address: IpAddr) -> Result<(), Refusal> {
        self.check_name(host)?;
        let carried = if Defence::CarriedAddress.is_off() { None } else { find_embedded(address) };
        let forms = [Some(address), carried.map(IpAddr::V4)];
        let is_checked = !Defence::MetadataFloor.is_off();
        if is_checked && forms.into_iter().flatten().any(|form| contains(METADATA, form).is_some()) {
            return Err(Refusal::Metadata);
        }
        for form in forms.into_iter().flatten() {
            let refusal = contains(FLOOR, form)
                .map(Refusal::Reserved)
                .or_else(|| contains(&self.own, form).map(Refusal::Own));
            match refusal {
                Some(_) if Defence::DenyFloor.is_off() => {}
                Some(refusal) if !self.exceptions.iter().any(|lift| lift.lifts(host, port, form)) => {
                    return Err(refusal);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn contains(nets: &[IpNet], address: IpAddr) -> Option<IpNet> {
    nets.iter().find(|net| net.contains(&address)).copied()
}

/// The IPv4 address an IPv6 address stands for, in any of the ways there are.
pub fn find_embedded(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else { return None };
    let segments = address.segments();
    let octets = address.octets();
    let from =
        |start: usize| Ipv4Addr::new(octets[start], octets[start + 1], octets[start + 2], octets[start + 3]);
    match segments {
        // Compatible, mapped, translated, NAT64.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            Some(from(12))
        }
        // NAT64 for local use, with the prefix lengths of RFC 6052 that fit: the common /96 is what is read.
        [0x64, 0xff9b, 1, ..] => Some(from(12)),
        // Teredo keeps the client's address inverted.
        [0x2001, 0, ..] => {
            let [a, b, c, d] = from(12).octets();
            Some(Ipv4Addr::new(!a, !b, !c, !d))
        }
        [0x2002, ..] => Some(from(2)),
        // ISATAP.
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => Some(from(12)),
        _ => None,
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{} at {}", self.name, self.port, self.cidr)
    }
}

#[cfg(test)]
mod tests;
