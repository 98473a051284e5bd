//! The other side of an inspected connection: TLS to the real host, always verified.
//!
//! Trusts Mozilla's roots, and for the patterns an operator names a file of further ones. Sessions are
//! resumed within one execution only, so that no guest's connection can be told by another's.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use roost_domain::audit::reason;

use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::egress::Host;
use roost_domain::host_name::Pattern;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Sessions one execution may resume.
const RESUMED_SESSIONS: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("upstream roots {0}")]
    Roots(PathBuf, #[source] rustls_pki_types::pem::Error),
    #[error("a certificate in upstream roots {0}")]
    Certificate(PathBuf, #[source] rustls::Error),
    #[error("TLS towards upstreams")]
    Versions(#[source] rustls::Error),
}

/// Further roots for some hosts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamRoots {
    pub host: Pattern,
    /// PEM certificates.
    pub file: PathBuf,
}

/// Why there is no TLS with an upstream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("TLS with {0}")]
    Failed(Host, #[source] io::Error),
    #[error("TLS with {0} took longer than {HANDSHAKE_TIMEOUT:?}")]
    Timeout(Host),
}

impl HandshakeError {
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Failed(..) => reason::UPSTREAM_TLS,
            Self::Timeout(_) => reason::TIMEOUT,
        }
    }
}

/// What the guest chose, and so what is offered to its upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Offer {
    /// No protocol by name: neither side speaks HTTP.
    Nothing,
    Http1,
    Http2,
}

/// Whom to trust, for all executions.
#[derive(Debug)]
pub(crate) struct UpstreamTls {
    public: Arc<ClientConfig>,
    /// The first pattern that matches decides.
    private: Vec<(Pattern, Arc<ClientConfig>)>,
}

impl UpstreamTls {
    pub(crate) fn load(provider: &Arc<CryptoProvider>, settings: &[UpstreamRoots]) -> Result<Self, Error> {
        let public = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let mut private = Vec::new();
        for UpstreamRoots { host, file } in settings {
            let mut roots = public.clone();
            let certificates =
                CertificateDer::pem_file_iter(file).map_err(|e| Error::Roots(file.clone(), e))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| Error::Roots(file.clone(), error))?;
                roots.add(certificate).map_err(|error| Error::Certificate(file.clone(), error))?;
            }
            private.push((host.clone(), Arc::new(client_config(provider, roots)?)));
        }
        Ok(Self { public: Arc::new(client_config(provider, public)?), private })
    }

    fn config(&self, host: &Host) -> &Arc<ClientConfig> {
        let private = self.private.iter().find(|(pattern, _)| pattern.matches(host));
        private.map_or(&self.public, |(_, config)| config)
    }

    /// Speaks TLS with a host, which must prove to be that host.
    pub(crate) async fn handshake(
        &self,
        host: &Host,
        offer: Offer,
        sessions: &Sessions,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, HandshakeError> {
        let fail = |error| HandshakeError::Failed(host.clone(), error);
        let name = match host.address() {
            Some(address) => ServerName::IpAddress(address.into()),
            None => ServerName::try_from(host.as_str().to_owned())
                .map_err(|error| fail(io::Error::new(io::ErrorKind::InvalidInput, error)))?,
        };
        let config = self.session_config(host, offer, sessions);
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsConnector::from(config).connect(name, stream)).await
        {
            Ok(connected) => connected.map_err(fail),
            Err(_) => Err(HandshakeError::Timeout(host.clone())),
        }
    }

    /// The configuration for one execution's connections to a host.
    fn session_config(&self, host: &Host, offer: Offer, sessions: &Sessions) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(self.config(host));
        config.resumption = sessions.0.clone();
        config.alpn_protocols = match offer {
            Offer::Nothing => Vec::new(),
            Offer::Http1 => vec![b"http/1.1".to_vec()],
            Offer::Http2 => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        Arc::new(config)
    }
}

fn client_config(provider: &Arc<CryptoProvider>, roots: RootCertStore) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(Error::Versions)?;
    #[cfg(feature = "sabotage")]
    if roost_domain::sabotage::Defence::UpstreamTls.is_off() {
        return Ok(super::unverified::config(builder, provider));
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// What one execution may resume.
#[derive(Debug, Clone)]
pub(crate) struct Sessions(rustls::client::Resumption);

impl Sessions {
    pub(crate) fn new() -> Self {
        Self(rustls::client::Resumption::in_memory_sessions(RESUMED_SESSIONS))
    }
}
