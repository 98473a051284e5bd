//! Reading requests: body, query, path and credential, each refusal in the error envelope with what to do.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use roost_domain::limits::excerpt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::Failure;
use super::request;
use super::wording;
use crate::app::{App, Caller, Error};

/// The largest JSON body, except where files come in as base64.
pub(super) const MAX_BODY_BYTES: usize = 1024 * 1024;
/// 64 MiB of file as base64, and its envelope.
pub(super) const MAX_FILE_BODY_BYTES: usize = 90 * 1024 * 1024;

/// A JSON body that must be there; as an answer, a JSON body.
#[derive(Debug)]
pub(super) struct Json<T>(pub T);

/// A JSON body that may be missing, which means the same as `{}`.
#[derive(Debug)]
pub(super) struct OptionalJson<T>(pub T);

/// The body's bytes, whatever they are.
#[derive(Debug)]
pub(super) struct Raw(pub Bytes);

#[derive(Debug)]
pub(super) struct Query<T>(pub T);

#[derive(Debug)]
pub(super) struct Path<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let is_json = is_json(request.headers());
        let bytes = read_body(request, state).await?;
        if !is_json {
            return Err(Error::ContentType.into());
        }
        parse(&bytes).map(Self)
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let is_json = is_json(request.headers());
        let bytes = read_body(request, state).await?;
        if bytes.is_empty() {
            return parse(b"{}").map(Self);
        }
        if !is_json {
            return Err(Error::ContentType.into());
        }
        parse(&bytes).map(Self)
    }
}

/// For handlers that need the bytes as well, as the request's identity.
pub(super) fn parse_json<T: DeserializeOwned>(headers: &HeaderMap, bytes: &[u8]) -> Result<T, Failure> {
    if !is_json(headers) {
        return Err(Error::ContentType.into());
    }
    parse(bytes)
}

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        read_body(request, state).await.map(Self)
    }
}

async fn read_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Failure> {
    let limit_bytes = if takes_files(request.uri().path()) { MAX_FILE_BODY_BYTES } else { MAX_BODY_BYTES };
    Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Error::BodyTooLarge { limit_bytes }.into(),
        _ => Error::Malformed { problem: "the body broke off before its end".to_owned() }.into(),
    })
}

/// The routes whose body carries files.
pub(super) fn takes_files(path: &str) -> bool {
    ["/fs/write", "/fs/write-many", "/files", "/files/write-many"].iter().any(|end| path.ends_with(end))
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let media = value.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    media == "application/json" || (media.starts_with("application/") && media.ends_with("+json"))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    if std::str::from_utf8(bytes).is_err() {
        return Err(Error::Malformed { problem: "the body is not UTF-8".to_owned() }.into());
    }
    refuse_other_than_object(bytes)?;
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        refuse_json(&path, &error.into_inner(), bytes)
    })?;
    deserializer.end().map_err(|error| not_json(&error))?;
    match has_zero_escape(bytes).then(|| find_zero(bytes)).flatten() {
        Some(field) => Err(Error::invalid(excerpt(&field), "must not hold a zero byte").into()),
        None => Ok(value),
    }
}

/// Every body here is an object; serde would also take a list, as its fields in their order.
fn refuse_other_than_object(bytes: &[u8]) -> Result<(), Failure> {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    match first {
        Some(b'{') => return Ok(()),
        None => {
            return Err(
                Error::Malformed { problem: "the body is empty: send a JSON object".to_owned() }.into()
            );
        }
        Some(_) => {}
    }
    match serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
        Ok(_) => Err(Error::invalid("body", "expected a JSON object").into()),
        Err(error) => Err(not_json(&error)),
    }
}

/// What is no JSON at all is told apart from JSON of another shape, which the reader's own verdict does not always do.
fn refuse_json(path: &str, error: &serde_json::Error, bytes: &[u8]) -> Failure {
    if let Err(error) = serde_json::from_slice::<Value>(bytes) {
        return not_json(&error);
    }
    let (field, problem) = wording::explain(path, &error.to_string());
    Error::invalid(excerpt(&field), problem).into()
}

fn not_json(error: &serde_json::Error) -> Failure {
    Error::Malformed { problem: format!("the body is not JSON: {error}") }.into()
}

/// JSON can only hold a zero byte as this escape, or as one that follows an escaped backslash and is none.
fn has_zero_escape(bytes: &[u8]) -> bool {
    let backslashes = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\\');
    backslashes.into_iter().any(|(at, _)| bytes[at..].starts_with(br"\u0000"))
}

/// The first text of the body with a zero byte in it. Neither a store nor a command line takes one, so no text may
/// hold it but what a command reads.
fn find_zero(bytes: &[u8]) -> Option<String> {
    fn within(path: &str, value: &Value) -> Option<String> {
        match value {
            Value::String(text) if text.contains('\0') && path != "stdin" => Some(path.to_owned()),
            Value::Array(items) => {
                items.iter().enumerate().find_map(|(index, item)| within(&format!("{path}[{index}]"), item))
            }
            Value::Object(fields) => fields.iter().find_map(|(name, value)| {
                let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                if name.contains('\0') { Some(below.replace('\0', "")) } else { within(&below, value) }
            }),
            _ => None,
        }
    }
    within("", &serde_json::from_slice(bytes).ok()?)
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        refuse_unreadable(parts.uri.query().unwrap_or(""))?;
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => {
                let text = rejection.body_text();
                let text = text.rsplit("query string: ").next().unwrap_or(&text);
                let (path, text) = text.split_once(": ").unwrap_or((".", text));
                let (field, problem) = wording::explain(path, text);
                Err(Error::Malformed { problem: format!("query parameter {field}: {problem}") }.into())
            }
        }
    }
}

/// Refuses what would otherwise be read as something else: bytes that are no text, and zero bytes.
fn refuse_unreadable(query: &str) -> Result<(), Failure> {
    for pair in query.split('&') {
        let name = pair.split('=').next().unwrap_or_default();
        let bytes: Vec<u8> = percent_encoding::percent_decode_str(pair).collect();
        let problem = match std::str::from_utf8(&bytes) {
            Err(_) => "is not UTF-8",
            Ok(text) if text.contains('\0') => "must not hold a zero byte",
            Ok(_) => continue,
        };
        return Err(Error::Malformed { problem: format!("query parameter {name}: {problem}") }.into());
    }
    Ok(())
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let unreadable = |problem: &str| Error::Malformed { problem: problem.to_owned() };
        if parts.uri.path().contains("%00") {
            return Err(unreadable("the path must not hold a zero byte").into());
        }
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(_) => Err(unreadable("the path must be UTF-8, percent-encoded").into()),
        }
    }
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let token = bearer(&parts.headers)?;
        Ok(app.authenticate(token, request::current_id()).await?)
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, Error> {
    let value = headers.get(header::AUTHORIZATION).ok_or(Error::CredentialMissing)?;
    let text = value.to_str().ok().and_then(|text| text.split_once(' '));
    match text {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
            Ok(token.trim())
        }
        _ => Err(Error::Credential { problem: "the header Authorization must be: Bearer <key>" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_type_is_named_without_its_value() {
        #[derive(Debug, serde::Deserialize)]
        struct Body {
            #[allow(dead_code)]
            port: u32,
        }
        let failure = parse::<Body>(br#"{"port": "hunter2"}"#).unwrap_err();
        let text = failure.error().to_string();
        assert_eq!(text, "port: expected a whole number from 0 to 4294967295, got a string");
        let failure = parse::<Body>(b"{}").unwrap_err();
        assert_eq!(failure.error().to_string(), "port: is missing");
        assert!(matches!(parse::<Body>(b"{").unwrap_err().error(), Error::Malformed { .. }));
        assert_eq!(parse::<Body>(b" [1]").unwrap_err().error().to_string(), "body: expected a JSON object");
        assert!(matches!(parse::<Body>(b"[1").unwrap_err().error(), Error::Malformed { .. }));
        assert!(matches!(parse::<Body>(br#"{"port": 1} x"#).unwrap_err().error(), Error::Malformed { .. }));
    }

    #[test]
    fn a_zero_byte_is_refused_where_it_is() {
        let read =
            |text: &str| parse::<Value>(text.as_bytes()).map_err(|failure| failure.error().to_string());
        assert!(read(r#"{"a": "\\u0000", "stdin": "\u0000"}"#).is_ok());
        for (text, field) in [
            (r#"{"a": {"b": ["x", "y\u0000"]}}"#, "a.b[1]"),
            (r#"{"a": {"stdin": "\u0000"}}"#, "a.stdin"),
            (r#"{"a": {"\u0000b": 1}}"#, "a.b"),
        ] {
            assert_eq!(read(text).unwrap_err(), format!("{field}: must not hold a zero byte"));
        }
    }

    #[test]
    fn a_query_that_is_no_text_is_refused() {
        assert!(refuse_unreadable("a=%C3%A4&b=%25ff").is_ok());
        for (query, named) in
            [("a=1&b=%ff", "b: is not UTF-8"), ("a=x%00", "a: must not hold"), ("%ff=1", "%ff: is not")]
        {
            let problem = refuse_unreadable(query).unwrap_err().error().to_string();
            assert!(problem.contains(named), "{query}: {problem}");
        }
    }
}
