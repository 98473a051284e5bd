//! The tap device of a guest.
//!
//! Always `tap0` inside the guest's own namespace, and not persistent: it lives as long as somebody (the VMM)
//! holds its descriptor. All guests have the same addresses, so that a snapshot can be restored anywhere.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::net::if_::InterfaceFlags;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::link::{self, Peer};
use super::netns::{self, Netns};
use super::seal;

/// The name inside every namespace.
pub const TAP: &str = "tap0";

ioctl_iow_nr!(TUNSETIFF, 0x54, 202, libc::c_int);

const PEER: Peer = Peer {
    gateway: seal::GATEWAY_ADDRESS,
    gateway_mac: seal::GATEWAY_MAC,
    prefix: seal::PREFIX,
    guest: seal::GUEST_ADDRESS,
    guest_mac: seal::GUEST_MAC,
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("entering the namespace")]
    Enter(#[from] netns::Error),
    #[error("opening /dev/net/tun")]
    Open(#[source] io::Error),
    /// Another VMM holds the tap of this namespace.
    #[error("{TAP} is in use")]
    Busy,
    #[error("making {TAP}")]
    Make(#[source] io::Error),
    #[error("configuring {TAP}")]
    Configure(#[from] link::Error),
}

/// Opens `tap0` in a sealed namespace, with its addresses, up, and the guest as a permanent neighbour.
pub fn open(netns: &Netns) -> Result<OwnedFd, Error> {
    netns.run(|| {
        let tun = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(Error::Open)?;
        attach(&tun)?;
        link::with_netlink(async |handle| link::ensure_link(handle, TAP, &PEER).await)?;
        Ok(OwnedFd::from(tun))
    })?
}

fn attach(tun: &File) -> Result<(), Error> {
    // SAFETY: an all-zero ifreq is a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = InterfaceFlags::IFF_TAP | InterfaceFlags::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = flags.bits() as libc::c_short | libc::IFF_VNET_HDR as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    if unsafe { ioctl_with_mut_ref(tun, TUNSETIFF(), &mut request) } == 0 {
        return Ok(());
    }
    let failure = io::Error::last_os_error();
    match failure.raw_os_error() {
        Some(libc::EBUSY) => Err(Error::Busy),
        _ => Err(Error::Make(failure)),
    }
}
