//! `/sandboxes/{id}/events` and `/events/stream`: events as they happen.

use axum::extract::State;
use axum::response::Response;
use futures::StreamExt as _;
use http::HeaderMap;
use roost_api::ErrorEnvelope;
use roost_api::event::EventParameters;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::error::Failure;
use super::extract::{Path, Query};
use super::sse::{self, Frame};
use crate::app::Caller;
use crate::app::event::{self, Wanted};

/// The last event a client has, when it comes back.
const LAST_EVENT_ID: &str = "last-event-id";

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(stream_sandbox_events)).routes(routes!(stream_events))
}

/// Events of one sandbox from now on, or after `Last-Event-ID`.
#[utoipa::path(get, path = "/sandboxes/{id}/events", tag = "events", params(EventParameters),
    responses(
        (status = 200, content_type = "text/event-stream", body = roost_api::event::StreamedEvent),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn stream_sandbox_events(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<EventParameters>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    stream(app, caller, Some(id), query, &headers).await
}

/// Events of everything the credential sees from now on, or after `Last-Event-ID`.
#[utoipa::path(get, path = "/events/stream", tag = "events", params(EventParameters),
    responses(
        (status = 200, content_type = "text/event-stream", body = roost_api::event::StreamedEvent),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn stream_events(
    caller: Caller,
    State(app): State<Shared>,
    Query(query): Query<EventParameters>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    stream(app, caller, None, query, &headers).await
}

async fn stream(
    app: Shared,
    caller: Caller,
    sandbox: Option<String>,
    query: EventParameters,
    headers: &HeaderMap,
) -> Result<Response, Failure> {
    let types = query.types.as_deref().unwrap_or("").split(',').map(str::trim);
    let wanted = Wanted {
        sandbox,
        types: types.filter(|kind| !kind.is_empty()).map(str::to_owned).collect(),
        after: headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()).map(str::to_owned),
    };
    let events = event::follow(app, caller, wanted).await?;
    Ok(sse::response(events.map(|event| Frame::new(event.kind.clone(), &event).with_id(event.id))))
}
