//! What a request must be beyond what hyper refuses by itself: pure, and before anything else looks at it.
//!
//! The numbers are those of the list in the design notes: one host, the same everywhere, that of the
//! connection; no tunnels; only WebSocket as an upgrade; nothing that a second parser could read differently.

use http::header::{AUTHORIZATION, CONTENT_LENGTH, EXPECT, HOST};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri, Version};
use roost_domain::audit::reason;
use roost_domain::sabotage::Defence;

use super::header::{is_websocket, nominated};
use super::refusal::Refusal;
use crate::egress::Host;

/// Longest request target.
const MAX_TARGET_BYTES: usize = 16 * 1024;

/// The connection a request came on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) host: &'a Host,
    pub(super) port: u16,
    pub(super) tls: bool,
}

/// A request that may be judged by policy.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) target: PathAndQuery,
    pub(super) websocket: bool,
    /// Headers that `Connection` nominates.
    pub(super) nominated: Vec<String>,
}

pub(super) fn check(parts: &Parts, place: Place<'_>) -> Result<Checked, Refusal> {
    // (7)
    if parts.method == Method::CONNECT || parts.method == Method::TRACE {
        let message = format!("{} is not carried; connect to the host itself", parts.method);
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, reason::METHOD, message));
    }
    check_target(&parts.uri, place)?;
    check_authority(parts, place)?;
    // (12)
    let mut expectations = parts.headers.get_all(EXPECT).iter();
    if expectations.any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        let message = "only Expect: 100-continue is carried";
        return Err(Refusal::new(StatusCode::EXPECTATION_FAILED, reason::MALFORMED, message));
    }
    // Which of two an upstream reads is anybody's guess.
    if parts.headers.get_all(AUTHORIZATION).iter().nth(1).is_some() {
        return Err(Refusal::malformed("more than one Authorization header"));
    }
    // (6)
    let Some(nominated) = nominated(&parts.headers) else {
        return Err(Refusal::malformed("a Connection header that is not text"));
    };
    for required in [HOST, AUTHORIZATION, CONTENT_LENGTH] {
        if nominated.iter().any(|token| token == required.as_str()) {
            return Err(Refusal::malformed(format!("Connection may not name {required}")));
        }
    }
    Ok(Checked {
        target: choose_target(&parts.uri),
        websocket: wants_websocket(parts, &nominated),
        nominated,
    })
}

fn check_target(uri: &Uri, place: Place<'_>) -> Result<(), Refusal> {
    // (13)
    if uri.path_and_query().is_some_and(|target| target.as_str().len() > MAX_TARGET_BYTES) {
        let message = format!("the request target is longer than {MAX_TARGET_BYTES} bytes");
        return Err(Refusal::new(StatusCode::URI_TOO_LONG, reason::MALFORMED, message));
    }
    // (5)
    let scheme = if place.tls { "https" } else { "http" };
    if uri.scheme_str().is_some_and(|claimed| claimed != scheme) {
        return Err(Refusal::malformed(format!("the request says another scheme than {scheme}")));
    }
    Ok(())
}

/// (1) to (4) and (9): every place that names a host names the one of the connection.
fn check_authority(parts: &Parts, place: Place<'_>) -> Result<(), Refusal> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::malformed("more than one Host header"));
    }
    let header = match header {
        Some(value) => {
            Some(value.to_str().map_err(|_| Refusal::malformed("a Host header that is not text"))?)
        }
        None => None,
    };
    let uri = parts.uri.authority().map(|authority| authority.as_str());
    if header.is_none() && uri.is_none() && parts.version != Version::HTTP_10 {
        return Err(Refusal::malformed("the request names no host"));
    }
    let default_port = if place.tls { 443 } else { 80 };
    let mut named = Vec::with_capacity(2);
    for text in [header, uri].into_iter().flatten() {
        let (host, port) = Host::parse_authority(text)
            .map_err(|error| Refusal::malformed(format!("the host of the request is not valid: {error}")))?;
        named.push((host, port.unwrap_or(default_port)));
    }
    if let [one, other] = named.as_slice()
        && one != other
    {
        return Err(Refusal::malformed("the Host header and the request target name different hosts"));
    }
    match named.first() {
        _ if Defence::HostAgreement.is_off() => Ok(()),
        Some((host, port)) if host != place.host || *port != place.port => {
            let message = format!(
                "the request is for {host}:{port}, the connection for {}:{}; open a connection of its own",
                place.host, place.port
            );
            Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, reason::AUTHORITY_MISMATCH, message))
        }
        _ => Ok(()),
    }
}

/// (8): any other upgrade is dropped with the hop's headers and the request served as what it is.
fn wants_websocket(parts: &Parts, nominated: &[String]) -> bool {
    parts.version == Version::HTTP_11
        && parts.method == Method::GET
        && nominated.iter().any(|token| token == "upgrade")
        && is_websocket(&parts.headers)
}

fn choose_target(uri: &Uri) -> PathAndQuery {
    uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use proptest::prelude::*;

    /// A request to `https://api.example.com`, as `(method, target, version, headers)`.
    fn status(method: &str, target: &str, version: Version, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().method(method).uri(target).version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let host = Host::parse("api.example.com").unwrap();
        let (parts, ()) = request.body(()).unwrap().into_parts();
        match check(&parts, Place { host: &host, port: 443, tls: true }) {
            Ok(_) => 200,
            Err(refusal) => refusal.status.as_u16(),
        }
    }

    fn h1(target: &str, headers: &[(&str, &str)]) -> u16 {
        status("GET", target, Version::HTTP_11, headers)
    }

    fn h2(target: &str, headers: &[(&str, &str)]) -> u16 {
        status("GET", target, Version::HTTP_2, headers)
    }

    const OWN: (&str, &str) = ("host", "api.example.com");

    #[test]
    fn c1_c5_another_host_is_421() {
        assert_eq!(h1("/", &[OWN]), 200);
        assert_eq!(h1("/", &[("host", "other.example.com")]), 421);
        assert_eq!(h1("/", &[("host", "example.com")]), 421);
        assert_eq!(h1("/", &[("host", "api.example.com.evil.example")]), 421);
    }

    #[test]
    fn c3_spellings_of_the_same_host_are_the_same() {
        for spelling in ["API.Example.COM", "api.example.com.", "api.example.com:443", "api.example.com.:443"]
        {
            assert_eq!(h1("/", &[("host", spelling)]), 200, "{spelling}");
        }
    }

    #[test]
    fn c6_c7_http2_authority_and_host_agree_with_the_connection() {
        assert_eq!(h2("https://api.example.com/", &[]), 200);
        assert_eq!(h2("https://api.example.com/", &[OWN]), 200);
        assert_eq!(h2("https://other.example.com/", &[]), 421);
        assert_eq!(h2("https://api.example.com/", &[("host", "other.example.com")]), 400);
        assert_eq!(h2("http://api.example.com/", &[]), 400, "scheme");
        assert_eq!(h2("/", &[]), 400, "no authority");
    }

    #[test]
    fn c8_an_absolute_target_names_the_host_header_s_host() {
        assert_eq!(h1("https://api.example.com/x", &[OWN]), 200);
        assert_eq!(h1("https://other.example.com/x", &[OWN]), 400);
        assert_eq!(h1("https://other.example.com/x", &[("host", "other.example.com")]), 421);
        assert_eq!(h1("http://api.example.com/x", &[OWN]), 400);
    }

    #[test]
    fn c9_more_than_one_host_is_400() {
        assert_eq!(h1("/", &[OWN, OWN]), 400);
        assert_eq!(h1("/", &[OWN, ("host", "other.example.com")]), 400);
        assert_eq!(h1("/", &[]), 400);
        assert_eq!(status("GET", "/", Version::HTTP_10, &[]), 200);
    }

    #[test]
    fn c10_c18_ports_user_information_and_disguised_addresses() {
        for (host, expected) in [
            ("api.example.com:8443", 421),
            ("api.example.com:80", 421),
            ("api.example.com:0", 400),
            ("api.example.com:", 400),
            ("api.example.com:443x", 400),
            ("user@api.example.com", 400),
            ("api.example.com@evil.example", 400),
            ("[::1]", 421),
            ("127.0.0.1", 421),
            ("0x7f.1", 400),
            ("2130706433", 400),
            ("127.1", 400),
            ("api.example.com%00.evil.example", 400),
            ("", 400),
        ] {
            assert_eq!(h1("/", &[("host", host)]), expected, "{host}");
        }
    }

    #[test]
    fn d9_no_tunnels_and_no_echo() {
        assert_eq!(status("TRACE", "/", Version::HTTP_11, &[OWN]), 405);
        assert_eq!(status("CONNECT", "api.example.com:443", Version::HTTP_11, &[OWN]), 405);
    }

    #[test]
    fn d10_connection_may_not_nominate_what_is_needed() {
        for named in ["host", "Authorization", "close, content-length"] {
            assert_eq!(h1("/", &[OWN, ("connection", named)]), 400, "{named}");
        }
        assert_eq!(h1("/", &[OWN, ("connection", "x-mine")]), 200);
    }

    #[test]
    fn a16_two_authorization_headers_are_refused() {
        let two = [OWN, ("authorization", "Bearer a"), ("authorization", "Bearer b")];
        assert_eq!(h1("/", &two), 400);
    }

    #[test]
    fn d13_long_targets_and_other_expectations() {
        assert_eq!(h1(&format!("/{}", "a".repeat(MAX_TARGET_BYTES)), &[OWN]), 414);
        assert_eq!(h1("/", &[OWN, ("expect", "200-maybe")]), 417);
        assert_eq!(h1("/", &[OWN, ("expect", "100-Continue")]), 200);
    }

    #[test]
    fn d6_only_a_websocket_is_an_upgrade() {
        let upgrade = |method: &str, version, headers: &[(&str, &str)]| {
            let mut request = Request::builder().method(method).uri("/").version(version);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            wants_websocket(&parts, &nominated(&parts.headers).unwrap())
        };
        let asked = [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];
        assert!(upgrade("GET", Version::HTTP_11, &asked));
        assert!(!upgrade("POST", Version::HTTP_11, &asked));
        assert!(!upgrade("GET", Version::HTTP_10, &asked));
        assert!(!upgrade("GET", Version::HTTP_11, &asked[1..]));
        assert!(!upgrade("GET", Version::HTTP_11, &[asked[0], ("upgrade", "h2c")]));
        assert!(!upgrade("GET", Version::HTTP_11, &[asked[0], asked[1], ("upgrade", "h2c")]));
    }

    proptest! {
        /// Whatever stands in Host: it passes only if it is the host of the connection in some spelling.
        #[test]
        fn c3_no_other_text_passes_as_the_host(text in "[a-zA-Z0-9.:@%\\[\\]_-]{0,40}") {
            if h1("/", &[("host", &text)]) == 200 {
                let bare = text.to_ascii_lowercase();
                let bare = bare.strip_suffix(":443").unwrap_or(&bare);
                prop_assert_eq!(bare.strip_suffix('.').unwrap_or(bare), "api.example.com");
            }
        }
    }
}
