//! Headers that belong to one hop, and headers that would lead a guest around the proxy.

use std::sync::Arc;

use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, COOKIE, EXPECT, HOST, HeaderName, HeaderValue, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, header};
use memchr::memmem;
use roost_domain::sabotage::Defence;

use crate::egress::scrub::Scrub;

/// Always of one hop, nominated or not.
const HOP_BY_HOP: [HeaderName; 6] =
    [CONNECTION, TRAILER, TRANSFER_ENCODING, UPGRADE, EXPECT, HeaderName::from_static("keep-alive")];
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// Point a client at another protocol or report elsewhere.
const AROUND: [HeaderName; 4] = [
    HeaderName::from_static("alt-svc"),
    HeaderName::from_static("alt-used"),
    HeaderName::from_static("nel"),
    HeaderName::from_static("report-to"),
];

/// Tokens of all `Connection` headers, lower case.
pub(super) fn nominated(headers: &HeaderMap) -> Option<Vec<String>> {
    let mut tokens = Vec::new();
    for value in headers.get_all(CONNECTION) {
        let text = value.to_str().ok()?;
        tokens
            .extend(text.split(',').map(|token| token.trim().to_ascii_lowercase()).filter(|t| !t.is_empty()));
    }
    Some(tokens)
}

/// Removes what is for this hop only. `nominated` are the tokens of `Connection`.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap, nominated: &[String]) {
    let trailers = headers.get(TE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    for token in nominated.iter().filter(|_| !Defence::NominatedHeaders.is_off()) {
        headers.remove(token.as_str());
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(TE);
    headers.remove(HTTP2_SETTINGS);
    let proxy: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("proxy-")).cloned().collect();
    for name in proxy {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Makes a guest's headers those of an upstream request: the host is set from the checked one.
pub(super) fn clean_request(headers: &mut HeaderMap, nominated: &[String]) {
    remove_hop_by_hop(headers, nominated);
    headers.remove(HOST);
    headers.remove(AROUND[1].clone());
    join_cookies(headers);
}

/// HTTP/2 may split cookies over several headers, HTTP/1 may not.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let parts: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let sensitive = headers.get_all(COOKIE).iter().any(HeaderValue::is_sensitive);
    if let Ok(mut joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
        joined.set_sensitive(sensitive);
        headers.insert(COOKIE, joined);
    }
}

/// Makes an upstream's headers those of a guest's response.
pub(super) fn clean_response(headers: &mut HeaderMap) {
    let nominated = nominated(headers).unwrap_or_default();
    remove_hop_by_hop(headers, &nominated);
    for name in AROUND {
        headers.remove(name);
    }
}

/// Takes credentials out of the values of a response's headers or trailers.
pub(super) fn scrub(headers: &mut HeaderMap, scrubs: &[Arc<Scrub>]) {
    for value in headers.values_mut() {
        for scrub in scrubs {
            let clean = scrub.replace_all(value.as_bytes());
            if let Some(clean) = clean.and_then(|clean| HeaderValue::from_bytes(&clean).ok()) {
                *value = clean;
            }
        }
    }
}

/// Whether a response can be searched: not compressed, and of a charset in which ASCII is ASCII.
pub(super) fn is_readable(headers: &HeaderMap) -> bool {
    let identity = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    let wide = |value: &HeaderValue| {
        let value = value.as_bytes().to_ascii_lowercase();
        ["utf-16", "utf-32", "utf-7", "ucs-2", "ucs-4", "ebcdic", "ibm037", "ibm500"]
            .iter()
            .any(|charset| memmem::find(&value, charset.as_bytes()).is_some())
    };
    headers.get_all(CONTENT_ENCODING).iter().all(identity) && !headers.get_all(CONTENT_TYPE).iter().any(wide)
}

/// Asks for, or grants, a WebSocket on this hop.
pub(super) fn set_websocket(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

pub(super) fn is_websocket(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::UPGRADE).iter();
    let websocket = values.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    websocket && values.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn d10_what_connection_nominates_goes_and_the_fixed_set_too() {
        let mut headers = headers(&[
            ("connection", "x-one, Keep-Alive"),
            ("connection", "x-two"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("keep-alive", "5"),
            ("proxy-authorization", "Basic eA=="),
            ("proxy-connection", "keep-alive"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("upgrade", "h2c"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("host", "a.example"),
        ]);
        let nominated = nominated(&headers).unwrap();
        clean_request(&mut headers, &nominated);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["te", "x-three"]);
    }

    #[test]
    fn te_other_than_trailers_goes() {
        let mut headers = headers(&[("te", "gzip")]);
        remove_hop_by_hop(&mut headers, &[]);
        assert!(headers.is_empty());
    }

    #[test]
    fn cookies_are_one_header_upstream() {
        let mut headers = headers(&[("cookie", "a=1"), ("cookie", "b=2; c=3")]);
        clean_request(&mut headers, &[]);
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    }
}
