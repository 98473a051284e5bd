//! Makes programs of the guest trust the egress roots, without a byte of them on any disk.
//!
//! Owns a tmpfs layer over the directories where the image keeps its bundle, the roots appended to the bundle there,
//! a file with the roots alone, and the environment variables for programs that look elsewhere. The layer covers
//! directories, not files, so that `update-ca-certificates` can replace the bundle as it always does.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::mount::{self, cover_directory};

const DIRECTORY: &str = "/run/roost/trust";
const ROOTS: &str = "/run/roost/trust/roots.pem";
/// The bundle of an image that has none.
const BUNDLE: &str = "/run/roost/trust/bundle.pem";
const ROOTS_BYTES_MAX: usize = 256 << 10;

/// Where distributions keep the bundle; those that exist in the image are covered.
const PLACES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// Variables whose file replaces what the program would trust.
const REPLACING: [&str; 10] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "BUNDLE_SSL_CA_CERT",
    "npm_config_cafile",
];
/// Variables whose file is added to it.
const ADDING: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];
/// Variables that make a program use the system's bundle.
const SYSTEM: [(&str, &str); 4] = [
    ("DENO_TLS_CA_STORE", "system"),
    ("NODE_USE_SYSTEM_CA", "1"),
    ("UV_NATIVE_TLS", "1"),
    ("UV_SYSTEM_CERTS", "1"),
];

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the trust bundle is not PEM certificates of at most {ROOTS_BYTES_MAX} bytes")]
    Malformed,
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] io::Error),
    #[error(transparent)]
    Mount(#[from] mount::Error),
}

/// What is in force; nothing before the first roots came.
#[derive(Debug, Default)]
pub struct Trust {
    roots: String,
    /// The bundles the roots were appended to; programs are pointed at the first.
    bundles: Vec<PathBuf>,
}

/// The roots as text, if they are nothing but certificates.
pub fn check(roots: &[u8]) -> Result<&str, Error> {
    let text = std::str::from_utf8(roots).map_err(|_| Error::Malformed)?;
    let begins = text.matches("-----BEGIN CERTIFICATE-----").count();
    let ends = text.matches("-----END CERTIFICATE-----").count();
    // A key here would be a grave mistake of the host; it must not become readable for everybody.
    let ok = text.is_empty()
        || begins > 0 && begins == ends && !text.contains("PRIVATE KEY") && roots.len() <= ROOTS_BYTES_MAX;
    if ok { Ok(text) } else { Err(Error::Malformed) }
}

impl Trust {
    /// Puts the roots in force; none at all leaves the image's own trust.
    pub fn apply(&mut self, roots: &[u8]) -> Result<(), Error> {
        let roots = check(roots)?;
        if self.roots == roots {
            return Ok(());
        }
        if self.bundles.is_empty() {
            fs::create_dir_all(DIRECTORY).map_err(|error| Error::Write(DIRECTORY.into(), error))?;
            self.bundles = cover_bundles()?;
        }
        write(Path::new(ROOTS), roots)?;
        for bundle in &self.bundles {
            let current = fs::read(bundle).map_err(|error| Error::Read(bundle.clone(), error))?;
            write(bundle, &with_roots(&String::from_utf8_lossy(&current), &self.roots, roots))?;
        }
        self.roots = roots.to_owned();
        Ok(())
    }

    /// The variables processes get by default.
    pub fn environment(&self) -> BTreeMap<String, String> {
        if self.roots.is_empty() {
            return BTreeMap::new();
        }
        let bundle = self.bundles.first().map_or_else(|| BUNDLE.into(), |bundle| bundle.to_string_lossy());
        let replacing = REPLACING.iter().map(|name| (*name, bundle.as_ref()));
        let adding = ADDING.iter().map(|name| (*name, ROOTS));
        replacing
            .chain(adding)
            .chain(SYSTEM)
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }
}

/// A bundle with the old roots exchanged for the new ones. What programs of the guest put there stays.
fn with_roots(bundle: &str, old: &str, new: &str) -> String {
    let rest = if old.is_empty() { bundle.to_owned() } else { bundle.replace(old, "") };
    let separator = if rest.is_empty() || rest.ends_with('\n') { "" } else { "\n" };
    format!("{rest}{separator}{new}")
}

/// As a whole: a program that reads meanwhile sees the old bundle or the new one.
fn write(path: &Path, contents: &str) -> Result<(), Error> {
    let temporary = path.with_extension("roost-new");
    let written = fs::write(&temporary, contents).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| Error::Write(path.into(), error))
}

/// Covers the directories of all bundles of the image and returns the bundles.
fn cover_bundles() -> Result<Vec<PathBuf>, Error> {
    let mut bundles = existing_places();
    let mut covered: Vec<&Path> = Vec::new();
    for directory in bundles.iter().filter_map(|bundle| bundle.parent()) {
        if !covered.contains(&directory) {
            let layer = Path::new(DIRECTORY).join(format!("layer-{}", covered.len()));
            cover_directory(directory, &layer)?;
            covered.push(directory);
        }
    }
    if bundles.is_empty() {
        write(Path::new(BUNDLE), "")?;
        bundles.push(BUNDLE.into());
    }
    Ok(bundles)
}

/// Links resolved, each file once: two names of one file need one mount.
fn existing_places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    for place in PLACES {
        if let Ok(real) = fs::canonicalize(place)
            && !places.contains(&real)
        {
            places.push(real);
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";

    #[test]
    fn only_certificates_are_taken() {
        assert!(check(b"").is_ok());
        assert!(check(ROOT.as_bytes()).is_ok());
        assert!(check(ROOT.repeat(2).as_bytes()).is_ok());
        let key = format!("{ROOT}-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n");
        for bad in ["hello", " ", "-----BEGIN CERTIFICATE-----\nAA==\n", &key, &ROOT.repeat(10_000)] {
            assert!(matches!(check(bad.as_bytes()), Err(Error::Malformed)), "{:.40}", bad);
        }
        assert!(matches!(check(b"\xff"), Err(Error::Malformed)));
    }

    #[test]
    fn replacing_variables_get_the_bundle_and_adding_ones_the_roots() {
        assert!(Trust::default().environment().is_empty());
        let bundle = "/etc/ssl/certs/ca-certificates.crt";
        let trust = Trust { roots: ROOT.into(), bundles: vec![bundle.into()] };
        let environment = trust.environment();
        assert_eq!(environment["SSL_CERT_FILE"], bundle);
        assert_eq!(environment["NODE_EXTRA_CA_CERTS"], ROOTS);
        assert_eq!(environment["DENO_TLS_CA_STORE"], "system");
        assert_eq!(environment.len(), REPLACING.len() + ADDING.len() + SYSTEM.len());
    }
    #[test]
    fn roots_are_exchanged_and_the_rest_of_a_bundle_stays() {
        let other = ROOT.replace("AA", "BB");
        let first = with_roots("image\n", "", ROOT);
        assert_eq!(first, format!("image\n{ROOT}"));
        let grown = format!("{first}added by the tenant");
        assert_eq!(with_roots(&grown, ROOT, &other), format!("image\nadded by the tenant\n{other}"));
        assert_eq!(with_roots("", "", ROOT), ROOT);
    }
}
