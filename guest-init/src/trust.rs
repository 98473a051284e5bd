//! Makes programs of the guest trust the egress roots, without a byte of them on any disk.
//!
//! Owns the bundles on a tmpfs (the image's with the roots appended, and the roots alone), the mounts over the
//! places programs look for certificates, and the environment variables for those that look elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::mount::{self, overmount};

const DIRECTORY: &str = "/run/roost/trust";
const BUNDLE: &str = "/run/roost/trust/bundle.pem";
const ROOTS: &str = "/run/roost/trust/roots.pem";
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
    image: Vec<u8>,
    roots: Vec<u8>,
}

pub fn check(roots: &[u8]) -> Result<(), Error> {
    let text = std::str::from_utf8(roots).map_err(|_| Error::Malformed)?;
    let begins = text.matches("-----BEGIN CERTIFICATE-----").count();
    let ends = text.matches("-----END CERTIFICATE-----").count();
    // A key here would be a grave mistake of the host; it must not become readable for everybody.
    let ok = text.is_empty()
        || begins > 0 && begins == ends && !text.contains("PRIVATE KEY") && roots.len() <= ROOTS_BYTES_MAX;
    if ok { Ok(()) } else { Err(Error::Malformed) }
}

impl Trust {
    /// Puts the roots in force; none at all leaves the image's own trust.
    pub fn apply(&mut self, roots: &[u8]) -> Result<(), Error> {
        check(roots)?;
        if self.roots == roots {
            return Ok(());
        }
        let mounted = !self.roots.is_empty();
        if !mounted {
            self.image = read_image_bundle()?;
            fs::create_dir_all(DIRECTORY).map_err(|error| Error::Write(DIRECTORY.into(), error))?;
        }
        let mut bundle = self.image.clone();
        if !bundle.is_empty() && !bundle.ends_with(b"\n") {
            bundle.push(b'\n');
        }
        bundle.extend_from_slice(roots);
        rewrite(Path::new(ROOTS), roots)?;
        rewrite(Path::new(BUNDLE), &bundle)?;
        if !mounted {
            for place in existing_places() {
                overmount(Path::new(BUNDLE), &place)?;
            }
        }
        self.roots = roots.to_vec();
        Ok(())
    }

    /// The variables processes get by default.
    pub fn environment(&self) -> BTreeMap<String, String> {
        if self.roots.is_empty() {
            return BTreeMap::new();
        }
        let replacing = REPLACING.iter().map(|name| (*name, BUNDLE));
        let adding = ADDING.iter().map(|name| (*name, ROOTS));
        replacing
            .chain(adding)
            .chain(SYSTEM)
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }
}

/// In place, since the file is mounted elsewhere. The front of a bundle never changes, so a reader in between
/// misses roots at worst.
fn rewrite(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.write_all(contents)?;
        file.set_len(contents.len() as u64)
    };
    write().map_err(|error| Error::Write(path.into(), error))
}

fn read_image_bundle() -> Result<Vec<u8>, Error> {
    match existing_places().first() {
        Some(place) => fs::read(place).map_err(|error| Error::Read(place.clone(), error)),
        None => Ok(Vec::new()),
    }
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
        let trust = Trust { image: Vec::new(), roots: ROOT.into() };
        let environment = trust.environment();
        assert_eq!(environment["SSL_CERT_FILE"], BUNDLE);
        assert_eq!(environment["NODE_EXTRA_CA_CERTS"], ROOTS);
        assert_eq!(environment["DENO_TLS_CA_STORE"], "system");
        assert_eq!(environment.len(), REPLACING.len() + ADDING.len() + SYSTEM.len());
    }
}
