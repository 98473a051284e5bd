//! TLS within the fleet: what a certificate, its key and the roots become, and whose certificate a peer showed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use roost_domain::id::HostId;
use roost_domain::sabotage::Defence;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use x509_parser::extensions::GeneralName;

use super::files::{ROOTS_FILE, certificate_file, key_file, read};
use super::{Credentials, Error};
use crate::control::Role;

/// The name in the scheduler's certificate, whatever address it is reached at.
const SCHEDULER_NAME: &str = "scheduler.roost.internal";
/// The scheduler as a caller.
const SCHEDULER_URI: &str = "roost://scheduler";
const HOST_URI: &str = "roost://host/";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn load(directory: &Path, name: &'static str) -> Result<Credentials, Error> {
    let chain_file = certificate_file(directory, name);
    let key_file = key_file(directory, name);
    let roots_file = directory.join(ROOTS_FILE);
    let chain_pem = read(&chain_file)?;
    let key_pem = zeroize::Zeroizing::new(read(&key_file)?);
    let roots_pem = read(&roots_file)?;

    let chain: Vec<_> = certificates(&chain_pem).collect();
    if chain.is_empty() {
        return Err(Error::Empty { what: "certificate", path: chain_file });
    }
    let key = PrivateKeyDer::from_pem_slice(&key_pem)
        .map_err(|_| Error::Empty { what: "private key", path: key_file })?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&roots_pem));
    if roots.is_empty() {
        return Err(Error::Empty { what: "root certificate", path: roots_file });
    }
    let host_id = chain.first().and_then(find_uri).and_then(|uri| find_host_id(&uri, Role::Edge));
    let tls = |source| Error::Tls { name, source };
    let client = client_config(chain.clone(), key.clone_key(), roots.clone()).map_err(tls)?;
    let server = server_config(chain, key, roots).map_err(tls)?;
    let (server, client) = (Arc::new(server), Arc::new(client));
    Ok(Credentials { server, client, host_id, chain_pem, key_pem, roots_pem })
}

fn certificates(pem: &[u8]) -> impl Iterator<Item = CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok)
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: RootCertStore,
) -> Result<ServerConfig, Box<dyn std::error::Error + Send + Sync>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    // The scheduler speaks HTTP/2; a relayed preview HTTP/1.1, which can be upgraded to WebSocket.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn client_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: RootCertStore,
) -> Result<ClientConfig, Box<dyn std::error::Error + Send + Sync>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

impl Credentials {
    /// A channel to the scheduler at `host:port`, connected when first used and again when it broke.
    pub fn scheduler_channel(&self, address: &str) -> Result<Channel, tonic::transport::Error> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.roots_pem))
            .identity(tonic::transport::Identity::from_pem(&self.chain_pem, &*self.key_pem))
            .domain_name(SCHEDULER_NAME);
        let endpoint = Endpoint::from_shared(format!("https://{address}"))?
            .tls_config(tls)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        Ok(endpoint.connect_lazy())
    }
}

/// Who called: a client that TLS has verified against the fleet's roots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    Scheduler,
    /// The edge of a host of the fleet.
    Edge,
}

/// The caller behind a connection; `None` for everybody who may call no edge.
pub fn find_caller(connection: &rustls::ServerConnection) -> Option<Caller> {
    let uri = find_uri(connection.peer_certificates()?.first()?)?;
    if Defence::GatewayCaller.is_off() {
        return Some(Caller::Scheduler);
    }
    match uri.as_str() {
        SCHEDULER_URI => Some(Caller::Scheduler),
        other => find_host_id(other, Role::Edge).map(|_| Caller::Edge),
    }
}

/// The one URI among a certificate's alternative names.
fn find_uri(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Some(uri),
        _ => None,
    }
}

/// The host whose process of this role the URI names.
fn find_host_id(uri: &str, role: Role) -> Option<String> {
    let (host_id, word) = uri.strip_prefix(HOST_URI)?.split_once('/')?;
    HostId::parse(host_id).ok().filter(|_| word == role.name()).map(|id| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_edge_of_a_host_is_an_edge() {
        let host = "host_01d39zy06fgsctvn4t2v9pkhfz";
        assert_eq!(find_host_id(&format!("roost://host/{host}/edge"), Role::Edge).as_deref(), Some(host));
        for uri in [
            format!("roost://host/{host}/egress"),
            format!("roost://host/{host}/edge/"),
            format!("roost://host/{host}"),
            "roost://host//edge".to_owned(),
            "roost://host/../edge".to_owned(),
            format!("https://host/{host}/edge"),
        ] {
            assert_eq!(find_host_id(&uri, Role::Edge), None, "{uri}");
        }
    }
}
