//! `Idempotency-Key` around a handler: the header, the answer's bytes, and nothing about what the answer
//! means.
//!
//! Only handlers whose answers hold no secret may use it: what they answer is stored.

use std::future::Future;
use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use roost_domain::Ulid;

use super::error::Failure;
use super::request;
use crate::app::idempotency::{self, Answer, Claim};
use crate::app::{App, Caller, Error};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Answers of these operations are small; a larger one would be a bug.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// What identifies the request besides the caller.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) method: &'static str,
    pub(super) target: String,
    pub(super) body: Bytes,
}

/// Runs `work` once for the key in `headers`, or always where there is none. It gets the id of what it makes.
pub(super) async fn once<W, F>(
    app: Arc<App>,
    caller: Caller,
    headers: &HeaderMap,
    call: Call,
    work: W,
) -> Result<Response, Failure>
where
    W: FnOnce(Ulid) -> F,
    F: Future<Output = Result<Response, Failure>> + Send + 'static,
{
    let Some(key) = headers.get(KEY) else {
        return work(Ulid::generate()).await;
    };
    let key = key.to_str().map_err(|_| Error::invalid("Idempotency-Key", "visible ASCII"))?;
    let fingerprint = idempotency::fingerprint(&caller, call.method, &call.target, &call.body);
    match idempotency::claim(&app, &caller, key, fingerprint).await? {
        Claim::Answered(answer) => Ok(replayed(answer)),
        Claim::Won(ticket) => {
            let work = work(ticket.effect());
            // A task of its own: the client may go away, the work and its answer may not.
            let task = tokio::spawn(request::within(request::current_id(), async move {
                let done = ticket.hold(&app, work).await;
                let is_final = done.as_ref().map_or_else(Failure::is_final, |_| true);
                let (parts, body) = done.unwrap_or_else(IntoResponse::into_response).into_parts();
                let body = to_bytes(body, MAX_ANSWER_BYTES)
                    .await
                    .map_err(|source| Error::internal("keep an answer for its repeats", source))?;
                let answer = Answer { status: parts.status.as_u16(), body: body.to_vec() };
                let other = ticket.finish(&app, &answer, is_final).await?;
                Ok::<_, Error>(other.map_or_else(|| Response::from_parts(parts, Body::from(body)), replayed))
            }));
            let done = task.await.map_err(|source| Error::internal("run an idempotent request", source))?;
            Ok(done?)
        }
    }
}

/// What was answered to another attempt, once more.
fn replayed(answer: Answer) -> Response {
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    if answer.status != StatusCode::NO_CONTENT.as_u16() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    response
}
