//! What every request gets: an id, an access line, and a body limit.
//!
//! The id is in the answer's `X-Request-Id` and in error bodies, never in the body of a success.

use std::time::Instant;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderName, HeaderValue};
use roost_domain::id::RequestId;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

tokio::task_local! {
    static CURRENT: String;
}

/// The id of the request that this task serves; empty outside of one.
pub(super) fn current_id() -> String {
    CURRENT.try_with(Clone::clone).unwrap_or_default()
}

/// Runs `work` as a part of the request with this id, in whatever task it is polled.
pub(super) async fn within<F: Future>(id: String, work: F) -> F::Output {
    CURRENT.scope(id, work).await
}

/// Makes the id and writes one line when the answer's head is ready. Query strings are left out: they may
/// hold tokens.
pub(super) async fn identify(request: Request, next: Next) -> Response {
    let id = roost_daemon::ids::fresh::<RequestId>().to_string();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let started = Instant::now();
    let mut response = CURRENT.scope(id.clone(), next.run(request)).await;
    let status = response.status().as_u16();
    let duration_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    tracing::debug!(request = %id, %method, %path, status, duration_us, "answered");
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}
