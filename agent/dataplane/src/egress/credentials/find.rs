//! Where placeholders stand in a request: pure, and the only code that knows what an allowed place looks
//! like.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HeaderName};
use http::request::Parts;
use roost_domain::placeholder::Format;
use zeroize::Zeroizing;

/// Headers that carry a key and nothing else.
const KEY_HEADERS: [&str; 4] = ["x-api-key", "api-key", "x-goog-api-key", "private-token"];
/// Headers no secret may name as a slot: servers echo them, proxies log them.
const NEVER_SLOTS: [&str; 7] =
    ["host", "user-agent", "referer", "origin", "via", "forwarded", "x-request-id"];
const NEVER_SLOT_PREFIXES: [&str; 4] = ["x-forwarded-", "accept", "sec-", "content-"];

/// One placeholder and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Occurrence {
    pub(crate) placeholder: String,
    pub(crate) location: Location,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// The `index`-th value of a header.
    Header {
        name: HeaderName,
        index: usize,
        form: Form,
    },
    Path,
    Query,
}

/// What of a header's value the placeholder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// All of it.
    Whole,
    /// What follows `Bearer` or `token` in Authorization.
    Bearer,
    BasicUser,
    BasicPassword,
    /// Anything else that can be read as it stands.
    Part,
    /// Only seen after decoding; never replaced.
    Encoded,
}

impl Location {
    /// As the audit row names it.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Header { name, .. } => name.as_str(),
            Self::Path => "path",
            Self::Query => "query",
        }
    }

    /// Whether a value may be put here: the default slots, and headers the secret itself names.
    pub(crate) fn allows_value(&self, slots: &[HeaderName]) -> bool {
        let Self::Header { name, form, .. } = self else { return false };
        match form {
            Form::Bearer | Form::BasicUser | Form::BasicPassword => true,
            Form::Whole if name == AUTHORIZATION || KEY_HEADERS.contains(&name.as_str()) => true,
            Form::Whole | Form::Part => slots.contains(name) && may_be_slot(name),
            Form::Encoded => false,
        }
    }
}

fn may_be_slot(name: &HeaderName) -> bool {
    let name = name.as_str();
    !NEVER_SLOTS.contains(&name) && !NEVER_SLOT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Every placeholder in the head of a request, in order.
pub(crate) fn find(format: &Format, parts: &Parts) -> Vec<Occurrence> {
    let mut found = Vec::new();
    for name in parts.headers.keys() {
        for (index, value) in parts.headers.get_all(name).iter().enumerate() {
            find_in_header(format, name, index, value.as_bytes(), &mut found);
        }
    }
    find_in_text(format, parts.uri.path().as_bytes(), &mut found, |_| Location::Path);
    if let Some(query) = parts.uri.query() {
        find_in_text(format, query.as_bytes(), &mut found, |_| Location::Query);
    }
    found
}

fn find_in_header(
    format: &Format,
    name: &HeaderName,
    index: usize,
    value: &[u8],
    found: &mut Vec<Occurrence>,
) {
    let location = |form| Location::Header { name: name.clone(), index, form };
    if name == AUTHORIZATION
        && let Some((scheme, rest)) = split_scheme(value)
    {
        if scheme.eq_ignore_ascii_case(b"basic") {
            return find_in_basic(format, rest, found, location);
        }
        let is_bearer = scheme.eq_ignore_ascii_case(b"bearer") || scheme.eq_ignore_ascii_case(b"token");
        if is_bearer && let Some(placeholder) = whole(format, rest) {
            found.push(Occurrence { placeholder, location: location(Form::Bearer) });
            return;
        }
    }
    if let Some(placeholder) = whole(format, value) {
        found.push(Occurrence { placeholder, location: location(Form::Whole) });
        return;
    }
    find_in_text(format, value, found, location);
}

fn find_in_basic(
    format: &Format,
    text: &[u8],
    found: &mut Vec<Occurrence>,
    location: impl Fn(Form) -> Location,
) {
    let Some((user, password)) = decode_basic(text) else {
        return find_in_text(format, text, found, location);
    };
    for (part, form) in [(&user, Form::BasicUser), (&password, Form::BasicPassword)] {
        if let Some(placeholder) = whole(format, part) {
            found.push(Occurrence { placeholder, location: location(form) });
        } else {
            find_in_text(format, part, found, |_| location(Form::Encoded));
        }
    }
}

/// Placeholders as they stand, and those that appear only once percent escapes are decoded.
fn find_in_text(
    format: &Format,
    text: &[u8],
    found: &mut Vec<Occurrence>,
    location: impl Fn(Form) -> Location,
) {
    let before = found.len();
    for at in format.find_in(text) {
        let placeholder = String::from_utf8_lossy(&text[at.range]).into_owned();
        found.push(Occurrence { placeholder, location: location(Form::Part) });
    }
    if found.len() == before && text.contains(&b'%') {
        let decoded = percent_decode(text);
        for at in format.find_in(&decoded) {
            let placeholder = String::from_utf8_lossy(&decoded[at.range]).into_owned();
            found.push(Occurrence { placeholder, location: location(Form::Encoded) });
        }
    }
}

fn whole(format: &Format, text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    format.body_of(text).map(|_| text.to_owned())
}

/// `Bearer x` as (`Bearer`, `x`).
fn split_scheme(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = value.iter().position(|byte| *byte == b' ')?;
    Some((&value[..space], value[space..].trim_ascii()))
}

type Wiped = Zeroizing<Vec<u8>>;

fn decode_basic(text: &[u8]) -> Option<(Wiped, Wiped)> {
    let decoded = Zeroizing::new(STANDARD.decode(text).ok()?);
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some((Zeroizing::new(decoded[..colon].to_vec()), Zeroizing::new(decoded[colon + 1..].to_vec())))
}

fn percent_decode(text: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(text.len());
    let mut index = 0;
    while index < text.len() {
        match (text[index], digit(text.get(index + 1)), digit(text.get(index + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                index += 3;
            }
            (byte, ..) => {
                decoded.push(byte);
                index += 1;
            }
        }
    }
    decoded
}

/// A header's value with the placeholder replaced; none if it no longer stands there.
pub(crate) fn rewrite(value: &[u8], form: Form, placeholder: &str, secret: &[u8]) -> Option<Wiped> {
    let joined = |parts: &[&[u8]]| Some(Zeroizing::new(parts.concat()));
    match form {
        Form::Whole => (value == placeholder.as_bytes()).then(|| Zeroizing::new(secret.to_vec())),
        Form::Bearer => {
            let (scheme, rest) = split_scheme(value)?;
            (rest == placeholder.as_bytes()).then(|| joined(&[scheme, b" ", secret]))?
        }
        Form::BasicUser | Form::BasicPassword => {
            let (scheme, rest) = split_scheme(value)?;
            let (user, password) = decode_basic(rest)?;
            let (user, password): (&[u8], &[u8]) =
                if form == Form::BasicUser { (secret, &password) } else { (&user, secret) };
            let plain = joined(&[user, b":", password])?;
            let encoded = Zeroizing::new(STANDARD.encode(&*plain));
            joined(&[scheme, b" ", encoded.as_bytes()])
        }
        Form::Part => {
            let mut rewritten = Zeroizing::new(Vec::with_capacity(value.len() + secret.len()));
            let mut rest = value;
            while let Some(at) =
                rest.windows(placeholder.len()).position(|text| text == placeholder.as_bytes())
            {
                rewritten.extend_from_slice(&rest[..at]);
                rewritten.extend_from_slice(secret);
                rest = &rest[at + placeholder.len()..];
            }
            rewritten.extend_from_slice(rest);
            Some(rewritten)
        }
        Form::Encoded => None,
    }
}

/// Whether a stored value can stand in this form without changing the shape of the header.
pub(crate) fn fits(form: Form, secret: &[u8]) -> bool {
    let printable = |byte: &u8| (0x20..0x7f).contains(byte);
    match form {
        Form::BasicUser => !secret.contains(&b':') && !secret.iter().any(u8::is_ascii_control),
        Form::BasicPassword => !secret.iter().any(u8::is_ascii_control),
        _ => !secret.is_empty() && secret.iter().all(printable) && secret.trim_ascii().len() == secret.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use proptest::prelude::*;

    fn format() -> Format {
        Format::default()
    }

    fn placeholder(seed: u8) -> String {
        format().compose("OPENAI_API_KEY", &[seed; 32])
    }

    fn find_request(target: &str, headers: &[(&str, &str)]) -> Vec<(String, String, Option<Form>)> {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let found = find(&format(), &parts).into_iter().map(|occurrence| {
            let form = match &occurrence.location {
                Location::Header { form, .. } => Some(*form),
                _ => None,
            };
            (occurrence.placeholder.clone(), occurrence.location.name().to_owned(), form)
        });
        found.collect()
    }

    fn find_header(name: &str, value: &str) -> Option<Form> {
        find_request("/", &[(name, value)]).first().and_then(|(_, _, form)| *form)
    }

    #[test]
    fn default_slots_are_recognised() {
        let ph = placeholder(1);
        let basic =
            |user: &str, password: &str| format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        assert_eq!(find_header("authorization", &format!("Bearer {ph}")), Some(Form::Bearer));
        assert_eq!(find_header("authorization", &format!("bearer  {ph}")), Some(Form::Bearer));
        assert_eq!(find_header("authorization", &format!("token {ph}")), Some(Form::Bearer));
        assert_eq!(find_header("authorization", &ph), Some(Form::Whole));
        assert_eq!(find_header("authorization", &basic(&ph, "x")), Some(Form::BasicUser));
        assert_eq!(find_header("authorization", &basic("x", &ph)), Some(Form::BasicPassword));
        assert_eq!(find_header("authorization", &basic("x", &format!("a{ph}"))), Some(Form::Encoded));
        assert_eq!(find_header("authorization", &format!("Custom {ph}")), Some(Form::Part));
        assert_eq!(find_header("x-api-key", &ph), Some(Form::Whole));
        assert_eq!(find_header("x-api-key", "sk-proj-real"), None);
    }

    #[test]
    fn a2_a3_everywhere_else_they_are_seen_as_well() {
        let ph = placeholder(2);
        let escaped: String = ph.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let target = format!("/v1/{ph}/x?key={escaped}");
        let found = find_request(&target, &[("user-agent", &format!("curl {ph}")), ("cookie", &escaped)]);
        let places: Vec<(&str, Option<Form>)> =
            found.iter().map(|(_, place, form)| (place.as_str(), *form)).collect();
        assert_eq!(
            places,
            [
                ("user-agent", Some(Form::Part)),
                ("cookie", Some(Form::Encoded)),
                ("path", None),
                ("query", None)
            ]
        );
        assert!(found.iter().all(|(text, ..)| *text == ph));
    }

    #[test]
    fn dec_31_only_named_headers_become_slots_and_some_never() {
        let allows = |name: &'static str, form, slots: &[&'static str]| {
            let slots: Vec<HeaderName> = slots.iter().map(|slot| HeaderName::from_static(slot)).collect();
            let name = HeaderName::from_static(name);
            Location::Header { name, index: 0, form }.allows_value(&slots)
        };
        assert!(allows("x-api-key", Form::Whole, &[]));
        assert!(!allows("x-api-key", Form::Part, &[]));
        assert!(!allows("cookie", Form::Part, &[]));
        assert!(allows("cookie", Form::Part, &["cookie"]));
        assert!(!allows("cookie", Form::Encoded, &["cookie"]));
        assert!(allows("authorization", Form::Bearer, &[]));
        for never in ["user-agent", "host", "referer", "x-forwarded-for", "sec-websocket-protocol"] {
            assert!(!allows(never, Form::Whole, &[never]), "{never}");
        }
        assert!(!Location::Query.allows_value(&[]));
    }

    #[test]
    fn a17_values_that_would_change_a_header_do_not_fit() {
        for bad in [&b"a\r\nb"[..], b"a\0", b"", b" a", b"a\x7f", "ä".as_bytes()] {
            assert!(!fits(Form::Bearer, bad), "{}", bad.escape_ascii());
        }
        assert!(fits(Form::Bearer, b"sk-live_%\"quoted\" and spaced"));
        assert!(!fits(Form::BasicUser, b"a:b") && fits(Form::BasicPassword, b"a:b"));
        assert!(!fits(Form::BasicPassword, b"a\nb"));
    }

    proptest! {
        /// A4: the part that is a placeholder is replaced, the other part is byte for byte what the guest
        /// sent.
        #[test]
        fn a4_basic_is_rewritten_in_its_part_only(
            other in "[^:]{0,24}", secret in "[!-9;-~]{1,40}", in_user: bool, scheme in "[Bb][Aa][Ss][Ii][Cc]",
        ) {
            let ph = placeholder(3);
            let plain = if in_user { format!("{ph}:{other}") } else { format!("{other}:{ph}") };
            let value = format!("{scheme} {}", STANDARD.encode(plain));
            let form = if in_user { Form::BasicUser } else { Form::BasicPassword };
            prop_assert_eq!(find_header("authorization", &value), Some(form));
            let rewritten = rewrite(value.as_bytes(), form, &ph, secret.as_bytes()).unwrap();
            let (_, encoded) = split_scheme(&rewritten).unwrap();
            let expected = if in_user { format!("{secret}:{other}") } else { format!("{other}:{secret}") };
            prop_assert_eq!(STANDARD.decode(encoded).unwrap(), expected.into_bytes());
        }

        /// A7: whatever surrounds them, each placeholder is replaced by its own secret.
        #[test]
        fn a5_a7_two_in_one_value_are_told_apart(before in "[ ;=a-z]{0,8}", between in "[ ;=]{1,8}", after in "[ ;=]{0,8}") {
            let (one, two) = (placeholder(4), placeholder(5));
            let value = format!("{before}{one}{between}{two}{after}");
            let once = rewrite(value.as_bytes(), Form::Part, &one, b"S1").unwrap();
            let twice = rewrite(&once, Form::Part, &two, b"S2").unwrap();
            prop_assert_eq!(twice.to_vec(), format!("{before}S1{between}S2{after}").into_bytes());
        }

        #[test]
        fn no_header_breaks_the_search(value in prop::collection::vec(any::<u8>(), 0..120)) {
            let name = AUTHORIZATION;
            find_in_header(&format(), &name, 0, &value, &mut Vec::new());
        }
    }
}
