//! Certificates shown to guests in the place of a host's own: made on demand, a fresh key each, kept for a
//! day at most.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};
use rustls_pki_types::PrivateKeyDer;
use time::OffsetDateTime;

use super::authority::Signer;
use crate::egress::Host;

/// Names whose leaves are kept; about 5 KiB each.
const CACHED_LEAVES: usize = 4096;
const LEAF_VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// Guests whose clock is behind.
const BACKDATED: Duration = Duration::from_secs(3600);
/// After this a leaf is made anew, so that one in use is always good for as long again.
const REFRESH_AFTER: Duration = Duration::from_secs(12 * 3600);
/// TLS sessions that guests may resume; rustls resumes one only under the name it was made for.
const CACHED_SESSIONS: usize = 8192;
/// X.520's limit for a common name.
const COMMON_NAME_BYTES_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("signing a certificate for {0}")]
    Sign(Host, #[source] rcgen::Error),
    #[error("using a certificate for {0}")]
    Use(Host, #[source] rustls::Error),
}

struct Leaf {
    config: Arc<ServerConfig>,
    made: Instant,
    signer_number: u64,
}

/// The leaves in use.
pub(crate) struct Leaves {
    provider: Arc<CryptoProvider>,
    cache: Mutex<LruCache<Host, Leaf>>,
    sessions: Arc<dyn StoresServerSessions>,
}

impl std::fmt::Debug for Leaves {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Leaves").finish_non_exhaustive()
    }
}

impl Leaves {
    pub(crate) fn new(provider: Arc<CryptoProvider>) -> Self {
        const CAPACITY: NonZeroUsize = NonZeroUsize::new(CACHED_LEAVES).expect("not zero");
        Self {
            provider,
            cache: Mutex::new(LruCache::new(CAPACITY)),
            sessions: ServerSessionMemoryCache::new(CACHED_SESSIONS),
        }
    }

    /// The leaf of a host, if a current one was made under this signer.
    pub(crate) fn find(&self, host: &Host, signer: &Signer) -> Option<Arc<ServerConfig>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let leaf = cache.get(host)?;
        let current = leaf.signer_number == signer.number && leaf.made.elapsed() < REFRESH_AFTER;
        current.then(|| Arc::clone(&leaf.config))
    }

    /// Makes a leaf and keeps it.
    pub(crate) fn make(&self, host: &Host, signer: &Signer) -> Result<Arc<ServerConfig>, Error> {
        let config = Arc::new(self.make_config(host, signer)?);
        let leaf = Leaf { config: Arc::clone(&config), made: Instant::now(), signer_number: signer.number };
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).put(host.clone(), leaf);
        Ok(config)
    }

    fn make_config(&self, host: &Host, signer: &Signer) -> Result<ServerConfig, Error> {
        let sign = |error| Error::Sign(host.clone(), error);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(sign)?;
        let leaf = leaf_params(host, signer).and_then(|params| params.signed_by(&key, &signer.issuer));
        let mut chain = vec![leaf.map_err(sign)?.der().clone()];
        chain.extend(signer.chain.iter().cloned());
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| Error::Use(host.clone(), error))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::clone(&self.sessions);
        Ok(config)
    }
}

pub(crate) fn leaf_params(host: &Host, signer: &Signer) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new([host.as_str().to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    if host.as_str().len() <= COMMON_NAME_BYTES_MAX {
        params.distinguished_name.push(DnType::CommonName, host.as_str());
    }
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = (now + LEAF_VALIDITY).min(signer.not_after);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}
