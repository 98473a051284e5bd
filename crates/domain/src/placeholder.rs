//! Placeholders: what a guest holds instead of a secret.
//!
//! `prefix ‖ marker ‖ body`: the prefix is what real keys of that kind begin with, the marker is fixed and tells
//! placeholders from everything else, the body is a 32-byte HMAC in 43 letters and digits. The scheduler computes
//! the HMAC (over lineage and logical key, under a key of the tenant); here it is only written and recognised.

use std::ops::Range;

use crate::presets;

/// Characters of a body: 43 digits of base 62 hold 256 bits.
pub const BODY_BYTES: usize = 43;
/// Longest prefix a placeholder may have.
pub const PREFIX_BYTES_MAX: usize = 32;
/// Shortest and longest marker.
const MARKER_BYTES: std::ops::RangeInclusive<usize> = 4..=12;
/// Longest placeholder.
pub const PLACEHOLDER_BYTES_MAX: usize = PREFIX_BYTES_MAX + *MARKER_BYTES.end() + BODY_BYTES;
/// The marker unless the installation's brand says otherwise.
pub const DEFAULT_MARKER: &str = "MIOSA";

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a placeholder marker has 4 to 12 letters and digits")]
    Marker,
    #[error(
        "a placeholder prefix has at most {PREFIX_BYTES_MAX} letters, digits, hyphens, underscores and dots"
    )]
    Prefix,
}

/// How placeholders of this installation are written and recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    marker: String,
    /// Prefix for names outside the catalogue.
    generic_prefix: String,
}

impl Default for Format {
    fn default() -> Self {
        Self { marker: DEFAULT_MARKER.to_owned(), generic_prefix: presets::GENERIC_PREFIX.to_owned() }
    }
}

/// A placeholder found in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it stands, prefix included if the prefix is known.
    pub range: Range<usize>,
    /// The 43 characters that identify it.
    pub body: Range<usize>,
}

impl Format {
    pub fn new(marker: &str, generic_prefix: &str) -> Result<Self, Error> {
        if !MARKER_BYTES.contains(&marker.len()) || !marker.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Error::Marker);
        }
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if generic_prefix.len() > PREFIX_BYTES_MAX || !generic_prefix.bytes().all(is_allowed) {
            return Err(Error::Prefix);
        }
        Ok(Self { marker: marker.to_owned(), generic_prefix: generic_prefix.to_owned() })
    }

    /// The placeholder of a logical key; `digest` is the HMAC over (lineage, logical key).
    pub fn compose(&self, logical_key: &str, digest: &[u8; 32]) -> String {
        let prefix = match presets::find(logical_key) {
            Some(preset) if !preset.placeholder_prefix.is_empty() => preset.placeholder_prefix,
            _ => &self.generic_prefix,
        };
        format!("{prefix}{}{}", self.marker, body_text(digest))
    }

    /// The body of a text that is a whole placeholder.
    pub fn body_of<'a>(&self, text: &'a str) -> Option<&'a str> {
        match self.find_in(text.as_bytes()).next() {
            Some(found) if found.range == (0..text.len()) => text.get(found.body),
            _ => None,
        }
    }

    /// Every placeholder in a text, from its start; they do not overlap.
    pub fn find_in<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = Found> + 'a {
        let mut from = 0;
        std::iter::from_fn(move || {
            let found = self.find_from(text, from)?;
            from = found.range.end;
            Some(found)
        })
    }

    fn find_from(&self, text: &[u8], from: usize) -> Option<Found> {
        let marker = self.marker.as_bytes();
        let length = marker.len() + BODY_BYTES;
        let mut start = from;
        while start + length <= text.len() {
            let rest = &text[start..];
            // The marker's first byte is rare enough that this is a plain scan.
            let offset = rest.windows(marker.len()).position(|window| window == marker)?;
            let at = start + offset;
            let body = at + marker.len()..at + length;
            if text.get(body.clone()).is_some_and(|body| body.iter().all(u8::is_ascii_alphanumeric)) {
                let prefix = self.prefix_length(&text[from..at]);
                return Some(Found { range: at - prefix..at + length, body });
            }
            start = at + 1;
        }
        None
    }

    /// Length of the longest known prefix that ends where the marker begins.
    fn prefix_length(&self, before: &[u8]) -> usize {
        let known = presets::CATALOGUE.iter().map(|preset| preset.placeholder_prefix);
        known
            .chain([self.generic_prefix.as_str()])
            .filter(|prefix| before.ends_with(prefix.as_bytes()))
            .map(str::len)
            .max()
            .unwrap_or(0)
    }
}

/// The digest as a number in base 62, most significant digit first.
fn body_text(digest: &[u8; 32]) -> String {
    let mut number = *digest;
    let mut text = [0u8; BODY_BYTES];
    for digit in text.iter_mut().rev() {
        let mut remainder = 0u16;
        for byte in &mut number {
            let value = remainder << 8 | u16::from(*byte);
            *byte = (value / 62) as u8;
            remainder = value % 62;
        }
        *digit = ALPHABET[usize::from(remainder)];
    }
    text.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn ranges(text: &str) -> Vec<&str> {
        Format::default().find_in(text.as_bytes()).map(|found| &text[found.range]).collect()
    }

    #[test]
    fn forms() {
        let format = Format::default();
        assert_eq!(format.compose("OPENAI_API_KEY", &[0; 32]), format!("sk-proj-MIOSA{}", "0".repeat(43)));
        assert_eq!(format.compose("EHR_API_KEY", &[0xff; 32]).len(), 10 + 5 + 43);
        assert!(Format::new("abc", "x-").is_err() && Format::new("a b c", "x-").is_err());
        assert!(Format::new("ACME1", "acme tok").is_err());
        let branded = Format::new("ACME1", "acme-").unwrap();
        assert!(branded.compose("EHR_API_KEY", &[1; 32]).starts_with("acme-ACME1"));
    }

    #[test]
    fn found_wherever_they_stand() {
        let format = Format::default();
        let openai = format.compose("OPENAI_API_KEY", &[1; 32]);
        let ehr = format.compose("EHR_API_KEY", &[2; 32]);
        assert_eq!(ranges(&format!("Bearer {openai}")), [openai.as_str()]);
        assert_eq!(ranges(&format!("user:{ehr}\n{openai}{ehr}")), [ehr.as_str(), &openai, &ehr]);
        // An unknown prefix is left out; the placeholder is recognised all the same.
        assert_eq!(ranges(&format!("zz{}", &openai["sk-proj-".len()..])), [&openai["sk-proj-".len()..]]);
        assert_eq!(ranges("MIOSA is a name, MIOSAMIOSA too"), Vec::<&str>::new());
        assert_eq!(ranges(&openai[..openai.len() - 1]), Vec::<&str>::new());
        assert_eq!(format.body_of(&openai), Some(&openai[13..]));
        assert_eq!(format.body_of(&format!("{openai}x")), None);
        assert_eq!(format.body_of(&format!(" {openai}")), None);
    }

    #[test]
    fn a_false_marker_does_not_hide_a_true_one() {
        let openai = Format::default().compose("OPENAI_API_KEY", &[9; 32]);
        let text = format!("MIOSA-{}{openai}", "MIOSA!".repeat(20));
        assert_eq!(ranges(&text), [openai.as_str()]);
    }

    proptest! {
        #[test]
        fn different_digests_have_different_bodies(one: [u8; 32], other: [u8; 32]) {
            prop_assert_eq!(one == other, body_text(&one) == body_text(&other));
            prop_assert_eq!(body_text(&one).len(), BODY_BYTES);
        }

        #[test]
        fn every_composed_one_is_found_in_any_noise(digest: [u8; 32], before in "[^0-9A-Za-z._-]{0,20}", after in "[^0-9A-Za-z]{0,20}", name in "[A-Z_]{1,12}") {
            let format = Format::default();
            let placeholder = format.compose(&name, &digest);
            let text = format!("{before}{placeholder}{after}");
            let found: Vec<_> = format.find_in(text.as_bytes()).collect();
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(&text[found[0].range.clone()], placeholder.as_str());
            prop_assert_eq!(format.body_of(&placeholder), Some(&text[found[0].body.clone()]));
        }

        #[test]
        fn never_panics(bytes in vec(any::<u8>(), 0..200)) {
            Format::default().find_in(&bytes).for_each(drop);
        }
    }
}
