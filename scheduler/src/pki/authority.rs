//! One certificate authority: its key, its certificate, and the signing itself.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519,
    SanType,
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Error, file};

pub const DAY_US: i64 = 86_400_000_000;
/// Certificates are valid from a little before, so that a slow clock does not refuse them.
const BACKDATE_US: i64 = 3_600_000_000;
const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Profile {
    /// Client and server of mutual TLS.
    Mutual,
    Server,
    /// Signs server certificates, but no further authority.
    Intermediate,
}

/// What will be signed, all of it decided here and nothing of it by whoever asks.
#[derive(Debug, Clone)]
pub struct Leaf {
    common_name: String,
    dns_names: Vec<String>,
    uri: Option<String>,
    not_before_us: i64,
    not_after_us: i64,
    profile: Profile,
}

impl Leaf {
    pub(super) fn new(common_name: &str, now_us: i64, days: i64, profile: Profile) -> Leaf {
        // A common name of more than 64 characters is not valid X.509.
        let common_name = common_name.chars().take(64).collect();
        let (not_before_us, not_after_us) = (now_us - BACKDATE_US, now_us + days * DAY_US);
        Leaf { common_name, dns_names: vec![], uri: None, not_before_us, not_after_us, profile }
    }

    pub(super) fn with_dns(mut self, name: &str) -> Leaf {
        self.dns_names.push(name.to_owned());
        self
    }

    pub(super) fn with_uri(mut self, uri: &str) -> Leaf {
        self.uri = Some(uri.to_owned());
        self
    }

    pub fn not_after_us(&self) -> i64 {
        self.not_after_us
    }

    fn params(&self) -> Result<CertificateParams, Error> {
        let mut params = params(&self.common_name, self.not_before_us, self.not_after_us)?;
        let name = |source| Error::Certificate { step: "write a name into a certificate", source };
        for dns in &self.dns_names {
            params.subject_alt_names.push(SanType::DnsName(dns.as_str().try_into().map_err(name)?));
        }
        if let Some(uri) = &self.uri {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().map_err(name)?));
        }
        let (server, client) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
        match self.profile {
            Profile::Mutual => params.extended_key_usages = vec![server, client],
            Profile::Server => params.extended_key_usages = vec![server],
            Profile::Intermediate => {
                params.extended_key_usages = vec![server];
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            }
        }
        if self.profile != Profile::Intermediate {
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        }
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

/// A root: it signs, and its certificate verifies.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    not_after_us: i64,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("not_after_us", &self.not_after_us).finish_non_exhaustive()
    }
}

impl Authority {
    /// Opens `name` below `directory`, or makes it. `below` is how many authorities may hang under it.
    pub(super) fn ensure(
        directory: &Path,
        name: &str,
        common_name: &str,
        below: u8,
        now_us: i64,
        days: i64,
    ) -> Result<Authority, Error> {
        let (pem, key_file) = paths(directory, name);
        // The key is written first: a certificate without its key never exists.
        if !pem.exists() {
            let key = generate_key()?;
            let mut params = params(common_name, now_us - BACKDATE_US, now_us + days * DAY_US)?;
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let certificate = params.self_signed(&key).map_err(signing)?;
            file::write_private(&key_file, key.serialize_pem().as_bytes())?;
            file::write_public(&pem, certificate.pem().as_bytes())?;
        }
        Authority::open(directory, name)
    }

    pub(super) fn open(directory: &Path, name: &str) -> Result<Authority, Error> {
        let (pem, key_file) = paths(directory, name);
        let certificate_pem = file::read(&pem)?;
        let not_ours = || Error::NotOurs { path: pem.clone() };
        let (_, parsed) =
            x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes()).map_err(|_| not_ours())?;
        let (_, certificate) = X509Certificate::from_der(&parsed.contents).map_err(|_| not_ours())?;
        let not_after_us = certificate.validity().not_after.timestamp().saturating_mul(1_000_000);
        let key = KeyPair::from_pem(&file::read(&key_file)?)
            .map_err(|source| Error::Certificate { step: "read an authority's key", source })?;
        if certificate.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(not_ours());
        }
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)
            .map_err(|source| Error::Certificate { step: "read an authority's certificate", source })?;
        Ok(Authority { issuer, certificate_pem, not_after_us })
    }

    pub(super) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub(super) fn not_after_us(&self) -> i64 {
        self.not_after_us
    }

    /// Signs a key made here.
    pub(super) fn sign_key(&self, leaf: &Leaf, key: &KeyPair) -> Result<String, Error> {
        Ok(leaf.params()?.signed_by(key, &self.issuer).map_err(signing)?.pem())
    }

    /// Signs the public key of a request. The request proves possession of the private key; what else it asks for
    /// is not granted, and asking for another name is refused outright.
    pub(super) fn sign_request(&self, leaf: &Leaf, role: &str, csr_pem: &[u8]) -> Result<String, Error> {
        let refused = |problem| Error::Request { role: role.to_owned(), problem };
        if csr_pem.len() > REQUEST_BYTES_MAX {
            return Err(refused("is too long"));
        }
        let text = std::str::from_utf8(csr_pem).map_err(|_| refused("is not PEM"))?;
        let mut request = CertificateSigningRequestParams::from_pem(text)
            .map_err(|_| refused("is malformed or not signed by its own key"))?;
        let algorithm = request.public_key.algorithm();
        if *algorithm != PKCS_ECDSA_P256_SHA256 && *algorithm != PKCS_ED25519 {
            return Err(refused("has a key that is neither P-256 nor Ed25519"));
        }
        let granted = leaf.params()?;
        if request.params.subject_alt_names.iter().any(|name| !granted.subject_alt_names.contains(name)) {
            return Err(refused("asks for a name that is not its own"));
        }
        if matches!(request.params.is_ca, IsCa::Ca(_)) && leaf.profile != Profile::Intermediate {
            return Err(refused("asks to be an authority"));
        }
        request.params = granted;
        Ok(request.signed_by(&self.issuer).map_err(signing)?.pem())
    }

    /// True if this authority signed the first certificate of the chain.
    pub(super) fn has_signed(&self, chain_pem: &str) -> bool {
        let parse = |pem: &str| x509_parser::pem::parse_x509_pem(pem.as_bytes()).map(|(_, pem)| pem).ok();
        let (Some(leaf), Some(root)) = (parse(chain_pem), parse(&self.certificate_pem)) else { return false };
        let (Ok(leaf), Ok(root)) = (leaf.parse_x509(), root.parse_x509()) else { return false };
        leaf.verify_signature(Some(root.public_key())).is_ok()
    }
}

pub(super) fn generate_key() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|source| Error::Certificate { step: "make a key", source })
}

fn paths(directory: &Path, name: &str) -> (PathBuf, PathBuf) {
    (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")))
}

fn signing(source: rcgen::Error) -> Error {
    Error::Certificate { step: "sign a certificate", source }
}

fn params(common_name: &str, not_before_us: i64, not_after_us: i64) -> Result<CertificateParams, Error> {
    let moment =
        |us: i64| OffsetDateTime::from_unix_timestamp(us.div_euclid(1_000_000)).map_err(|_| Error::Time);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = moment(not_before_us)?;
    params.not_after = moment(not_after_us)?;
    Ok(params)
}
