//! Finding our tokens in a request, and taking every trace of them out before a guest sees it. Pure.
//!
//! A token is looked for in the query, a header of our own, `Authorization: Bearer` and our cookie. Only what has
//! the form of one of our tokens is taken: an application may have its own `token` parameter. Whether a token opens
//! anything is not decided here.

use http::header::{AUTHORIZATION, COOKIE, REFERER};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use roost_domain::sabotage::Defence;
use roost_domain::token;

use crate::config::CookieIsolation;

/// Query parameters a token may come in, the first ones preferred.
const PARAMETERS: [&str; 4] = ["preview_token", "token", "mt", "ms"];
const BEARER: &str = "Bearer ";

/// What a brand calls its things.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub brand: String,
    /// `x-<brand>-preview-token`
    pub header: HeaderName,
    /// `__Host-<brand>_pv`
    pub cookie: String,
}

/// Where a token came from, the one that is tried first first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Query,
    Header,
    Authorization,
    Cookie,
}

/// A request names two different tokens, and it is not ours to guess which one is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than one token in the query")]
pub(super) struct Doubled;

#[derive(Debug, thiserror::Error)]
#[error("brand {brand:?} is not lower-case letters and digits")]
pub struct BadBrand {
    brand: String,
}

impl Names {
    pub(super) fn new(brand: &str) -> Result<Self, BadBrand> {
        let error = || BadBrand { brand: brand.to_owned() };
        let is_word = !brand.is_empty() && brand.len() <= 32;
        if !is_word || !brand.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
            return Err(error());
        }
        Ok(Self {
            brand: brand.to_owned(),
            header: format!("x-{brand}-preview-token").parse().map_err(|_| error())?,
            cookie: format!("__Host-{brand}_pv"),
        })
    }

    fn is_token(&self, text: &str) -> bool {
        token::split(text, &self.brand).is_some()
    }

    /// The tokens of a request in the order in which they are tried.
    pub(super) fn find(&self, uri: &Uri, headers: &HeaderMap) -> Result<Vec<(Source, String)>, Doubled> {
        let mut found = Vec::new();
        if let Some(token) = self.find_in_query(uri.query().unwrap_or_default())? {
            found.push((Source::Query, token));
        }
        let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
        let header = headers.get(&self.header).and_then(text);
        found.extend(header.filter(|token| self.is_token(token)).map(|token| (Source::Header, token)));
        let bearer = headers.get(AUTHORIZATION).and_then(|value| self.find_bearer(value));
        found.extend(bearer.map(|token| (Source::Authorization, token.to_owned())));
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let ours = cookies.flat_map(|line| line.split(';')).find_map(|cookie| {
            let (name, value) = cookie.split_once('=')?;
            (name.trim() == self.cookie && self.is_token(value.trim())).then(|| value.trim().to_owned())
        });
        found.extend(ours.map(|token| (Source::Cookie, token)));
        Ok(found)
    }

    fn find_bearer<'a>(&self, value: &'a HeaderValue) -> Option<&'a str> {
        let token = value.to_str().ok()?.strip_prefix(BEARER)?.trim();
        self.is_token(token).then_some(token)
    }

    fn find_in_query(&self, query: &str) -> Result<Option<String>, Doubled> {
        let mut found: Vec<(usize, String)> = Vec::new();
        for (name, value) in pairs(query) {
            let rank = PARAMETERS.iter().position(|parameter| *parameter == name);
            if let Some(rank) = rank.filter(|_| self.is_token(&value)) {
                found.push((rank, value));
            }
        }
        if found.windows(2).any(|pair| pair[0].1 != pair[1].1) {
            return Err(Doubled);
        }
        Ok(found.into_iter().min().map(|(_, token)| token))
    }

    /// Path and query without any parameter whose value is one of our tokens, whatever the parameter's name.
    pub(super) fn clean_path(&self, uri: &Uri) -> String {
        let path = if uri.path().is_empty() { "/" } else { uri.path() };
        match uri.query().and_then(|query| self.clean_query(query)) {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        }
    }

    fn clean_query(&self, query: &str) -> Option<String> {
        let kept: Vec<&str> =
            query.split('&').filter(|part| !pairs(part).any(|(_, value)| self.is_token(&value))).collect();
        (query.is_empty() || !kept.is_empty()).then(|| kept.join("&"))
    }

    /// Takes our credentials out of a request's headers, and under `Strict` the cookies of parent domains.
    pub(super) fn strip(&self, headers: &mut HeaderMap, isolation: CookieIsolation) {
        if Defence::PreviewCredentials.is_off() {
            return;
        }
        headers.remove(&self.header);
        if headers.get(AUTHORIZATION).is_some_and(|value| self.find_bearer(value).is_some()) {
            headers.remove(AUTHORIZATION);
        }
        self.strip_cookies(headers, isolation);
        if let Some(referer) = headers.remove(REFERER) {
            let clean = referer.to_str().ok().and_then(|text| self.clean_referer(text));
            if let Some(value) = clean.and_then(|text| HeaderValue::from_str(&text).ok()) {
                headers.insert(REFERER, value);
            }
        }
    }

    fn strip_cookies(&self, headers: &mut HeaderMap, isolation: CookieIsolation) {
        let lines: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
        headers.remove(COOKIE);
        let kept: Vec<&str> = lines
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(';'))
            .map(str::trim)
            .filter(|cookie| self.is_kept(cookie, isolation))
            .collect();
        if let Some(line) = HeaderValue::from_str(&kept.join("; ")).ok().filter(|line| !line.is_empty()) {
            headers.insert(COOKIE, line);
        }
    }

    fn is_kept(&self, cookie: &str, isolation: CookieIsolation) -> bool {
        let (name, value) = cookie.split_once('=').unwrap_or(("", cookie));
        let is_ours = name.trim().eq_ignore_ascii_case(&self.cookie) || self.is_token(value.trim());
        let is_loose = isolation == CookieIsolation::Off || Defence::CookieIsolation.is_off();
        let is_bound = is_loose || name.trim().starts_with("__Host-");
        !cookie.is_empty() && !is_ours && is_bound
    }

    fn clean_referer(&self, text: &str) -> Option<String> {
        let uri: Uri = text.parse().ok()?;
        let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
        Some(format!("{scheme}://{authority}{}", self.clean_path(&uri)))
    }
}

fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').map(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decode(name), decode(value))
    })
}

/// Percent-decoding, once, as a server would do it; what is no text becomes none of ours.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let hex = bytes.get(index + 1..index + 3).filter(|_| bytes[index] == b'%');
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match byte {
            Some(byte) => {
                decoded.push(byte);
                index += 3;
            }
            None => {
                decoded.push(if bytes[index] == b'+' { b' ' } else { bytes[index] });
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKEN: &str = "miosa_pv_Ab3dEf7h1J.eyJh.eyJp.c2ln";
    const OTHER: &str = "miosa_pv_Zz3dEf7h1J.eyJh.eyJp.c2ln";

    fn names() -> Names {
        Names::new("miosa").unwrap()
    }

    fn uri(query: &str) -> Uri {
        format!("/app/x?{query}").parse().unwrap()
    }

    fn found(query: &str, headers: &[(&str, &str)]) -> Result<Vec<(Source, String)>, Doubled> {
        names().find(&uri(query), &map(headers))
    }

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        map
    }

    #[test]
    fn dec_02_every_name_is_looked_at_in_order() {
        for name in PARAMETERS {
            assert_eq!(
                found(&format!("a=b&{name}={TOKEN}"), &[]).unwrap(),
                [(Source::Query, TOKEN.to_owned())]
            );
        }
        let all = found(
            &format!("mt={TOKEN}"),
            &[
                ("cookie", &format!("a=b; __Host-miosa_pv={TOKEN}")),
                ("authorization", &format!("Bearer {TOKEN}")),
                ("x-miosa-preview-token", TOKEN),
            ],
        );
        let sources: Vec<_> = all.unwrap().into_iter().map(|(source, _)| source).collect();
        assert_eq!(sources, [Source::Query, Source::Header, Source::Authorization, Source::Cookie]);
    }

    #[test]
    fn g7_the_applications_own_token_parameter_passes() {
        let own = "token=abc&preview_token=&mt=1.2.3";
        assert_eq!(found(own, &[("authorization", "Bearer abc")]).unwrap(), []);
        assert_eq!(names().clean_path(&uri(own)), format!("/app/x?{own}"));
    }

    #[test]
    fn g8_doubled_encoded_and_misnamed_parameters() {
        assert_eq!(found(&format!("preview_token={TOKEN}&token={OTHER}"), &[]), Err(Doubled));
        assert_eq!(found(&format!("preview_token={TOKEN}&preview_token={OTHER}"), &[]), Err(Doubled));
        let same = format!("token={TOKEN}&x=1&preview_token={TOKEN}");
        assert_eq!(found(&same, &[]).unwrap().len(), 1);
        assert_eq!(names().clean_path(&uri(&same)), "/app/x?x=1");
        let encoded = format!("%70review_token={}&x=%41", TOKEN.replace('.', "%2E").replace('_', "%5f"));
        assert_eq!(found(&encoded, &[]).unwrap(), [(Source::Query, TOKEN.to_owned())]);
        assert_eq!(names().clean_path(&uri(&encoded)), "/app/x?x=%41");
        let array = format!("preview_token[]={TOKEN}&y");
        assert_eq!(found(&array, &[]).unwrap(), []);
        assert_eq!(names().clean_path(&uri(&array)), "/app/x?y");
    }

    #[test]
    fn g6_no_trace_is_left_in_the_headers() {
        let mut headers = map(&[
            ("cookie", &format!("a=b;__Host-miosa_pv={TOKEN}; __host-MIOSA_pv=x")),
            ("cookie", &format!("c=d; copy={TOKEN}")),
            ("authorization", &format!("Bearer {TOKEN}")),
            ("x-miosa-preview-token", TOKEN),
            ("referer", &format!("https://3000-x.sandbox.a.b/p?z=1&token={TOKEN}")),
        ]);
        names().strip(&mut headers, CookieIsolation::Off);
        assert!(!format!("{headers:?}").contains("Ab3dEf7h1J"), "{headers:?}");
        assert_eq!(headers[COOKIE], "a=b; c=d");
        assert_eq!(headers[REFERER], "https://3000-x.sandbox.a.b/p?z=1");
        assert!(!headers.contains_key(AUTHORIZATION));

        let mut headers = map(&[("authorization", "Bearer the-apps-own"), ("referer", "::nonsense")]);
        names().strip(&mut headers, CookieIsolation::Off);
        assert_eq!(headers[AUTHORIZATION], "Bearer the-apps-own");
        assert!(!headers.contains_key(REFERER));
    }

    #[test]
    fn dec_19_strict_isolation_keeps_parent_cookies_away() {
        let mut headers = map(&[("cookie", "session=parent; __Host-app=own; __Host-miosa_pv=x")]);
        names().strip(&mut headers, CookieIsolation::Strict);
        assert_eq!(headers[COOKIE], "__Host-app=own");
        let mut headers = map(&[("cookie", "session=parent")]);
        names().strip(&mut headers, CookieIsolation::Strict);
        assert!(!headers.contains_key(COOKIE));
    }

    proptest! {
        #[test]
        fn a_clean_path_has_no_token_and_is_clean_already(parts in proptest::collection::vec("[a-z%+=]{0,8}", 0..6), at in 0usize..7) {
            let mut parts = parts;
            parts.insert(at.min(parts.len()), format!("x={TOKEN}"));
            if let Ok(uri) = format!("/p?{}", parts.join("&")).parse::<Uri>() {
                let clean = names().clean_path(&uri);
                prop_assert!(!clean.contains(TOKEN));
                let again = clean.parse::<Uri>().unwrap();
                prop_assert_eq!(names().clean_path(&again), clean);
            }
        }
    }
}
