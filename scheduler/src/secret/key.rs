//! The master key, the tenants' data keys under it, and sealing with them.
//!
//! Sealed bytes are `nonce (12) ‖ ciphertext ‖ tag (16)`; the additional data names the place they belong to, so a
//! row copied to another tenant, secret, version or host list does not open.

use std::io::Read;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use roost_domain::sabotage::Defence;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{Error, Plaintext};
use crate::store::secret::DataKey;
use crate::store::{self, Tx, secret};

const KEY_BYTES: usize = 32;
const FILE_BYTES_MAX: u64 = 4096;

/// What a data key of a tenant is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Value,
    Placeholder,
}

impl Purpose {
    fn word(self) -> &'static str {
        match self {
            Purpose::Value => "value",
            Purpose::Placeholder => "placeholder",
        }
    }
}

/// 256 bits, wiped when dropped.
pub(super) struct Key(Zeroizing<[u8; KEY_BYTES]>);

impl Key {
    fn generate() -> Result<Key, Error> {
        let mut bytes = Zeroizing::new([0u8; KEY_BYTES]);
        getrandom::fill(bytes.as_mut()).map_err(|_| Error::Crypto { what: "a new key" })?;
        Ok(Key(bytes))
    }

    pub(super) fn seal(&self, place: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, Error> {
        let key = RandomizedNonceKey::new(&AES_256_GCM_SIV, self.0.as_ref())?;
        let mut sealed = plaintext.to_vec();
        let nonce = key.seal_in_place_append_tag(associated(place), &mut sealed)?;
        let mut whole = nonce.as_ref().to_vec();
        whole.append(&mut sealed);
        Ok(whole)
    }

    pub(super) fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Plaintext, Error> {
        let key = RandomizedNonceKey::new(&AES_256_GCM_SIV, self.0.as_ref())?;
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or(Error::Crypto { what: "a value" })?;
        let nonce = Nonce::try_assume_unique_for_key(nonce)?;
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let length = key.open_in_place(nonce, associated(place), bytes.as_mut_slice())?.len();
        Ok(Plaintext::new(bytes[..length].to_vec()))
    }

    /// HMAC-SHA-256, for placeholders.
    pub(super) fn authenticate(&self, message: &[u8]) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.as_ref());
        let mut digest = [0u8; 32];
        digest.copy_from_slice(hmac::sign(&key, message).as_ref());
        digest
    }
}

/// The key everything hangs from.
pub struct MasterKey {
    id: String,
    key: Key,
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MasterKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl MasterKey {
    /// Reads the file, or makes it at the first start: 64 hexadecimal digits, readable by its owner alone.
    pub(super) fn ensure(path: &Path) -> Result<MasterKey, Error> {
        let failed = |step| move |source| Error::MasterKey { step, path: path.to_owned(), source };
        if !path.exists() {
            let fresh = Key::generate()?;
            let text = Zeroizing::new(hex::encode(fresh.0.as_ref()));
            let written = crate::pki::write_private(path, text.as_bytes());
            written.map_err(|error| failed("write")(std::io::Error::other(error)))?;
        }
        let mut text = Zeroizing::new(String::new());
        let file = std::fs::File::open(path).map_err(failed("open"))?;
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed("read"))?;
        let mut key = Zeroizing::new([0u8; KEY_BYTES]);
        hex::decode_to_slice(text.trim(), key.as_mut())
            .map_err(|_| Error::MasterKeyForm { path: path.to_owned() })?;
        Ok(MasterKey::from_key(Key(key)))
    }

    fn from_key(key: Key) -> MasterKey {
        // Names the key without giving it away: the file may be the wrong one, and an error must be able to say so.
        let id =
            hex::encode(&Sha256::digest([b"roost master key id".as_slice(), key.0.as_ref()].concat())[..8]);
        MasterKey { id, key }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn wrap(&self, place: &[u8], key: &[u8]) -> Result<Vec<u8>, Error> {
        self.key.seal(place, key)
    }

    pub(super) fn unwrap(
        &self,
        what: &'static str,
        id: &str,
        place: &[u8],
        sealed: &[u8],
    ) -> Result<Plaintext, Error> {
        if id != self.id {
            return Err(Error::OtherMasterKey { what, wanted: id.to_owned(), found: self.id.clone() });
        }
        self.key.open(place, sealed).map_err(|_| Error::Crypto { what })
    }

    /// A tenant's data key, made when it is first needed.
    pub(super) fn ensure_data_key(
        &self,
        tx: &mut Tx<'_>,
        tenant: &str,
        purpose: Purpose,
        now_us: i64,
    ) -> Result<Key, Error> {
        if let Some(key) = self.find_data_key(tx, tenant, purpose)? {
            return Ok(key);
        }
        let row = DataKey {
            tenant_id: tenant.to_owned(),
            purpose: purpose.word().to_owned(),
            master_key_id: self.id.clone(),
            sealed: self.wrap(&data_key_place(tenant, purpose), Key::generate()?.0.as_ref())?,
            created_us: now_us,
        };
        secret::insert_data_key(tx, &row)?;
        // Read back: another scheduler may have been first, and its key is the one.
        self.find_data_key(tx, tenant, purpose)?
            .ok_or(Error::Store(store::Error::Absent { what: "data key" }))
    }

    pub(super) fn find_data_key(
        &self,
        tx: &mut Tx<'_>,
        tenant: &str,
        purpose: Purpose,
    ) -> Result<Option<Key>, Error> {
        let Some(row) = secret::find_data_key(tx, tenant, purpose.word())? else { return Ok(None) };
        let opened =
            self.unwrap("a data key", &row.master_key_id, &data_key_place(tenant, purpose), &row.sealed)?;
        let bytes: [u8; KEY_BYTES] =
            opened.expose().try_into().map_err(|_| Error::Crypto { what: "a data key" })?;
        Ok(Some(Key(Zeroizing::new(bytes))))
    }
}

/// What a value is sealed to besides its key: where it belongs.
fn associated(place: &[u8]) -> Aad<&[u8]> {
    Aad::from(if Defence::SealedPlace.is_off() { &[][..] } else { place })
}

fn data_key_place(tenant: &str, purpose: Purpose) -> Vec<u8> {
    place(&["data key", tenant, purpose.word()])
}

/// Additional data that names a place: each part with its length, so that no two lists of parts are alike.
pub(super) fn place(parts: &[&str]) -> Vec<u8> {
    let mut bytes = b"roost v1".to_vec();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_bytes_open_only_in_their_place_and_under_their_key() {
        let (key, other) = (Key::generate().unwrap(), Key::generate().unwrap());
        let sealed = key.seal(&place(&["a", "b"]), b"sk-live").unwrap();
        assert_eq!(key.open(&place(&["a", "b"]), &sealed).unwrap().expose(), b"sk-live");
        assert!(key.open(&place(&["ab", ""]), &sealed).is_err());
        assert!(other.open(&place(&["a", "b"]), &sealed).is_err());
        assert!(key.open(&place(&["a", "b"]), &sealed[..NONCE_LEN - 1]).is_err());
        let mut bent = sealed.clone();
        bent[NONCE_LEN] ^= 1;
        assert!(key.open(&place(&["a", "b"]), &bent).is_err());
        assert_ne!(sealed, key.seal(&place(&["a", "b"]), b"sk-live").unwrap(), "a nonce is used once");
        assert!(!sealed.windows(7).any(|window| window == b"sk-live"));
    }

    #[test]
    fn the_master_key_file_is_made_once_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master.key");
        let first = MasterKey::ensure(&path).unwrap();
        assert_eq!(first.id(), MasterKey::ensure(&path).unwrap().id());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "short").unwrap();
        assert!(matches!(MasterKey::ensure(&path), Err(Error::MasterKeyForm { .. })));
    }
}
