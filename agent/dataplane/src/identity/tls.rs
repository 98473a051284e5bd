//! TLS within the fleet: what a certificate, its key and the roots become, and whose certificate a peer showed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use x509_parser::extensions::GeneralName;

use super::files::{ROOTS_FILE, certificate_file, key_file, read};
use super::{Credentials, Error};

/// The name in the scheduler's certificate, whatever address it is reached at.
const SCHEDULER_NAME: &str = "scheduler.roost.internal";
/// The scheduler as a caller.
pub const SCHEDULER_URI: &str = "roost://scheduler";
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
    let server = server_config(chain, key, roots).map_err(|source| Error::Tls { name, source })?;
    Ok(Credentials { server: Arc::new(server), chain_pem, key_pem, roots_pem })
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
    config.alpn_protocols = vec![b"h2".to_vec()];
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

/// The one URI in the certificate of a client that TLS has verified against the fleet's roots.
pub fn find_peer_uri(connection: &rustls::ServerConnection) -> Option<String> {
    let certificate = connection.peer_certificates()?.first()?;
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
