//! Whether a token was signed by the fleet: verified once, remembered by its digest, judged on every request.
//!
//! Owns the public keys, which the scheduler pushes. The algorithm is pinned and a header may say nothing but
//! `alg`, `kid` and `typ`: no token chooses how it is verified. Cannot mint.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use lru::LruCache;
use roost_domain::sabotage::Defence;
use roost_domain::token::{self, Claims};
use roost_proto::host::PublicKeys;
use serde::Deserialize;
use sha2::{Digest, Sha256};

// Verified tokens remembered; a token is 300 bytes or so.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");
const ED25519_BYTES: usize = 32;

/// Why a text is no token of this fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("not the form of a token")]
    Form,
    #[error("no key with this id")]
    Key,
    #[error("the signature is not valid")]
    Signature,
}

/// The keys of the fleet as last pushed.
#[derive(Default)]
struct Keys {
    issuer: String,
    by_id: HashMap<String, (DecodingKey, i64)>,
}

/// Verifies tokens. Knows no key until the scheduler has pushed some.
pub struct Verifier {
    brand: String,
    keys: ArcSwap<Keys>,
    remembered: Mutex<LruCache<[u8; 32], Arc<Remembered>>>,
}

struct Remembered {
    claims: Claims,
    key_not_after_us: i64,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Verifier").field("keys", &self.keys.load().by_id.len()).finish_non_exhaustive()
    }
}

/// The protected header of a JWT: the closed set of what it may say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    kid: String,
    #[allow(dead_code, reason = "allowed, and says nothing that is not in the claims")]
    typ: Option<String>,
}

impl Verifier {
    pub fn new(brand: &str) -> Self {
        Self {
            brand: brand.to_owned(),
            keys: ArcSwap::from_pointee(Keys::default()),
            remembered: Mutex::new(LruCache::new(REMEMBERED_MAX)),
        }
    }

    /// Replaces the keys; what was verified with the old ones is forgotten.
    pub fn set_keys(&self, pushed: PublicKeys) {
        let mut by_id = HashMap::new();
        for key in pushed.keys {
            if key.public_key.len() != ED25519_BYTES {
                tracing::warn!(key_id = key.key_id, "skipped a token key that is not Ed25519");
                continue;
            }
            let text = URL_SAFE_NO_PAD.encode(&key.public_key);
            if let Ok(decoding) = DecodingKey::from_ed_components(&text) {
                by_id.insert(key.key_id, (decoding, key.not_after_us));
            }
        }
        self.keys.store(Arc::new(Keys { issuer: pushed.issuer, by_id }));
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether any token could be verified.
    pub fn has_keys(&self) -> bool {
        !self.keys.load().by_id.is_empty()
    }

    /// Who tokens must be from.
    pub fn issuer(&self) -> String {
        self.keys.load().issuer.clone()
    }

    /// The claims of a token with a valid signature. Nothing else about them has been judged.
    pub fn verify(&self, text: &str, now_us: i64) -> Result<Claims, Error> {
        let parts = token::split(text, &self.brand).ok_or(Error::Form)?;
        let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned();
        if let Some(known) = remembered {
            return if now_us < known.key_not_after_us { Ok(known.claims.clone()) } else { Err(Error::Key) };
        }
        let keys = self.keys.load();
        let header = parts.jwt.split('.').next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let header: Header = header.and_then(|json| serde_json::from_slice(&json).ok()).ok_or(Error::Form)?;
        if header.alg != "EdDSA" {
            return Err(Error::Signature);
        }
        let (key, key_not_after_us) = keys.by_id.get(&header.kid).ok_or(Error::Key)?;
        if now_us >= *key_not_after_us {
            return Err(Error::Key);
        }
        let mut validation = Validation::new(Algorithm::EdDSA);
        // Times, issuer and audience are judged by the claims' own check, on every request.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        let decoded = match Defence::TokenSignature.is_off() {
            true => jsonwebtoken::dangerous::insecure_decode::<Claims>(parts.jwt),
            false => jsonwebtoken::decode::<Claims>(parts.jwt, key, &validation),
        };
        let claims = decoded.map_err(|_| Error::Signature)?.claims;
        let known = Arc::new(Remembered { claims: claims.clone(), key_not_after_us: *key_not_after_us });
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).put(digest, known);
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header as JwtHeader};
    use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData};
    use roost_domain::token::{Kind, Scope};
    use roost_proto::host::PublicKey;

    use super::*;

    const TID: &str = "Ab3dEf7h1J";
    const NOW_US: i64 = 1_800_000_000_000_000;

    struct Signer(KeyPair);

    impl Signer {
        fn new() -> Self {
            Self(KeyPair::generate_for(&PKCS_ED25519).unwrap())
        }

        fn keys(&self) -> PublicKeys {
            let key = PublicKey {
                key_id: "k1".into(),
                public_key: self.0.der_bytes().to_vec().into(),
                not_after_us: NOW_US + 1_000_000,
            };
            PublicKeys { keys: vec![key], issuer: "roost".into(), token_prefix: "miosa".into() }
        }

        fn sign(&self, header: &JwtHeader) -> String {
            let key = EncodingKey::from_ed_der(&self.0.serialize_der());
            let jwt = jsonwebtoken::encode(header, &claims(), &key).unwrap();
            token::compose(Kind::Preview, "miosa", TID, &jwt)
        }

        fn header() -> JwtHeader {
            let mut header = JwtHeader::new(Algorithm::EdDSA);
            header.kid = Some("k1".into());
            header
        }
    }

    fn claims() -> Claims {
        Claims {
            iss: "roost".into(),
            aud: "preview".into(),
            tid: TID.into(),
            tenant: "ten_1".into(),
            rid: "preview_A".into(),
            typ: Kind::Preview,
            sid: "sbx_1".into(),
            scopes: vec![Scope::PreviewRead],
            generation: 1,
            iat: 1_800_000_000,
            nbf: 1_800_000_000,
            exp: 1_800_003_600,
        }
    }

    fn verifier(signer: &Signer) -> Verifier {
        let verifier = Verifier::new("miosa");
        verifier.set_keys(signer.keys());
        verifier
    }

    #[test]
    fn a_token_is_verified_once_and_forgotten_with_its_key() {
        let signer = Signer::new();
        let verifier = verifier(&signer);
        let token = signer.sign(&Signer::header());
        assert_eq!(verifier.verify(&token, NOW_US).unwrap(), claims());
        assert_eq!(verifier.remembered.lock().unwrap().len(), 1);
        assert_eq!(verifier.verify(&token, NOW_US).unwrap(), claims());
        assert_eq!(verifier.verify(&token, NOW_US + 1_000_000), Err(Error::Key), "the key's time is over");
        verifier.set_keys(Signer::new().keys());
        assert_eq!(verifier.verify(&token, NOW_US), Err(Error::Signature));
    }

    #[test]
    fn a_changed_character_breaks_it() {
        let signer = Signer::new();
        let verifier = verifier(&signer);
        let token = signer.sign(&Signer::header());
        let last_dot = token.rfind('.').unwrap();
        for at in [last_dot - 3, last_dot + 3] {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(verifier.verify(&changed, NOW_US).is_err(), "{at}");
        }
    }

    #[test]
    fn g2_no_token_chooses_how_it_is_verified() {
        let signer = Signer::new();
        let verifier = verifier(&signer);
        let good = signer.sign(&Signer::header());
        let jwt = good.split_once('.').unwrap().1;
        let [_, payload, signature] = jwt.split('.').collect::<Vec<_>>()[..] else { panic!() };
        let with = |header: &str, signature: &str| {
            let jwt = format!("{}.{payload}.{signature}", URL_SAFE_NO_PAD.encode(header));
            verifier.verify(&token::compose(Kind::Preview, "miosa", TID, &jwt), NOW_US)
        };
        let secret = EncodingKey::from_secret(signer.0.der_bytes());
        let mut hmac = JwtHeader::new(Algorithm::HS256);
        hmac.kid = Some("k1".into());
        let confused = jsonwebtoken::encode(&hmac, &claims(), &secret).unwrap();
        let confused = token::compose(Kind::Preview, "miosa", TID, &confused);
        assert_eq!(verifier.verify(&confused, NOW_US), Err(Error::Signature), "HS256 with the public key");
        assert_eq!(with(r#"{"alg":"none","kid":"k1"}"#, "AA"), Err(Error::Signature));
        for header in [
            r#"{"alg":"EdDSA","kid":"../../etc/passwd"}"#,
            r#"{"alg":"EdDSA","kid":"k1' OR 1=1"}"#,
            r#"{"alg":"EdDSA","kid":""}"#,
        ] {
            assert_eq!(with(header, signature), Err(Error::Key), "{header}");
        }
        for header in [
            r#"{"alg":"EdDSA"}"#,
            r#"{"alg":"EdDSA","kid":"k1","jku":"https://evil.example"}"#,
            r#"{"alg":"EdDSA","kid":"k1","jwk":{}}"#,
            r#"{"alg":"EdDSA","kid":"k1","x5u":"x"}"#,
            r#"{"alg":"EdDSA","kid":"k1","crit":["b64"]}"#,
            "{",
        ] {
            assert_eq!(with(header, signature), Err(Error::Form), "{header}");
        }
        for text in ["", "miosa_pv_", &good[9..], &good.replace("miosa", "acme")] {
            assert_eq!(verifier.verify(text, NOW_US), Err(Error::Form), "{text}");
        }
    }
}
