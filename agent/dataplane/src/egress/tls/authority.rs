//! The host's certificate authority for guests: its key, which never leaves this directory, and its
//! certificate.
//!
//! ```text
//! egress-ca.key   made here, 0600
//! egress-ca.csr   made here, taken to the scheduler by the agent
//! egress-ca.pem   put here by the agent: the intermediate, then what leads to the root
//! ```
//! The certificate is looked for every few seconds, so that joining and renewal need no restart. One that
//! does not belong to the key or does not parse is reported and the former one stays.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use rcgen::{Issuer, KeyPair, PublicKeyData};
use roost_daemon::telemetry::chain;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::identity;

const LOOK_EVERY: Duration = Duration::from_secs(2);

const NAME: &str = "egress-ca";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("key and request")]
    Key(#[from] identity::Error),
    #[error("reading {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("the key in {}", .0.display())]
    ParseKey(PathBuf, #[source] rcgen::Error),
    #[error("{} holds no certificate", .0.display())]
    Empty(PathBuf),
    #[error("certificate {}", .0.display())]
    Certificate(PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("certificate {} belongs to another key", .0.display())]
    OtherKey(PathBuf),
}

/// What leaves are signed with.
pub(crate) struct Signer {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    /// Sent to the guest after the leaf.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) not_after: OffsetDateTime,
    /// Grows with every certificate loaded.
    pub(crate) number: u64,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Signer").field("number", &self.number).field("not_after", &self.not_after).finish()
    }
}

/// The authority in its current state: none until the host has joined.
#[derive(Debug)]
pub(crate) struct Authority {
    directory: PathBuf,
    signer: ArcSwapOption<Signer>,
    /// The certificate's stamp before it was first loaded: what comes later is seen as a change.
    opened: Option<Stamp>,
}

type Stamp = (SystemTime, u64);

impl Authority {
    /// Makes key and request where they are missing, and loads the certificate if it is there.
    pub(crate) fn open(directory: &Path) -> Result<Self, Error> {
        identity::ensure_request(directory, NAME)?;
        let mut authority =
            Self { directory: directory.to_owned(), signer: ArcSwapOption::empty(), opened: None };
        authority.opened = authority.stamp();
        authority.load_logged();
        Ok(authority)
    }

    /// The signer, unless its certificate is missing or over.
    pub(crate) fn find_signer(&self) -> Option<Arc<Signer>> {
        self.signer.load_full().filter(|signer| OffsetDateTime::now_utc() < signer.not_after)
    }

    /// Takes up new certificates, for ever.
    pub(crate) async fn watch(&self) {
        let mut seen = self.opened;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let stamp = self.stamp();
            if stamp != seen {
                seen = stamp;
                self.load_logged();
            }
        }
    }

    /// Changes whenever the agent replaced the certificate.
    fn stamp(&self) -> Option<Stamp> {
        let metadata = std::fs::metadata(self.path("pem")).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    }

    fn path(&self, extension: &str) -> PathBuf {
        self.directory.join(NAME).with_extension(extension)
    }

    fn load_logged(&self) {
        match self.load() {
            Ok(Some(signer)) => {
                tracing::info!(not_after = %signer.not_after, "TLS of guests is inspected with a new certificate");
                self.signer.store(Some(Arc::new(signer)));
            }
            Ok(None) => tracing::info!("no certificate for inspecting TLS yet"),
            Err(error) => tracing::error!(error = chain(&error), "certificate for inspecting TLS not taken"),
        }
    }

    fn load(&self) -> Result<Option<Signer>, Error> {
        let Some(certificates) = self.find_chain()? else { return Ok(None) };
        let path = self.path("pem");
        let key = self.load_key()?;
        let intermediate = certificates[0].clone();
        let (_, parsed) = x509_parser::parse_x509_certificate(&intermediate)
            .map_err(|error| Error::Certificate(path.clone(), error.into()))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(Error::OtherKey(path));
        }
        let not_after = parsed.validity().not_after.to_datetime();
        let issuer = Issuer::from_ca_cert_der(&intermediate, key)
            .map_err(|error| Error::Certificate(path, error.into()))?;
        let number = self.signer.load().as_ref().map_or(1, |signer| signer.number + 1);
        Ok(Some(Signer { issuer, chain: certificates, not_after, number }))
    }

    fn load_key(&self) -> Result<KeyPair, Error> {
        let path = self.path("key");
        let pem = std::fs::read_to_string(&path).map_err(|error| Error::Read(path.clone(), error))?;
        KeyPair::from_pem(&Zeroizing::new(pem)).map_err(|error| Error::ParseKey(path, error))
    }

    /// The certificate chain, if the agent has put one here.
    fn find_chain(&self) -> Result<Option<Vec<CertificateDer<'static>>>, Error> {
        let path = self.path("pem");
        let pem = match std::fs::read(&path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::Read(path, error)),
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        match chain {
            Ok(chain) if chain.is_empty() => Err(Error::Empty(path)),
            Ok(chain) => Ok(Some(chain)),
            Err(error) => Err(Error::Certificate(path, error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa};

    use super::*;
    use crate::egress::Host;
    use crate::egress::tls::Leaves;

    fn root() -> Issuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Issuer::new(params, KeyPair::generate().unwrap())
    }

    /// The agent puts a certificate for the request of `from` into `to`.
    fn issue(root: &Issuer<'static, KeyPair>, from: &Path, to: &Path, valid_for: time::Duration) {
        let request = std::fs::read_to_string(from.join("egress-ca.csr")).unwrap();
        let mut request = CertificateSigningRequestParams::from_pem(&request).unwrap();
        request.params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        request.params.not_after = OffsetDateTime::now_utc() + valid_for;
        std::fs::write(to.join("egress-ca.pem"), request.signed_by(root).unwrap().pem()).unwrap();
    }

    #[test]
    fn a_certificate_of_another_key_and_rubbish_do_not_replace_the_former() {
        let (root, own, other) = (root(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let authority = Authority::open(own.path()).unwrap();
        assert!(authority.find_signer().is_none(), "not joined yet");
        issue(&root, own.path(), own.path(), time::Duration::days(7));
        authority.load_logged();
        assert_eq!(authority.find_signer().unwrap().number, 1);

        Authority::open(other.path()).unwrap();
        issue(&root, other.path(), own.path(), time::Duration::days(7));
        assert!(matches!(authority.load(), Err(Error::OtherKey(_))));
        std::fs::write(own.path().join("egress-ca.pem"), "rubbish").unwrap();
        assert!(matches!(authority.load(), Err(Error::Empty(_))));
        authority.load_logged();
        assert_eq!(authority.find_signer().unwrap().number, 1);
        issue(&root, own.path(), own.path(), time::Duration::days(7));
        authority.load_logged();
        assert_eq!(authority.find_signer().unwrap().number, 2, "renewed with the same key");
    }

    #[tokio::test]
    async fn a_certificate_that_comes_before_the_watch_begins_is_taken_up() {
        let (root, own) = (root(), tempfile::tempdir().unwrap());
        let authority = Authority::open(own.path()).unwrap();
        issue(&root, own.path(), own.path(), time::Duration::days(7));
        let taken_up = async {
            while authority.find_signer().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await; // on purpose: polls, see the timeout
            }
        };
        let watched = async {
            tokio::select! { () = authority.watch() => {}, () = taken_up => {} }
        };
        tokio::time::timeout(Duration::from_secs(20), watched).await.expect("taken up");
    }

    #[test]
    fn an_expired_certificate_signs_nothing() {
        let (root, own) = (root(), tempfile::tempdir().unwrap());
        let authority = Authority::open(own.path()).unwrap();
        issue(&root, own.path(), own.path(), time::Duration::hours(-1));
        authority.load_logged();
        assert!(authority.find_signer().is_none());
    }

    #[test]
    fn leaves_are_kept_made_anew_for_a_new_authority_and_never_outlive_it() {
        let (root, own) = (root(), tempfile::tempdir().unwrap());
        let authority = Authority::open(own.path()).unwrap();
        issue(&root, own.path(), own.path(), time::Duration::hours(2));
        authority.load_logged();
        let leaves = Leaves::new(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
        let (host, signer) = (Host::parse("api.example.com").unwrap(), authority.find_signer().unwrap());
        assert!(leaves.find(&host, &signer).is_none());
        let made = leaves.make(&host, &signer).unwrap();
        assert!(Arc::ptr_eq(&leaves.find(&host, &signer).unwrap(), &made));
        assert_eq!(made.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        authority.load_logged();
        let renewed = authority.find_signer().unwrap();
        assert!(leaves.find(&host, &renewed).is_none(), "another authority, another leaf");
        let params = crate::egress::tls::leaf_params(&host, &renewed).unwrap();
        assert!(params.not_after <= renewed.not_after);
    }
}
