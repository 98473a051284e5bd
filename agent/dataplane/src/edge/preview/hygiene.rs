//! What is changed in headers on their way through a preview, both ways. Pure.
//!
//! Towards the guest: nothing hop-by-hop, and only our own word about who the client is. Towards the browser: who
//! may frame the page is ours to say, and a guest reaches neither our cookie nor its sibling hosts.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_SECURITY_POLICY, EXPECT, FORWARDED, HOST, HeaderName, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, SET_COOKIE, STRICT_TRANSPORT_SECURITY, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderValue};
use roost_domain::sabotage::Defence;

const HOP_BY_HOP: [HeaderName; 7] =
    [CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];
const KEEP_ALIVE: [&str; 3] = ["keep-alive", "proxy-connection", "http2-settings"];
// Whatever a client claims about itself in these is replaced.
const CLAIMED_PREFIXES: [&str; 2] = ["x-forwarded-", "x-roost-"];
const CLAIMED: [&str; 3] = ["x-real-ip", "via", "x-original-host"];
// Headers without which a request means something else; no client may have them taken out.
const NEVER_NOMINATED: [&str; 6] = ["host", "authorization", "cookie", "content-length", "origin", "referer"];
// What a guest must not decide for the browser: reachability of siblings, our cookie.
const NOT_FOR_GUESTS: [&str; 4] = ["alt-svc", "clear-site-data", "nel", "report-to"];
const ROBOTS: HeaderName = HeaderName::from_static("x-robots-tag");

/// A request nominates a header as hop-by-hop that must not be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection header nominates a header that must stay")]
pub(super) struct Nominated;

/// The client as the guest is told about it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client<'a> {
    pub address: IpAddr,
    /// Host and port as in the browser's address bar.
    pub authority: &'a str,
}

/// Where the edge that a request came in at tells its client to the edge it belongs to.
pub(super) const RELAYED_CLIENT: HeaderName = HeaderName::from_static("x-roost-client");

/// Makes a client's headers fit for the edge of another host, which judges them again: credentials stay.
pub(super) fn prepare_relay(headers: &mut HeaderMap, client: IpAddr) -> Result<(), Nominated> {
    if nominated(headers).iter().any(|name| NEVER_NOMINATED.contains(&name.as_str())) {
        return Err(Nominated);
    }
    remove_hop_by_hop(headers);
    headers.remove(EXPECT);
    if let Ok(client) = HeaderValue::from_str(&client.to_string()) {
        headers.insert(RELAYED_CLIENT, client);
    }
    Ok(())
}

/// Makes the answer of another host's edge fit for the browser: it was made so already.
pub(super) fn prepare_relayed(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
}

/// Makes a client's headers fit for the guest.
pub(super) fn prepare_request(headers: &mut HeaderMap, client: Client<'_>) -> Result<(), Nominated> {
    if nominated(headers).iter().any(|name| NEVER_NOMINATED.contains(&name.as_str())) {
        return Err(Nominated);
    }
    remove_hop_by_hop(headers);
    headers.remove(FORWARDED);
    // The edge has answered an expectation by taking the body.
    headers.remove(EXPECT);
    let claimed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| CLAIMED_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix)))
        .filter(|_| !Defence::ClientClaims.is_off())
        .cloned()
        .collect();
    claimed.iter().for_each(|name| drop(headers.remove(name)));
    CLAIMED.iter().for_each(|name| drop(headers.remove(*name)));
    let mut tell = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    tell("x-forwarded-for", &client.address.to_canonical().to_string());
    tell("x-forwarded-host", client.authority);
    tell("x-forwarded-proto", "https");
    if let Ok(host) = HeaderValue::from_str(client.authority) {
        headers.insert(HOST, host);
    }
    Ok(())
}

/// Makes a guest's headers fit for the browser.
pub(super) fn prepare_response(headers: &mut HeaderMap, frame_ancestors: &[String], our_cookie: &str) {
    remove_hop_by_hop(headers);
    headers.remove(X_FRAME_OPTIONS);
    headers.remove(STRICT_TRANSPORT_SECURITY);
    NOT_FOR_GUESTS.iter().for_each(|name| drop(headers.remove(*name)));
    replace_all(headers, CONTENT_SECURITY_POLICY, without_frame_ancestors);
    if !Defence::GuestCookies.is_off() {
        replace_all(headers, SET_COOKIE, |cookie| host_only(cookie, our_cookie));
    }
    if !Defence::FrameAncestors.is_off() {
        headers.append(CONTENT_SECURITY_POLICY, frame_policy(frame_ancestors));
    }
    headers.insert(ROBOTS, HeaderValue::from_static("noindex"));
}

/// `frame-ancestors` of a preview: itself and the origins that were named.
pub(super) fn frame_policy(origins: &[String]) -> HeaderValue {
    let mut policy = "frame-ancestors 'self'".to_owned();
    for origin in origins.iter().filter(|origin| is_source(origin)) {
        policy.push(' ');
        policy.push_str(origin);
    }
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("frame-ancestors 'self'"))
}

/// A host source: nothing that could end the directive or begin another.
fn is_source(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._*:/[]".contains(&byte);
    !text.is_empty() && text.len() <= 255 && text.bytes().all(is_allowed)
}

fn nominated(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect()
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in nominated(headers) {
        headers.remove(name);
    }
    HOP_BY_HOP.iter().for_each(|name| drop(headers.remove(name)));
    KEEP_ALIVE.iter().for_each(|name| drop(headers.remove(*name)));
}

fn replace_all(headers: &mut HeaderMap, name: HeaderName, change: impl Fn(&str) -> Option<String>) {
    let values: Vec<HeaderValue> = headers.get_all(&name).iter().cloned().collect();
    headers.remove(&name);
    for value in values {
        let changed = value.to_str().ok().and_then(&change);
        if let Some(value) = changed.and_then(|text| HeaderValue::from_str(&text).ok()) {
            headers.append(name.clone(), value);
        }
    }
}

/// A policy without the guest's own `frame-ancestors`, which would intersect with ours; `None` when nothing is left.
fn without_frame_ancestors(policies: &str) -> Option<String> {
    let clean = |policy: &str| {
        let kept = policy.split(';').map(str::trim).filter(|directive| {
            let name = directive.split_ascii_whitespace().next().unwrap_or_default();
            !name.is_empty() && !name.eq_ignore_ascii_case("frame-ancestors")
        });
        kept.collect::<Vec<_>>().join("; ")
    };
    let kept: Vec<String> = policies.split(',').map(clean).filter(|policy| !policy.is_empty()).collect();
    (!kept.is_empty()).then(|| kept.join(", "))
}

/// A guest's cookie, for its own host only; `None` for one that would take the place of ours.
fn host_only(cookie: &str, our_cookie: &str) -> Option<String> {
    let mut parts = cookie.split(';').map(str::trim);
    let pair = parts.next()?;
    let name = pair.split_once('=').map_or("", |(name, _)| name.trim());
    // A nameless cookie "=__Host-x=y" is sent back as "__Host-x=y".
    let is_nameless = name.is_empty();
    let is_ours = name.eq_ignore_ascii_case(our_cookie) || name.is_empty() && pair.contains(our_cookie);
    if is_ours || is_nameless && pair.trim_start_matches('=').contains('=') {
        return None;
    }
    let is_domain = |attribute: &&str| {
        let name = attribute.split('=').next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case("domain")
    };
    let kept = std::iter::once(pair).chain(parts.filter(|part| !part.is_empty() && !is_domain(part)));
    Some(kept.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "__Host-miosa_pv";

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        map
    }

    fn request(headers: &[(&str, &str)]) -> Result<HeaderMap, Nominated> {
        let mut headers = map(headers);
        let client = Client { address: "::ffff:192.0.2.7".parse().unwrap(), authority: "3000-x.sandbox.a.b" };
        prepare_request(&mut headers, client)?;
        Ok(headers)
    }

    fn response(headers: &[(&str, &str)]) -> HeaderMap {
        let mut headers = map(headers);
        prepare_response(&mut headers, &["https://app.example".into(), "*.miosa.app".into()], OURS);
        headers
    }

    fn all(headers: &HeaderMap, name: HeaderName) -> Vec<&str> {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }

    const FRAMES: &str = "frame-ancestors 'self' https://app.example *.miosa.app";

    #[test]
    fn g13_claims_of_a_client_are_replaced() {
        let headers = request(&[
            ("x-forwarded-for", "10.9.9.9"),
            ("x-forwarded-anything", "x"),
            ("forwarded", "for=10.9.9.9"),
            ("x-real-ip", "10.9.9.9"),
            ("via", "1.1 evil"),
            ("x-roost-internal", "x"),
            ("host", "evil.example"),
            ("accept", "text/html"),
        ])
        .unwrap();
        assert!(!format!("{headers:?}").contains("10.9.9.9"), "{headers:?}");
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(headers["x-forwarded-host"], "3000-x.sandbox.a.b");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers[HOST], "3000-x.sandbox.a.b");
        assert_eq!(headers["accept"], "text/html");
        assert_eq!(headers.len(), 5, "{headers:?}");
    }

    #[test]
    fn hop_by_hop_and_nominated_headers_end_here() {
        let headers = request(&[
            ("connection", "keep-alive, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAA"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
        ])
        .unwrap();
        assert_eq!(headers.len(), 4, "{headers:?}");
        for name in NEVER_NOMINATED {
            assert_eq!(request(&[("connection", &name.to_uppercase())]), Err(Nominated), "{name}");
        }
    }

    #[test]
    fn g10_framing_is_ours_to_say() {
        for (guest, expected) in [
            (vec![], vec![FRAMES]),
            (vec!["frame-ancestors 'none'"], vec![FRAMES]),
            (
                vec![
                    "default-src 'self'; FRAME-ANCESTORS *; script-src x",
                    "frame-ancestors https://evil.example",
                ],
                vec!["default-src 'self'; script-src x", FRAMES],
            ),
            (vec!["img-src *,  frame-ancestors *"], vec!["img-src *", FRAMES]),
        ] {
            let guest: Vec<_> = guest.into_iter().map(|policy| ("content-security-policy", policy)).collect();
            assert_eq!(all(&response(&guest), CONTENT_SECURITY_POLICY), expected);
        }
        assert!(!response(&[("x-frame-options", "DENY")]).contains_key(X_FRAME_OPTIONS));
    }

    #[test]
    fn g11_an_origin_cannot_break_out_of_the_policy() {
        let origins = ["https://ok.example", "x; script-src *", "a b", "a,b", "'none'", ""].map(String::from);
        assert_eq!(frame_policy(&origins), "frame-ancestors 'self' https://ok.example");
    }

    #[test]
    fn g9_cookies_stay_on_their_host_and_off_ours() {
        let headers = response(&[
            ("set-cookie", "a=1; Domain=sandbox.a.b; Path=/"),
            ("set-cookie", "b=2; DOMAIN = .a.b ;Secure"),
            ("set-cookie", "__Host-miosa_pv=stolen; Path=/; Secure"),
            ("set-cookie", "__host-MIOSA_PV=stolen; Path=/; Secure"),
            ("set-cookie", "=__Host-miosa_pv=stolen; Path=/; Secure"),
            ("set-cookie", "=x=y"),
            ("set-cookie", "c=3"),
        ]);
        assert_eq!(all(&headers, SET_COOKIE), ["a=1; Path=/", "b=2; Secure", "c=3"]);
    }

    #[test]
    fn g22_what_reaches_beyond_the_page_is_stripped() {
        let headers = response(&[
            ("alt-svc", "h3=\":443\""),
            ("strict-transport-security", "max-age=1; includeSubDomains"),
            ("clear-site-data", "\"cookies\""),
            ("nel", "{}"),
            ("report-to", "{}"),
            ("etag", "x"),
        ]);
        assert_eq!(headers.len(), 3, "{headers:?}");
        assert_eq!(headers["x-robots-tag"], "noindex");
    }
}
