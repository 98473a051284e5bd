//! The host's certificate authority for guests: its key, which never leaves this directory, and its
//! certificate.
//!
//! ```text
//! egress-ca.key   made here, 0600
//! egress-ca.csr   made here, taken to the scheduler by the agent
//! egress-ca.pem   put here by the agent: the intermediate, then what leads to the root
//! ```
//! Joining and renewal need no restart. A certificate that does not belong to the key or does not parse is reported
//! and the former one stays.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::from_files::FromFiles;
use crate::identity;

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
    /// Another one for every certificate loaded.
    pub(crate) number: u64,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Signer").field("number", &self.number).field("not_after", &self.not_after).finish()
    }
}

/// The authority in its current state: none until the host has joined.
#[derive(Debug)]
pub(crate) struct Authority(FromFiles<Signer>);

impl Authority {
    /// Makes key and request where they are missing, and loads the certificate if it is there.
    pub(crate) fn open(directory: &Path) -> Result<Self, Error> {
        identity::ensure_request(directory, NAME)?;
        let (files, directory) = (vec![path(directory, "key"), path(directory, "pem")], directory.to_owned());
        let load = move || load(&directory);
        Ok(Self(FromFiles::new("the certificate for inspecting TLS", files, load)))
    }

    /// The signer, unless its certificate is missing or over.
    pub(crate) fn find_signer(&self) -> Option<Arc<Signer>> {
        self.0.find().filter(|signer| OffsetDateTime::now_utc() < signer.not_after)
    }

    /// Takes up new certificates, for ever.
    pub(crate) async fn keep_current(&self) {
        self.0.keep_current().await;
    }
}

fn path(directory: &Path, extension: &str) -> PathBuf {
    directory.join(NAME).with_extension(extension)
}

fn load(directory: &Path) -> Result<Signer, Error> {
    static LOADED: AtomicU64 = AtomicU64::new(0);
    let (file, key) = (path(directory, "pem"), load_key(&path(directory, "key"))?);
    let chain = load_chain(&file)?;
    let intermediate = chain[0].clone();
    let (_, parsed) = x509_parser::parse_x509_certificate(&intermediate)
        .map_err(|error| Error::Certificate(file.clone(), error.into()))?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(Error::OtherKey(file));
    }
    let not_after = parsed.validity().not_after.to_datetime();
    let issuer = Issuer::from_ca_cert_der(&intermediate, key)
        .map_err(|error| Error::Certificate(file, error.into()))?;
    Ok(Signer { issuer, chain, not_after, number: LOADED.fetch_add(1, Ordering::Relaxed) })
}

fn load_key(file: &Path) -> Result<KeyPair, Error> {
    let pem = std::fs::read_to_string(file).map_err(|error| Error::Read(file.to_owned(), error))?;
    KeyPair::from_pem(&Zeroizing::new(pem)).map_err(|error| Error::ParseKey(file.to_owned(), error))
}

/// At least one certificate.
fn load_chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = std::fs::read(file).map_err(|error| Error::Read(file.to_owned(), error))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(Error::Empty(file.to_owned())),
        Ok(chain) => Ok(chain),
        Err(error) => Err(Error::Certificate(file.to_owned(), error.into())),
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
    fn a_certificate_of_another_key_and_rubbish_are_told_apart() {
        let (root, own, other) = (root(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let authority = Authority::open(own.path()).unwrap();
        assert!(authority.find_signer().is_none(), "not joined yet");
        issue(&root, own.path(), own.path(), time::Duration::days(7));
        let first = authority.find_signer().expect("taken up by who asks").number;

        Authority::open(other.path()).unwrap();
        issue(&root, other.path(), own.path(), time::Duration::days(7));
        assert!(matches!(load(own.path()), Err(Error::OtherKey(_))));
        std::fs::write(own.path().join("egress-ca.pem"), "rubbish").unwrap();
        assert!(matches!(load(own.path()), Err(Error::Empty(_))));
        assert_eq!(authority.find_signer().unwrap().number, first, "the former stays");
        issue(&root, own.path(), own.path(), time::Duration::days(7));
        assert_ne!(load(own.path()).unwrap().number, first, "renewed with the same key");
    }

    #[test]
    fn an_expired_certificate_signs_nothing() {
        let (root, own) = (root(), tempfile::tempdir().unwrap());
        let authority = Authority::open(own.path()).unwrap();
        issue(&root, own.path(), own.path(), time::Duration::hours(-1));
        assert!(authority.find_signer().is_none());
    }

    #[test]
    fn leaves_are_kept_made_anew_for_a_new_authority_and_never_outlive_it() {
        let (root, own) = (root(), tempfile::tempdir().unwrap());
        let authority = Authority::open(own.path()).unwrap();
        issue(&root, own.path(), own.path(), time::Duration::hours(2));
        let leaves = Leaves::new(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
        let (host, signer) = (Host::parse("api.example.com").unwrap(), authority.find_signer().unwrap());
        assert!(leaves.find(&host, &signer).is_none());
        let made = leaves.make(&host, &signer).unwrap();
        assert!(Arc::ptr_eq(&leaves.find(&host, &signer).unwrap(), &made));
        assert_eq!(made.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        let renewed = load(own.path()).unwrap();
        assert!(leaves.find(&host, &renewed).is_none(), "another authority, another leaf");
        let params = crate::egress::tls::leaf_params(&host, &renewed).unwrap();
        assert!(params.not_after <= renewed.not_after);
    }
}
