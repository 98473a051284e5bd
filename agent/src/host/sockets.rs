//! The sockets of a sealed namespace that are handed to the data plane.
//!
//! They are made inside, with rights the data plane does not have, and used outside, without any. The agent
//! itself neither accepts, reads nor connects any of them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::netns::{self, Netns};
use super::seal;

/// Connections a guest may have waiting before its next one is dropped.
const LISTEN_BACKLOG: i32 = 1024;
/// Most dial sockets made at once; as many fit into one message to the data plane.
pub const MAX_DIAL_SOCKETS: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("entering the namespace")]
    Enter(#[from] netns::Error),
    #[error("making the {what} socket")]
    Make { what: &'static str, source: io::Error },
    #[error("{0} dial sockets at once, {MAX_DIAL_SOCKETS} at most")]
    TooMany(usize),
}

/// Accepts every TCP connection of the guest; its local address is the one the guest wanted.
pub fn open_listener(netns: &Netns) -> Result<OwnedFd, Error> {
    let make = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_ip_transparent_v4(true)?;
        // Accepted connections inherit it.
        socket.set_tcp_nodelay(true)?;
        socket.bind(&SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), seal::LISTENER_PORT).into())?;
        socket.listen(LISTEN_BACKLOG)?;
        Ok(socket.into())
    };
    netns.run(make)?.map_err(|source| Error::Make { what: "listener", source })
}

/// Hears every DNS question of the guest, says which server it was meant for, and answers in its name.
pub fn open_dns(netns: &Netns) -> Result<OwnedFd, Error> {
    let make = || -> io::Result<OwnedFd> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        socket.set_ip_transparent_v4(true)?;
        setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?;
        socket.bind(&SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), seal::DNS_PORT).into())?;
        Ok(socket.into())
    };
    netns.run(make)?.map_err(|source| Error::Make { what: "DNS", source })
}

/// Unconnected TCP sockets, each good for one connection to the guest at a time, from the gateway's address.
pub fn open_dial_sockets(netns: &Netns, count: usize) -> Result<Vec<OwnedFd>, Error> {
    if count > MAX_DIAL_SOCKETS {
        return Err(Error::TooMany(count));
    }
    let make = || (0..count).map(|_| dial_socket()).collect::<io::Result<Vec<_>>>();
    netns.run(make)?.map_err(|source| Error::Make { what: "dial", source })
}

fn dial_socket() -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Answers then match the connection in TPROXY's own lookup; no rule lets the guest reach the gateway.
    socket.set_ip_transparent_v4(true)?;
    socket.set_tcp_nodelay(true)?;
    // The port is chosen at connect, so a socket that is reused never meets its own TIME_WAIT.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(IpAddr::V4(seal::GATEWAY_ADDRESS), 0).into())?;
    Ok(socket.into())
}
