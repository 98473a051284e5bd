//! The encodings in which servers send back what they were sent.

use base64::Engine;
use base64::alphabet;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

type Pattern = Zeroizing<Vec<u8>>;

/// Every form of a value that is searched for, each once.
pub(super) fn patterns(value: &[u8]) -> Vec<Pattern> {
    let mut patterns = vec![Zeroizing::new(value.to_vec())];
    patterns.extend([false, true].map(|slash| json_escaped(value, slash)));
    for digits in [b"0123456789abcdef", b"0123456789ABCDEF"] {
        patterns.push(escaped(value, b"", digits));
        patterns.push(escaped(value, b"%", digits));
        patterns.push(escaped(value, b"\\u00", digits));
        patterns.push(percent_escaped(value, digits, false));
        patterns.push(percent_escaped(value, digits, true));
    }
    for alphabet in [&alphabet::STANDARD, &alphabet::URL_SAFE] {
        let engine = GeneralPurpose::new(alphabet, GeneralPurposeConfig::new().with_encode_padding(false));
        patterns.extend((0..3).map(|offset| base64_inside(&engine, value, offset)));
    }
    patterns.sort_unstable_by(|one, other| one.as_slice().cmp(other));
    patterns.dedup_by(|one, other| one.as_slice() == other.as_slice());
    patterns
}

/// Each byte as two digits behind a prefix.
fn escaped(value: &[u8], prefix: &[u8], digits: &[u8; 16]) -> Pattern {
    let mut escaped = Zeroizing::new(Vec::with_capacity(value.len() * (prefix.len() + 2)));
    for byte in value {
        push_escaped(&mut escaped, *byte, prefix, digits);
    }
    escaped
}

fn push_escaped(escaped: &mut Vec<u8>, byte: u8, prefix: &[u8], digits: &[u8; 16]) {
    escaped.extend_from_slice(prefix);
    escaped.extend([digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]);
}

/// As in a URL: what is unreserved stands as it is; in a form a space is a plus.
fn percent_escaped(value: &[u8], digits: &[u8; 16], form: bool) -> Pattern {
    let mut escaped = Zeroizing::new(Vec::with_capacity(value.len() * 3));
    for byte in value {
        match byte {
            b' ' if form => escaped.push(b'+'),
            byte if byte.is_ascii_alphanumeric() || b"-_.~".contains(byte) => escaped.push(*byte),
            byte => push_escaped(&mut escaped, *byte, b"%", digits),
        }
    }
    escaped
}

fn json_escaped(value: &[u8], slash: bool) -> Pattern {
    let mut escaped = Zeroizing::new(Vec::with_capacity(value.len() * 2));
    for byte in value {
        if matches!(byte, b'"' | b'\\') || (slash && *byte == b'/') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

/// The characters of a base64 text that depend on the value alone, when it begins `offset` bytes into a
/// group.
fn base64_inside(engine: &GeneralPurpose, value: &[u8], offset: usize) -> Pattern {
    let mut plain = Zeroizing::new(vec![0; offset]);
    plain.extend_from_slice(value);
    let encoded = Zeroizing::new(engine.encode(&*plain));
    let begin = (offset * 8).div_ceil(6);
    let end = plain.len() * 8 / 6;
    Zeroizing::new(encoded.as_bytes()[begin..end].to_vec())
}
