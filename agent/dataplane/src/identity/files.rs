//! The files of an identity: `<name>.key`, `<name>.csr`, `<name>.pem` and `roots.pem` in the process's directory.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use zeroize::Zeroizing;

use super::Error;

pub(super) const ROOTS_FILE: &str = "roots.pem";
// A chain or a set of roots larger than this is a mistake.
const FILE_BYTES_MAX: u64 = 256 * 1024;

pub(super) fn key_file(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.key"))
}

pub(super) fn certificate_file(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.pem"))
}

/// Makes sure that there is a key `<name>.key` and its request `<name>.csr`. Repeatable; an existing key is kept.
pub fn ensure_request(directory: &Path, name: &str) -> Result<(), Error> {
    let key_file = key_file(directory, name);
    let request_file = directory.join(format!("{name}.csr"));
    let key = match std::fs::read_to_string(&key_file).map(Zeroizing::new) {
        Ok(pem) => KeyPair::from_pem(&pem)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let pem = Zeroizing::new(key.serialize_pem());
            write_whole(&key_file, pem.as_bytes())?;
            key
        }
        Err(source) => {
            return Err(Error::File { step: "read", path: key_file, source });
        }
    };
    if request_file.exists() {
        return Ok(());
    }
    let request = CertificateParams::default().serialize_request(&key)?.pem()?;
    write_whole(&request_file, request.as_bytes())
}

/// Private, and never seen half written.
fn write_whole(path: &Path, content: &[u8]) -> Result<(), Error> {
    let error = |step| move |source| Error::File { step, path: path.to_owned(), source };
    let unfinished = path.with_extension("unfinished");
    let mut options = File::options();
    options.create(true).truncate(true).write(true).mode(0o600);
    let mut file = options.open(&unfinished).map_err(error("make"))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(error("write"))?;
    std::fs::rename(&unfinished, path).map_err(error("put in place"))
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let error = |source| Error::File { step: "read", path: path.to_owned(), source };
    let mut content = Vec::new();
    let file = File::open(path).map_err(error)?;
    io::Read::read_to_end(&mut io::Read::take(file, FILE_BYTES_MAX), &mut content).map_err(error)?;
    Ok(content)
}

/// Every file that credentials are made of.
pub(super) fn all(directory: &Path, name: &str) -> Vec<PathBuf> {
    vec![key_file(directory, name), certificate_file(directory, name), directory.join(ROOTS_FILE)]
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn key_and_request_are_made_once_and_belong_together() {
        let directory = tempfile::tempdir().unwrap();
        ensure_request(directory.path(), "edge").unwrap();
        let key = std::fs::read(key_file(directory.path(), "edge")).unwrap();
        let mode = std::fs::metadata(key_file(directory.path(), "edge")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let request_file = directory.path().join("edge.csr");
        let request = std::fs::read_to_string(&request_file).unwrap();
        let parsed = rcgen::CertificateSigningRequestParams::from_pem(&request).unwrap();
        let pair = KeyPair::from_pem(std::str::from_utf8(&key).unwrap()).unwrap();
        assert_eq!(
            rcgen::PublicKeyData::der_bytes(&parsed.public_key),
            rcgen::PublicKeyData::der_bytes(&pair)
        );

        // A crash between the two files is repaired with the same key.
        std::fs::remove_file(&request_file).unwrap();
        ensure_request(directory.path(), "edge").unwrap();
        assert!(request_file.exists());
        assert_eq!(std::fs::read(key_file(directory.path(), "edge")).unwrap(), key);
    }
}
