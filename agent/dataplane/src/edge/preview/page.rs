//! What the edge itself answers: branded pages for people, JSON for programs. Pure but for the nonce it is given.
//!
//! Every text that came from a tenant is escaped, and the page's own policy allows its one script and nothing else.
//! Says nothing about hosts, sandboxes or other tenants.

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde_json::json;

use super::hygiene::frame_policy;

/// Why a request is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    BadRequest,
    TokenMissing,
    TokenInvalid,
    TokenExpired,
    TokenRevoked,
    TokenWrongResource,
    InsufficientScope,
    OriginRefused,
    NotFound,
    MethodNotAllowed,
    AppNotListening,
    AppBroke,
    Starting,
    NotRunning,
    Busy,
    SchedulerUnavailable,
    AppTimeout,
}

/// How a tenant's pages look. Taken from the route; everything may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Branding {
    pub product_name: String,
    pub logo_url: String,
    pub frame_ancestors: Vec<String>,
}

impl Problem {
    /// Status and code.
    const fn kind(self) -> (StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::BadRequest => (S::BAD_REQUEST, "bad_request"),
            Self::TokenMissing => (S::UNAUTHORIZED, "token_missing"),
            Self::TokenInvalid => (S::UNAUTHORIZED, "invalid_token"),
            Self::TokenExpired => (S::UNAUTHORIZED, "token_expired"),
            Self::TokenRevoked => (S::UNAUTHORIZED, "token_revoked"),
            Self::TokenWrongResource => (S::FORBIDDEN, "token_wrong_resource"),
            Self::InsufficientScope => (S::FORBIDDEN, "insufficient_scope"),
            Self::OriginRefused => (S::FORBIDDEN, "origin_refused"),
            Self::NotFound => (S::NOT_FOUND, "preview_not_found"),
            Self::MethodNotAllowed => (S::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::AppNotListening => (S::BAD_GATEWAY, "app_not_listening"),
            Self::AppBroke => (S::BAD_GATEWAY, "app_broke_off"),
            Self::Starting => (S::SERVICE_UNAVAILABLE, "starting"),
            Self::NotRunning => (S::SERVICE_UNAVAILABLE, "sandbox_not_running"),
            Self::Busy => (S::SERVICE_UNAVAILABLE, "busy"),
            Self::SchedulerUnavailable => (S::SERVICE_UNAVAILABLE, "scheduler_unavailable"),
            Self::AppTimeout => (S::GATEWAY_TIMEOUT, "app_timeout"),
        }
    }

    /// What is the matter, what to do.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::BadRequest => ("This request cannot be served", "Check the address."),
            Self::TokenMissing => ("This preview is private", "Open it with its link."),
            Self::TokenInvalid => ("This link is not valid", "Ask for a new link."),
            Self::TokenExpired => ("This session has expired", "Ask for a new link."),
            Self::TokenRevoked => ("This link was withdrawn", "Ask for a new link, if you still may."),
            Self::TokenWrongResource => ("This link is for another preview", "Use the preview's own link."),
            Self::InsufficientScope => ("This link only allows looking", "Ask for a link that allows more."),
            Self::OriginRefused => ("This page may not connect here", "Open the preview itself."),
            Self::NotFound => ("There is no such preview", "Check the address."),
            Self::MethodNotAllowed => ("This method is not served", "Use another method."),
            Self::AppNotListening => ("The application is not answering", "Start it, then reload."),
            Self::AppBroke => ("The application broke off", "Reload the page."),
            Self::Starting => ("The preview is starting", "It reloads by itself."),
            Self::NotRunning => ("The sandbox is not running", "Start it, then reload."),
            Self::Busy => ("The preview is busy", "It reloads by itself."),
            Self::SchedulerUnavailable => ("Access cannot be checked at the moment", "It reloads by itself."),
            Self::AppTimeout => ("The application takes too long", "Reload the page."),
        }
    }

    pub(super) const fn code(self) -> &'static str {
        self.kind().1
    }

    const fn retry_after_s(self) -> Option<u32> {
        match self {
            Self::Starting | Self::SchedulerUnavailable => Some(3),
            Self::Busy => Some(5),
            _ => None,
        }
    }

    /// Whether a new token would help, which an embedding page wants to know.
    const fn wants_token(self) -> bool {
        matches!(self, Self::TokenMissing | Self::TokenInvalid | Self::TokenExpired | Self::TokenRevoked)
    }
}

/// Whether the client is a person's browser, asking for a page.
pub(super) fn wants_page(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepts
        .flat_map(|value| value.split(','))
        .any(|kind| kind.trim().to_ascii_lowercase().starts_with("text/html"))
}

/// The answer to a request that is not forwarded. `nonce` is random base64 or hexadecimal.
pub(super) fn answer(problem: Problem, branding: &Branding, is_page: bool, nonce: &str) -> Response<Bytes> {
    let ((status, code), (title, advice)) = (problem.kind(), problem.words());
    let (kind, body) = match is_page {
        true => ("text/html; charset=utf-8", html(problem, branding, nonce)),
        false => (
            "application/json",
            format!(
                "{}\n",
                json!({"error": {
                    "code": code,
                    "message": format!("{title}. {advice}"),
                    "retryable": problem.retry_after_s().is_some(),
                }})
            ),
        ),
    };
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(HeaderName::from_static("x-robots-tag"), HeaderValue::from_static("noindex"));
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    if let Some(seconds) = problem.retry_after_s() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    let own = format!(
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src https:; style-src 'nonce-{nonce}'; \
         script-src 'nonce-{nonce}'"
    );
    if let Ok(policy) = HeaderValue::from_str(&own) {
        headers.append(CONTENT_SECURITY_POLICY, policy);
    }
    headers.append(CONTENT_SECURITY_POLICY, frame_policy(&branding.frame_ancestors));
    response
}

fn html(problem: Problem, branding: &Branding, nonce: &str) -> String {
    let ((_, code), (title, advice)) = (problem.kind(), problem.words());
    let product = escape(&branding.product_name);
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>"
    );
    if let Some(seconds) = problem.retry_after_s() {
        let _ = write!(page, "<meta http-equiv=\"refresh\" content=\"{seconds}\">");
    }
    let _ = write!(
        page,
        "<style nonce=\"{nonce}\">body{{font:16px/1.5 system-ui,sans-serif;color:#222;max-width:32em;\
         margin:20vh auto 0;padding:0 1em;text-align:center}}img{{max-height:48px}}small{{color:#777}}</style>\
         </head><body>"
    );
    if is_logo(&branding.logo_url) {
        let _ = write!(page, "<p><img alt=\"\" src=\"{}\"></p>", escape(&branding.logo_url));
    }
    let _ = write!(page, "<h1>{title}</h1><p>{advice}</p><p><small>{product}</small></p>");
    if problem.wants_token() {
        page.push_str(&script(code, branding, nonce));
    }
    page.push_str("</body></html>\n");
    page
}

/// Tells the embedding page that it should mint a new token: to the named origins only, never to whoever frames.
fn script(code: &str, branding: &Branding, nonce: &str) -> String {
    let origins: Vec<String> =
        branding.frame_ancestors.iter().flat_map(|source| exact_origins(source)).collect();
    if origins.is_empty() {
        return String::new();
    }
    // `<` cannot occur in an origin, but a script must not be closed by its data in any case.
    let origins = json!(origins).to_string().replace('<', "\\u003c");
    format!(
        "<script nonce=\"{nonce}\">for(const origin of {origins})\
         parent.postMessage({{type:\"preview.token_expired\",code:\"{code}\"}},origin)</script>"
    )
}

/// The origins a frame source names exactly; a wildcard names none.
fn exact_origins(source: &str) -> Vec<String> {
    let is_host = |host: &str| {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        !host.is_empty() && host.bytes().all(is_allowed)
    };
    match source.split_once("://") {
        Some((scheme @ ("https" | "http"), host)) if is_host(host) => vec![format!("{scheme}://{host}")],
        None if is_host(source) => vec![format!("https://{source}"), format!("http://{source}")],
        _ => Vec::new(),
    }
}

fn is_logo(url: &str) -> bool {
    url.starts_with("https://") && url.len() <= 2048 && url.bytes().all(|byte| byte.is_ascii_graphic())
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars().filter(|character| !character.is_control()) {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branding() -> Branding {
        Branding {
            product_name: "<script>alert(1)</script>\"'&".into(),
            logo_url: "https://cdn.example/x.png?\"onerror=alert(1)".into(),
            frame_ancestors: ["https://app.example", "*.miosa.app", "localhost:4000", "https://x</script>"]
                .map(Into::into)
                .into(),
        }
    }

    fn text(problem: Problem, branding: &Branding) -> String {
        String::from_utf8(answer(problem, branding, true, "abc").into_body().to_vec()).unwrap()
    }

    #[test]
    fn g17_nothing_of_a_tenant_becomes_markup() {
        let page = text(Problem::TokenExpired, &branding());
        assert!(!page.contains("alert(1)</script>"), "{page}");
        assert!(!page.contains("\"onerror"), "{page}");
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;"), "{page}");
        for logo_url in ["javascript:alert(1)", "http://cdn.example/x.png", "https://x/\nonload"] {
            let branding = Branding { logo_url: logo_url.into(), ..branding() };
            assert!(!text(Problem::NotFound, &branding).contains("<img"), "{logo_url}");
        }
    }

    #[test]
    fn the_embedding_page_is_told_by_exact_origin_only() {
        let page = text(Problem::TokenExpired, &branding());
        let told = r#"for(const origin of ["https://app.example","https://localhost:4000","http://localhost:4000"])"#;
        assert!(page.contains(told), "{page}");
        assert!(!text(Problem::NotFound, &branding()).contains("postMessage"));
        assert!(!text(Problem::TokenExpired, &Branding::default()).contains("<script"));
    }

    #[test]
    fn people_get_a_page_and_programs_json() {
        let accept = |value: &'static str| HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(value))]);
        assert!(wants_page(&accept("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")));
        assert!(!wants_page(&accept("*/*")));
        assert!(!wants_page(&HeaderMap::new()));
        let json = answer(Problem::TokenExpired, &branding(), false, "abc");
        assert_eq!(json.status(), 401);
        let body: serde_json::Value = serde_json::from_slice(json.body()).unwrap();
        assert_eq!(body["error"]["code"], "token_expired");
        assert_eq!(json.headers()[CACHE_CONTROL], "no-store");
        let starting = answer(Problem::Starting, &branding(), true, "abc");
        assert_eq!(
            (starting.status().as_u16(), &starting.headers()[RETRY_AFTER]),
            (503, &HeaderValue::from(3))
        );
    }
}
