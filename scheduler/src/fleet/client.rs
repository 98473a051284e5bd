//! Connections to hosts, one per process of a host, kept and shared.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as TlsIdentity};

use super::Error;
use crate::pki::{Identity, Pki, Role};

/// One file chunk or exec frame is far smaller; a directory listing may be large.
pub(super) const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Hosts whose connections are kept; beyond it all are dropped and made again as needed.
const CONNECTIONS_MAX: usize = 4096;

pub(super) struct Clients {
    tls: ClientTlsConfig,
    /// By host and role; a host that moved to another address gets a new connection.
    channels: Mutex<HashMap<(String, Role), (String, Channel)>>,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

impl Clients {
    pub(super) fn new(pki: &Pki) -> Clients {
        let own = pki.scheduler();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(pki.fleet_roots_pem()))
            .identity(TlsIdentity::from_pem(&own.chain_pem, &own.key_pem));
        Clients { tls, channels: Mutex::new(HashMap::new()) }
    }

    /// A channel to that process of that host and to no other: its certificate must name it.
    pub(super) fn channel(&self, host_id: &str, role: Role, address: &str) -> Result<Channel, Error> {
        let key = (host_id.to_owned(), role);
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, channel)) = channels.get(&key)
            && known == address
        {
            return Ok(channel.clone());
        }
        let failed =
            |source| Error::Address { host_id: host_id.to_owned(), address: address.to_owned(), source };
        let name = Identity::Host { host_id: host_id.to_owned(), role }.dns_name();
        let channel = Endpoint::from_shared(format!("https://{address}"))
            .map_err(failed)?
            .tls_config(self.tls.clone().domain_name(name))
            .map_err(failed)?
            .connect_timeout(CONNECT_DEADLINE)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .connect_lazy();
        if channels.len() >= CONNECTIONS_MAX {
            channels.clear();
        }
        channels.insert(key, (address.to_owned(), channel.clone()));
        Ok(channel)
    }
}
