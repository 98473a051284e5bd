//! The guest's network: one device with fixed addresses, the same in every sandbox.
//!
//! Owns loopback, `eth0`, the default route and where IPv6 is switched off. There is no DHCP and nothing to
//! configure: a snapshot restores anywhere because every guest is 10.0.0.2.

use std::io;
use std::net::Ipv4Addr;

use crate::sys;

pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 252);
const DEVICE: &str = "eth0";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot set {0}")]
    Setting(String, #[source] io::Error),
    #[error("cannot bring {0} up")]
    Device(&'static str, #[source] io::Error),
    #[error("cannot set the default route")]
    Route(#[source] io::Error),
}

pub fn ensure_network() -> Result<(), Error> {
    // Off for the device and for later ones, so that all traffic is what the egress proxy sees; ::1 stays.
    for (interface, value) in [("all", "1"), ("default", "1"), ("lo", "0")] {
        let setting = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        std::fs::write(&setting, value).map_err(|source| Error::Setting(setting, source))?;
    }
    sys::set_interface("lo", None).map_err(|source| Error::Device("lo", source))?;
    sys::set_interface(DEVICE, Some((GUEST, MASK))).map_err(|source| Error::Device(DEVICE, source))?;
    sys::set_default_route(GATEWAY).map_err(Error::Route)
}
