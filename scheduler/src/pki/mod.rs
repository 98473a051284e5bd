//! The scheduler's certificate authorities and what they may sign.
//!
//! Three roots that trust nothing of each other, made at the first start, keys 0600 in the state directory:
//! ```text
//! fleet root    → scheduler, and host/<id>/{agent,edge,egress}   (mutual TLS between our own processes)
//! egress roots  → host intermediates only: 7 days, pathlen 0     (what guests trust; two may overlap)
//! preview root  → *.sandbox.<domain>, *.preview.<domain>, the API (development only)
//! ```
//! Must not decide who may ask for a certificate: that is `fleet`'s. From a certificate request it takes the public
//! key and nothing else.

mod authority;
mod file;
mod name;

pub(crate) use file::{ensure_directory as ensure_private_directory, write_private};

use std::path::{Path, PathBuf};

use authority::Authority;
pub use authority::{DAY_US, Leaf};
pub use name::{Identity, Role, SCHEDULER_NAME};

use crate::pki::authority::Profile;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step} {}", path.display())]
    File { step: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{step}")]
    Certificate { step: &'static str, source: rcgen::Error },
    #[error("{} is not a certificate of ours", path.display())]
    NotOurs { path: PathBuf },
    #[error("the certificate request for {role} {problem}")]
    Request { role: String, problem: &'static str },
    #[error("a certificate of a caller is not readable: {problem}")]
    Caller { problem: &'static str },
    #[error("a certificate would be valid until a time that cannot be written")]
    Time,
}

const ROOT_DAYS: i64 = 3650;
/// Issued anew at every start.
const SCHEDULER_DAYS: i64 = 397;
const HOST_DAYS: i64 = 7;
const DEVELOPMENT_DAYS: i64 = 397;
/// A development certificate with less than this left is made again at the next start.
const DEVELOPMENT_RENEW_DAYS: i64 = 30;
/// An egress root with less than this left gets a successor; both are trusted until the older one ends.
const EGRESS_OVERLAP_DAYS: i64 = 365;

/// A certificate with its chain, and its private key, as PEM.
#[derive(Clone)]
pub struct KeyedChain {
    pub chain_pem: String,
    pub key_pem: String,
}

impl std::fmt::Debug for KeyedChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyedChain").finish_non_exhaustive()
    }
}

/// Names that development certificates are made for.
#[derive(Debug, Clone)]
pub struct Development {
    pub preview_domain: String,
    pub api_names: Vec<String>,
}

/// All authorities, opened.
#[derive(Debug)]
pub struct Pki {
    fleet: Authority,
    /// The newest first: it signs.
    egress: Vec<Authority>,
    scheduler: KeyedChain,
    preview: Option<KeyedChain>,
    api: Option<KeyedChain>,
}

impl Pki {
    /// Opens the authorities below `directory`, making what is missing. Repeatable.
    pub fn ensure(directory: &Path, development: Option<&Development>, now_us: i64) -> Result<Pki, Error> {
        file::ensure_directory(directory)?;
        let fleet = Authority::ensure(directory, "fleet-root", "Roost fleet root", 0, now_us, ROOT_DAYS)?;
        let egress = ensure_egress_roots(&directory.join("egress"), now_us)?;
        let key = authority::generate_key()?;
        let leaf = Leaf::new("Roost scheduler", now_us, SCHEDULER_DAYS, Profile::Mutual)
            .with_uri(&Identity::Scheduler.uri())
            .with_dns(SCHEDULER_NAME);
        let scheduler = KeyedChain { chain_pem: fleet.sign_key(&leaf, &key)?, key_pem: key.serialize_pem() };
        let (preview, api) = match development {
            None => (None, None),
            Some(names) => {
                let (preview, api) = ensure_development(directory, names, now_us)?;
                (Some(preview), Some(api))
            }
        };
        Ok(Pki { fleet, egress, scheduler, preview, api })
    }

    /// What verifies mutual TLS.
    pub fn fleet_roots_pem(&self) -> &str {
        self.fleet.certificate_pem()
    }

    /// What guests trust: every egress root that has not ended.
    pub fn egress_roots_pem(&self) -> String {
        self.egress.iter().map(Authority::certificate_pem).collect()
    }

    /// Our own identity in the fleet.
    pub fn scheduler(&self) -> &KeyedChain {
        &self.scheduler
    }

    /// The development certificate for previews, if there is one.
    pub fn preview(&self) -> Option<&KeyedChain> {
        self.preview.as_ref()
    }

    /// The development certificate for the API, if there is one.
    pub fn api(&self) -> Option<&KeyedChain> {
        self.api.as_ref()
    }

    /// A host's certificate for one of its three identities.
    pub fn sign_host(
        &self,
        host_id: &str,
        role: Role,
        csr_pem: &[u8],
        now_us: i64,
    ) -> Result<(String, i64), Error> {
        let identity = Identity::Host { host_id: host_id.to_owned(), role };
        let leaf =
            Leaf::new(&format!("Roost {} of {host_id}", role.word()), now_us, HOST_DAYS, Profile::Mutual)
                .with_uri(&identity.uri())
                .with_dns(&identity.dns_name());
        let chain = self.fleet.sign_request(&leaf, role.word(), csr_pem)?;
        Ok((chain, leaf.not_after_us()))
    }

    /// A host's intermediate under the egress root: it makes certificates that guests of this host trust.
    pub fn sign_egress_intermediate(
        &self,
        host_id: &str,
        csr_pem: &[u8],
        now_us: i64,
    ) -> Result<(String, i64), Error> {
        let leaf = Leaf::new(&format!("Roost egress {host_id}"), now_us, HOST_DAYS, Profile::Intermediate);
        let newest = self.egress.first().ok_or(Error::Request {
            role: "egress_ca".into(),
            problem: "came before there was an egress root",
        })?;
        Ok((newest.sign_request(&leaf, "egress_ca", csr_pem)?, leaf.not_after_us()))
    }
}

/// The roots that have not ended, newest first; a new one when the newest is near its end.
fn ensure_egress_roots(directory: &Path, now_us: i64) -> Result<Vec<Authority>, Error> {
    file::ensure_directory(directory)?;
    let mut roots = Vec::new();
    for name in file::list_names(directory, "pem")? {
        let root = Authority::open(directory, &name)?;
        if root.not_after_us() > now_us {
            roots.push(root);
        }
    }
    roots.sort_by_key(|root| std::cmp::Reverse(root.not_after_us()));
    let lasts = roots.first().is_some_and(|root| root.not_after_us() > now_us + EGRESS_OVERLAP_DAYS * DAY_US);
    if !lasts {
        let name = format!("root-{}", now_us / DAY_US);
        roots.insert(0, Authority::ensure(directory, &name, "Roost egress root", 1, now_us, ROOT_DAYS)?);
    }
    Ok(roots)
}

fn ensure_development(
    directory: &Path,
    names: &Development,
    now_us: i64,
) -> Result<(KeyedChain, KeyedChain), Error> {
    let root = Authority::ensure(directory, "preview-root", "Roost development root", 0, now_us, ROOT_DAYS)?;
    let domain = &names.preview_domain;
    let wildcards = [format!("*.sandbox.{domain}"), format!("*.preview.{domain}")];
    let preview = ensure_leaf(directory, "preview", &root, &wildcards, now_us)?;
    let api = ensure_leaf(directory, "api", &root, &names.api_names, now_us)?;
    Ok((preview, api))
}

/// A server certificate kept on disk, made again when it is near its end or for other names.
fn ensure_leaf(
    directory: &Path,
    name: &str,
    root: &Authority,
    dns_names: &[String],
    now_us: i64,
) -> Result<KeyedChain, Error> {
    let (pem, key) = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
    if pem.exists() && key.exists() {
        let chain_pem = file::read(&pem)?;
        let fresh_until_us = now_us + DEVELOPMENT_RENEW_DAYS * DAY_US;
        if name::is_good_for(&chain_pem, dns_names, fresh_until_us) && root.has_signed(&chain_pem) {
            return Ok(KeyedChain { chain_pem, key_pem: file::read(&key)? });
        }
    }
    let fresh = authority::generate_key()?;
    let first = dns_names.first().map_or("localhost", String::as_str);
    let leaf = Leaf::new(first, now_us, DEVELOPMENT_DAYS, Profile::Server);
    let leaf = dns_names.iter().fold(leaf, |leaf, dns| leaf.with_dns(dns));
    let chain_pem = root.sign_key(&leaf, &fresh)?;
    file::write_private(&key, fresh.serialize_pem().as_bytes())?;
    file::write_public(&pem, chain_pem.as_bytes())?;
    Ok(KeyedChain { chain_pem, key_pem: fresh.serialize_pem() })
}
