//! Reading requests: body, query, path and credential, each refusal in the error envelope with what to do.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::Failure;
use super::request;
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
    refuse_other_than_object(bytes)?;
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        refuse_json(&path, &error.into_inner())
    })?;
    deserializer.end().map_err(|error| refuse_json(".", &error))?;
    Ok(value)
}

/// Every body here is an object; serde would also take a list, as its fields in their order.
fn refuse_other_than_object(bytes: &[u8]) -> Result<(), Failure> {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    if first == Some(&b'{') {
        return Ok(());
    }
    match serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
        Ok(_) => Err(Error::invalid("body", "expected a JSON object").into()),
        Err(error) => Err(refuse_json(".", &error)),
    }
}

fn refuse_json(path: &str, error: &serde_json::Error) -> Failure {
    match error.classify() {
        serde_json::error::Category::Data => {
            // serde names the field of "missing field `x`" only in the text.
            let field = if path == "." { "body" } else { path };
            Error::invalid(field, without_position(&error.to_string())).into()
        }
        _ => Error::Malformed { problem: format!("the body is not JSON: {error}") }.into(),
    }
}

/// serde_json's texts end in the position, which says nothing about a field, and quote values, which may be
/// secrets.
fn without_position(text: &str) -> String {
    let text = text.split(" at line ").next().unwrap_or(text);
    match text.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected ")) {
        Some((found, expected)) => {
            format!("expected {expected}, got {}", found.split(['"', '`']).next().unwrap_or("").trim_end())
        }
        None => text.to_owned(),
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => {
                let text = rejection.body_text();
                let problem = text.rsplit("query string: ").next().unwrap_or(&text).to_owned();
                Err(Error::Malformed { problem: format!("query: {problem}") }.into())
            }
        }
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(_) => {
                Err(Error::Malformed { problem: "the path holds something that cannot be read".to_owned() }
                    .into())
            }
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
        assert_eq!(text, "port: expected u32, got string");
        let failure = parse::<Body>(b"{}").unwrap_err();
        assert_eq!(failure.error().to_string(), "body: missing field `port`");
        assert!(matches!(parse::<Body>(b"{").unwrap_err().error(), Error::Malformed { .. }));
        assert_eq!(parse::<Body>(b" [1]").unwrap_err().error().to_string(), "body: expected a JSON object");
        assert!(matches!(parse::<Body>(b"[1").unwrap_err().error(), Error::Malformed { .. }));
        assert!(matches!(parse::<Body>(br#"{"port": 1} x"#).unwrap_err().error(), Error::Malformed { .. }));
    }
}
