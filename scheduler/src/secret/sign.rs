//! Keys that sign browser tokens: Ed25519, changed every week, their private halves sealed under the master key.
//!
//! Hosts get the public halves only, so no host can mint. A key verifies a day longer than it signs: as long as the
//! last token it signed may live.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ED25519};
use serde::Serialize;

use super::key::place;
use super::{Error, Vault};
use crate::store::secret::{self, SigningKey};

const DAY_US: i64 = 86_400_000_000;
const SIGNS_US: i64 = 7 * DAY_US;
/// The longest life of a token, and an hour for clocks.
const OUTLIVES_US: i64 = DAY_US + 3_600_000_000;

/// A key that may sign now.
pub struct Key {
    pub kid: String,
    encoding: EncodingKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl Key {
    /// The JWT of some claims.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, Error> {
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, claims, &self.encoding).map_err(|_| Error::Crypto { what: "a token" })
    }
}

/// What verifies: 32 bytes of Ed25519.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    pub kid: String,
    pub bytes: Vec<u8>,
    pub not_after_us: i64,
}

impl Vault {
    /// The newest key that signs, made if there is none or the present one is at its end.
    pub async fn signing_key(&self) -> Result<Key, Error> {
        let now_us = self.now_us();
        let found = self.shared.store.read(move |tx| secret::list_signing_keys(tx, now_us)).await?;
        let row = match found.into_iter().find(|key| key.signs_until_us > now_us) {
            Some(row) => row,
            None => self.rotate(now_us).await?,
        };
        let place = place(&["signing key", &row.kid]);
        let opened = self.shared.master.unwrap("a signing key", &row.master_key_id, &place, &row.sealed)?;
        Ok(Key { encoding: EncodingKey::from_ed_der(opened.expose()), kid: row.kid })
    }

    async fn rotate(&self, now_us: i64) -> Result<SigningKey, Error> {
        let vault = self.clone();
        let made = self.shared.store.decide(move |tx| {
            // Another call may have been first.
            let present = secret::list_signing_keys(tx, now_us)?;
            if let Some(row) = present.into_iter().find(|key| key.signs_until_us > now_us) {
                return Ok(row);
            }
            let pair =
                KeyPair::generate_for(&PKCS_ED25519).map_err(|_| Error::Crypto { what: "a signing key" })?;
            let kid = hex::encode(&pair.public_key_raw()[..8]);
            let private = zeroize::Zeroizing::new(pair.serialize_der());
            let row = SigningKey {
                sealed: vault.shared.master.wrap(&place(&["signing key", &kid]), &private)?,
                master_key_id: vault.shared.master.id().to_owned(),
                public_key: pair.public_key_raw().to_vec(),
                kid,
                created_us: now_us,
                signs_until_us: now_us + SIGNS_US,
                not_after_us: now_us + SIGNS_US + OUTLIVES_US,
            };
            secret::insert_signing_key(tx, &row)?;
            Ok::<_, Error>(row)
        });
        made.await
    }

    /// Every key a live token may have been signed with; makes one if there is none yet.
    pub async fn public_keys(&self) -> Result<Vec<PublicKey>, Error> {
        self.signing_key().await?;
        let now_us = self.now_us();
        let rows = self.shared.store.read(move |tx| secret::list_signing_keys(tx, now_us)).await?;
        let public = |row: SigningKey| PublicKey {
            kid: row.kid,
            bytes: row.public_key,
            not_after_us: row.not_after_us,
        };
        Ok(rows.into_iter().map(public).collect())
    }
}
