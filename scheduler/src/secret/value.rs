//! A secret value in memory: wiped when dropped, never shown.

use zeroize::Zeroizing;

/// Bytes that must not be printed, logged or serialised. There is deliberately no Display, Serialize or PartialEq.
#[derive(Clone)]
pub struct Plaintext(Zeroizing<Vec<u8>>);

impl Plaintext {
    pub fn new(bytes: Vec<u8>) -> Plaintext {
        Plaintext(Zeroizing::new(bytes))
    }

    pub(super) fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Compares in constant time.
    pub(super) fn is_same(&self, other: &Plaintext) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl std::fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[hidden]")
    }
}

impl From<&str> for Plaintext {
    fn from(text: &str) -> Plaintext {
        Plaintext::new(text.as_bytes().to_vec())
    }
}
