//! B1 to B9 on the scrubber itself.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;

use super::*;

const SECRET: &str = "sk-live_SENTINEL/c0ffee+42";
const PLACEHOLDER: &str = "[placeholder]";

fn scrub(value: &str) -> Arc<Scrub> {
    Arc::new(Scrub::new(value.as_bytes(), PLACEHOLDER))
}

/// The text in pieces of `sizes`, through a scrubber; also how much had come out after each piece.
fn stream(value: &str, text: &[u8], sizes: &[usize]) -> (Vec<u8>, Vec<usize>) {
    let mut scrubber = Scrubber::new(&[scrub(value)]);
    let (mut clean, mut emitted, mut rest) = (Vec::new(), Vec::new(), text);
    for size in sizes.iter().cycle().map(|size| (*size).max(1)) {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at(size.min(rest.len()));
        clean.extend_from_slice(&scrubber.push(piece));
        emitted.push(clean.len());
        rest = after;
    }
    clean.extend_from_slice(&scrubber.finish());
    (clean, emitted)
}

#[test]
fn b2_every_usual_encoding_is_found() {
    let percent: String = SECRET.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let unicode: String = SECRET.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
    let hex: String = SECRET.bytes().map(|byte| format!("{byte:02x}")).collect();
    for echo in [
        SECRET.to_owned(),
        SECRET.replace('/', "\\/"),
        SECRET.replace('/', "%2F").replace('+', "%2B"),
        SECRET.replace('/', "%2f").replace('+', "%2b"),
        percent,
        unicode,
        hex.to_uppercase(),
        hex,
    ] {
        let text = format!("{{\"echo\":\"{echo}\"}}");
        let (clean, _) = stream(SECRET, text.as_bytes(), &[7]);
        assert_eq!(String::from_utf8(clean).unwrap(), format!("{{\"echo\":\"{PLACEHOLDER}\"}}"), "{echo}");
    }
}

#[test]
fn b2_base64_is_found_at_every_alignment_and_with_neighbours() {
    for before in ["", "u", "us", "use", "user:"] {
        for after in ["", ":", ":x", ":xy"] {
            let plain = format!("{before}{SECRET}{after}");
            for encoded in [STANDARD.encode(&plain), URL_SAFE_NO_PAD.encode(&plain)] {
                let (clean, _) = stream(SECRET, encoded.as_bytes(), &[1]);
                let clean = String::from_utf8(clean).unwrap();
                assert!(clean.contains(PLACEHOLDER), "{plain}: {clean}");
                // At most a group at either end is left: those hold neighbouring bytes as well.
                assert!(
                    clean.len() < PLACEHOLDER.len() + (before.len() + after.len()) * 2 + 8,
                    "{plain}: {clean}"
                );
            }
        }
    }
}

#[test]
fn b8_events_are_not_held_back() {
    let event = b"data: {\"delta\":\"Hello, world\"}\n\n";
    let (_, emitted) = stream(SECRET, &event.repeat(3), &[event.len()]);
    assert_eq!(emitted, [event.len(), 2 * event.len(), 3 * event.len()]);
}

#[test]
fn short_values_are_left_alone() {
    let (clean, _) = stream("abc", b"abc abc", &[2]);
    assert_eq!(clean, b"abc abc");
}

#[test]
fn two_values_of_one_request_are_both_taken_out() {
    let other = "ghp_another_SENTINEL_value";
    let mut scrubber = Scrubber::new(&[scrub(SECRET), scrub(other)]);
    let mut clean = scrubber.push(format!("{SECRET} {other}.").as_bytes()).to_vec();
    clean.extend_from_slice(&scrubber.finish());
    assert_eq!(String::from_utf8(clean).unwrap(), format!("{PLACEHOLDER} {PLACEHOLDER}."));
    assert_eq!(scrubber.replaced(), 2);
}

proptest! {
    /// B4: however a body is cut, what comes out is what would come out of the whole.
    #[test]
    fn b4_cuts_make_no_difference(
        parts in prop::collection::vec("[a-zA-Z0-9 \n\"/.+-]{0,30}", 1..8),
        sizes in prop::collection::vec(1usize..40, 1..6),
        spaced: bool,
    ) {
        let value = if spaced { "sk live SENTINEL \"c0ffee\"" } else { SECRET };
        let text = parts.join(value);
        let whole = scrub(value).replace_all(text.as_bytes()).unwrap_or_else(|| text.clone().into_bytes());
        let (clean, _) = stream(value, text.as_bytes(), &sizes);
        prop_assert_eq!(&clean, &whole);
        prop_assert!(memmem::find(&clean, value.as_bytes()).is_none());
    }

    /// B8: what is held does not depend on the value, so no delay tells a right guess from a wrong one.
    #[test]
    fn b8_what_is_held_does_not_depend_on_the_value(
        guess in 1usize..26, noise in "[a-zA-Z0-9 \n\"/.+-]{0,200}", sizes in prop::collection::vec(1usize..9, 1..4),
    ) {
        // A correct prefix of one value, and of no other of the same class.
        let text = format!("{noise}{}", &SECRET[..guess.min(SECRET.len() - 1)]);
        let right = stream(SECRET, text.as_bytes(), &sizes).1;
        let wrong = stream("ghp_quite_another_value_0000", text.as_bytes(), &sizes).1;
        prop_assert_eq!(right, wrong);
    }
}
