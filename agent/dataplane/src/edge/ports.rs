//! The edge's listening sockets, taken while the process may still take port 443.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Settings;

const BACKLOG: i32 = 1024;

#[derive(Debug, thiserror::Error)]
#[error("listen on {address}")]
pub struct Error {
    address: SocketAddr,
    source: io::Error,
}

/// Bound, listening, accepting nothing yet.
#[derive(Debug)]
pub struct Ports {
    pub(super) gateway: Option<TcpListener>,
    pub(super) previews: Vec<TcpListener>,
}

impl Ports {
    pub fn take(settings: &Settings) -> Result<Self, Error> {
        let gateway = settings.gateway.as_ref().map(|gateway| listen(gateway.listen)).transpose()?;
        let previews = settings.preview.as_ref().map_or(&[][..], |preview| &preview.listen);
        let previews = previews.iter().copied().map(listen).collect::<Result<_, _>>()?;
        Ok(Self { gateway, previews })
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        if address.is_ipv6() {
            // So that the same port can be listened on for both.
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(TcpListener::from(socket))
    };
    open().map_err(|source| Error { address, source })
}
