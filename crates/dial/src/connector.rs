//! Resolve, check all, dial one: the order that leaves no gap between the check and the dial.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use roost_domain::address::{Floor, Refusal};
use roost_domain::host_name::Host;
use roost_domain::sabotage::Defence;
use tokio::net::TcpStream;

use crate::dialler::{Dial, TcpDialler};
use crate::order::interleave;
use crate::resolver::{Resolve, SystemResolver};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{host} may not be looked up")]
    Name { host: Host, source: Refusal },
    #[error("{host} could not be resolved")]
    Resolve { host: Host, source: io::Error },
    #[error("{host} has no address")]
    NoAddress { host: Host },
    /// Nothing was dialled.
    #[error("{host} is at {address}, which may not be dialled")]
    Address { host: Host, address: IpAddr, source: Refusal },
    #[error("{host} did not accept a connection at {address}")]
    Dial { host: Host, address: SocketAddr, source: io::Error },
    #[error("{host} was not reached in time")]
    Timeout { host: Host },
    #[error("the connection to {host} ends at {peer} and not at {dialled}")]
    Peer { host: Host, dialled: SocketAddr, peer: SocketAddr },
}

impl Error {
    /// Whether the deny floor said no, as opposed to a failure on the way.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Name { .. } | Self::Address { .. } | Self::Peer { .. })
    }
}

/// How long each part may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    pub resolve: Duration,
    /// One address.
    pub dial: Duration,
    /// All of it.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { resolve: Duration::from_secs(5), dial: Duration::from_secs(5), total: Duration::from_secs(10) }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The deny floor with the installation's own addresses and the operator's exceptions.
    pub floor: Floor,
    pub timeouts: Timeouts,
    /// Names with fixed addresses, never looked up. They are checked like any other answer.
    pub hosts: Vec<FixedHost>,
}

/// A name that an operator gave addresses to, where no resolver knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedHost {
    pub name: Host,
    pub addresses: Vec<IpAddr>,
}

/// Dials hosts that the caller's policy has permitted.
#[derive(Debug, Clone)]
pub struct Connector<R = SystemResolver, D = TcpDialler> {
    settings: Settings,
    resolver: R,
    dialler: D,
}

impl Connector {
    pub fn new(settings: Settings) -> Self {
        Self::with(settings, SystemResolver, TcpDialler)
    }
}

impl<R: Resolve, D: Dial> Connector<R, D> {
    pub fn with(settings: Settings, resolver: R, dialler: D) -> Self {
        Self { settings, resolver, dialler }
    }

    /// Every address the host may be dialled at, in order. One forbidden address forbids the host: a name that
    /// points at both sides of the floor is an attack or a mistake.
    pub async fn resolve(&self, host: &Host, port: u16) -> Result<Vec<SocketAddr>, Error> {
        let floor = &self.settings.floor;
        floor.check_name(host).map_err(|source| Error::Name { host: host.clone(), source })?;
        let addresses = match host.address() {
            Some(address) => vec![address],
            None => self.look_up(host).await?,
        };
        for address in addresses.iter().filter(|_| !Defence::CheckedDial.is_off()) {
            floor.check(host, port, *address).map_err(|source| Error::Address {
                host: host.clone(),
                address: *address,
                source,
            })?;
        }
        if addresses.is_empty() {
            return Err(Error::NoAddress { host: host.clone() });
        }
        Ok(interleave(&addresses).into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    async fn look_up(&self, host: &Host) -> Result<Vec<IpAddr>, Error> {
        if let Some(fixed) = self.settings.hosts.iter().find(|fixed| fixed.name == *host) {
            return Ok(fixed.addresses.clone());
        }
        let looking = self.resolver.resolve(host);
        match tokio::time::timeout(self.settings.timeouts.resolve, looking).await {
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(source)) => Err(Error::Resolve { host: host.clone(), source }),
            Err(_) => Err(Error::Timeout { host: host.clone() }),
        }
    }

    /// Connects; the address returned is the one that was checked and dialled.
    pub async fn connect(&self, host: &Host, port: u16) -> Result<(TcpStream, SocketAddr), Error> {
        let connecting = async {
            let addresses = self.resolve(host, port).await?;
            self.dial_first(host, &addresses).await
        };
        match tokio::time::timeout(self.settings.timeouts.total, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(Error::Timeout { host: host.clone() }),
        }
    }

    async fn dial_first(
        &self,
        host: &Host,
        addresses: &[SocketAddr],
    ) -> Result<(TcpStream, SocketAddr), Error> {
        let mut last = Error::NoAddress { host: host.clone() };
        for address in addresses {
            let dialling = self.dialler.dial(*address);
            last = match tokio::time::timeout(self.settings.timeouts.dial, dialling).await {
                Ok(Ok(stream)) => return self.admit(host, *address, stream),
                Ok(Err(source)) => Error::Dial { host: host.clone(), address: *address, source },
                Err(_) => Error::Timeout { host: host.clone() },
            };
        }
        Err(last)
    }

    fn admit(
        &self,
        host: &Host,
        address: SocketAddr,
        stream: TcpStream,
    ) -> Result<(TcpStream, SocketAddr), Error> {
        let failed = |source| Error::Dial { host: host.clone(), address, source };
        let peer = stream.peer_addr().map_err(failed)?;
        let is_dialled = (peer.ip(), peer.port()) == (address.ip(), address.port());
        if !is_dialled && !Defence::DialledPeer.is_off() {
            return Err(Error::Peer { host: host.clone(), dialled: address, peer });
        }
        stream.set_nodelay(true).map_err(failed)?;
        Ok((stream, address))
    }
}
