//! Seals a network namespace: what a guest sends meets our own sockets or nothing.
//!
//! No veth, no forwarding, no route out. TCP of the guest goes to the transparent listener, UDP port 53 to the
//! DNS socket, everything else is dropped. Connection tracking is off, so there is no table a guest could fill.
//! Repeatable: the rule set is replaced as a whole, in one transaction.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use roost_domain::sabotage::Defence;

use super::{link, netns, tool};

pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub const PREFIX: u8 = 30;
pub const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Transparent TCP listener on the namespace's loopback.
pub const LISTENER_PORT: u16 = 18080;
/// Answers leave from the port the socket is bound to, so it has to be the one resolvers ask.
pub const DNS_PORT: u16 = 53;

const MARK: u32 = 1;
const TABLE: u32 = 100;
const NFT_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("entering the namespace")]
    Enter(#[from] netns::Error),
    #[error("setting {path}")]
    Setting { path: String, source: io::Error },
    #[error("routing marked packets to this host")]
    Route(#[from] link::Error),
    #[error("loading the packet rules")]
    Rules(#[from] tool::Error),
}

/// Written in this order: IPv6 goes off everywhere, then `::1` comes back.
const SETTINGS: [(&str, &str); 12] = [
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv6/conf/lo/disable_ipv6", "0"),
    ("ipv6/conf/all/forwarding", "0"),
    ("ipv4/ip_forward", "0"),
    ("ipv4/conf/all/forwarding", "0"),
    ("ipv4/conf/default/forwarding", "0"),
    ("ipv4/conf/all/arp_ignore", "1"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
];

/// The whole rule set: a file, so that tests of the data plane seal their namespaces with the same.
///
/// Each closing brace has a line of its own, as nft 1.0.6 wants it. Hooks are given by number: raw -300, mangle -150,
/// filter 0.
const RULES: &str = include_str!("seal.nft");

fn rules() -> Cow<'static, str> {
    match Defence::GuestSource.is_off() {
        true => RULES.replace("  ip saddr != 10.0.0.2 drop\n", "").into(),
        false => RULES.into(),
    }
}

/// Seals `netns`. Everything in it that was there before stays sealed throughout.
pub fn ensure(netns: &netns::Netns) -> Result<(), Error> {
    netns.run(|| {
        // Rules first: there is no moment with a route and without them.
        if !Defence::NetworkSeal.is_off() {
            tool::run("nft", &["-f", "-"], rules().as_bytes(), NFT_DEADLINE)?;
        }
        for (name, value) in SETTINGS {
            let path = format!("/proc/sys/net/{name}");
            match fs::write(&path, value) {
                // A kernel without IPv6 has nothing to switch off.
                Err(error) if error.kind() == io::ErrorKind::NotFound && name.starts_with("ipv6/") => {}
                other => other.map_err(|source| Error::Setting { path, source })?,
            }
        }
        link::with_netlink(async |handle| link::ensure_marked_is_local(handle, MARK, TABLE).await)?;
        Ok(())
    })?
}
