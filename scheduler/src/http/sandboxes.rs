//! `/sandboxes`: making, finding, changing and ending them.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use roost_api::sandbox::{
    CreateSandbox, ExtendSandbox, ListSandboxes, PatchSandbox, Readiness, ReplaceTags, Sandbox,
    WaitParameters,
};
use roost_api::{Data, ErrorEnvelope, List};
use roost_domain::id::SandboxId;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::error::Failure;
use super::extract::{Json, OptionalJson, Path, Query, Raw, parse_json};
use super::idempotent::{self, Call};
use super::sse::{self, Frame};
use crate::app::Caller;
use crate::app::sandbox::run::Decision;
use crate::app::sandbox::{self, change, create, list, run, wait};

/// How long the readiness stream stays open without an answer.
const READINESS_PATIENCE: Duration = Duration::from_secs(300);

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(create_sandbox, list_sandboxes))
        .routes(routes!(get_sandbox, patch_sandbox, delete_sandbox))
        .routes(routes!(get_by_name))
        .routes(routes!(patch_tags))
        .routes(routes!(extend_sandbox))
        .routes(routes!(pause_sandbox))
        .routes(routes!(stop_sandbox))
        .routes(routes!(resume_sandbox))
        .routes(routes!(start_sandbox))
        .routes(routes!(get_readiness))
        .routes(routes!(stream_readiness))
}

/// Makes a sandbox.
///
/// 201 with `wait` once it runs or has failed; 202 while it is still being made.
#[utoipa::path(post, path = "/sandboxes", tag = "sandboxes", params(WaitParameters),
    request_body = CreateSandbox,
    responses(
        (status = 201, body = Data<Sandbox>),
        (status = 202, body = Data<Sandbox>),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn create_sandbox(
    caller: Caller,
    State(app): State<Shared>,
    Query(parameters): Query<WaitParameters>,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<Response, Failure> {
    let request: CreateSandbox = parse_json(&headers, &body)?;
    let patience = wait::parse_patience(parameters.wait.as_deref())?;
    let call = Call { method: "POST", target: "/sandboxes".to_owned(), body };
    let (work_app, work_caller) = (app.clone(), caller.clone());
    let work = move |effect| async move {
        let id = SandboxId::from_ulid(effect);
        let data = create::create(&work_app, &work_caller, id, request, patience).await?;
        let status =
            if sandbox::is_transitional(data.state) { StatusCode::ACCEPTED } else { StatusCode::CREATED };
        Ok((status, Json(Data { data })).into_response())
    };
    idempotent::once(app, caller, &headers, call, work).await
}

/// All sandboxes that match; with `limit` or `cursor` page by page.
#[utoipa::path(get, path = "/sandboxes", tag = "sandboxes", params(ListSandboxes),
    responses((status = 200, body = List<Sandbox>), (status = "default", body = ErrorEnvelope)))]
async fn list_sandboxes(
    caller: Caller,
    State(app): State<Shared>,
    Query(query): Query<ListSandboxes>,
) -> Result<Json<List<Sandbox>>, Failure> {
    Ok(Json(list::list(&app, &caller, query).await?))
}

/// One sandbox, by id or slug.
#[utoipa::path(get, path = "/sandboxes/{id}", tag = "sandboxes",
    responses((status = 200, body = Data<Sandbox>), (status = "default", body = ErrorEnvelope)))]
async fn get_sandbox(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Data<Sandbox>>, Failure> {
    Ok(Json(Data { data: sandbox::get(&app, &caller, &id).await? }))
}

/// The newest sandbox of this name.
#[utoipa::path(get, path = "/sandboxes/by-name/{name}", tag = "sandboxes",
    responses((status = 200, body = Data<Sandbox>), (status = "default", body = ErrorEnvelope)))]
async fn get_by_name(
    caller: Caller,
    State(app): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<Data<Sandbox>>, Failure> {
    Ok(Json(Data { data: sandbox::get_by_name(&app, &caller, name).await? }))
}

/// Changes what is given. The external ids never change.
#[utoipa::path(patch, path = "/sandboxes/{id}", tag = "sandboxes",
    responses((status = 200, body = Data<Sandbox>), (status = "default", body = ErrorEnvelope)))]
async fn patch_sandbox(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<PatchSandbox>,
) -> Result<Json<Data<Sandbox>>, Failure> {
    Ok(Json(Data { data: change::patch(&app, &caller, &id, request).await? }))
}

/// Destroys it: 202 while it is being taken down, 204 once nothing is left.
#[utoipa::path(delete, path = "/sandboxes/{id}", tag = "sandboxes",
    responses(
        (status = 202, body = Data<Sandbox>),
        (status = 204),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn delete_sandbox(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let (data, gone) = run::destroy(&app, &caller, &id).await?;
    Ok(if gone {
        StatusCode::NO_CONTENT.into_response()
    } else {
        (StatusCode::ACCEPTED, Json(Data { data })).into_response()
    })
}

/// Replaces the tags.
#[utoipa::path(patch, path = "/sandboxes/{id}/tags", tag = "sandboxes",
    responses((status = 200, body = Data<Sandbox>), (status = "default", body = ErrorEnvelope)))]
async fn patch_tags(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<ReplaceTags>,
) -> Result<Json<Data<Sandbox>>, Failure> {
    Ok(Json(Data { data: change::replace_tags(&app, &caller, &id, request.tags).await? }))
}

/// Starts the timeout anew.
#[utoipa::path(post, path = "/sandboxes/{id}/extend", tag = "sandboxes", request_body = Option<ExtendSandbox>,
    responses((status = 200, body = Data<Sandbox>), (status = "default", body = ErrorEnvelope)))]
async fn extend_sandbox(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    OptionalJson(request): OptionalJson<ExtendSandbox>,
) -> Result<Json<Data<Sandbox>>, Failure> {
    Ok(Json(Data { data: change::extend(&app, &caller, &id, request).await? }))
}

/// Keeps memory and disk, runs nothing.
#[utoipa::path(post, path = "/sandboxes/{id}/pause", tag = "sandboxes",
    responses(
        (status = 200, body = Data<Sandbox>),
        (status = 202, body = Data<Sandbox>),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn pause_sandbox(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<Response, Failure> {
    change_run(caller, app, id, Decision::Pause, headers, body).await
}

/// Keeps the disk, runs nothing.
#[utoipa::path(post, path = "/sandboxes/{id}/stop", tag = "sandboxes",
    responses(
        (status = 200, body = Data<Sandbox>),
        (status = 202, body = Data<Sandbox>),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn stop_sandbox(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<Response, Failure> {
    change_run(caller, app, id, Decision::Stop, headers, body).await
}

/// Runs it again.
#[utoipa::path(post, path = "/sandboxes/{id}/resume", tag = "sandboxes",
    responses(
        (status = 200, body = Data<Sandbox>),
        (status = 202, body = Data<Sandbox>),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn resume_sandbox(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<Response, Failure> {
    change_run(caller, app, id, Decision::Resume, headers, body).await
}

/// The same as `resume`.
#[utoipa::path(post, path = "/sandboxes/{id}/start", tag = "sandboxes",
    responses(
        (status = 200, body = Data<Sandbox>),
        (status = 202, body = Data<Sandbox>),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn start_sandbox(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<Response, Failure> {
    change_run(caller, app, id, Decision::Resume, headers, body).await
}

async fn change_run(
    caller: Caller,
    app: Shared,
    id: String,
    decision: Decision,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Failure> {
    let call = Call { method: "POST", target: format!("/sandboxes/{id}/{decision:?}"), body };
    let (work_app, work_caller) = (app.clone(), caller.clone());
    let work = move |_| async move {
        let data = run::change(&work_app, &work_caller, &id, decision).await?;
        let status = if sandbox::is_transitional(data.state) { StatusCode::ACCEPTED } else { StatusCode::OK };
        Ok((status, Json(Data { data })).into_response())
    };
    idempotent::once(app, caller, &headers, call, work).await
}

/// Whether it can be used now.
#[utoipa::path(get, path = "/sandboxes/{id}/readiness", tag = "sandboxes",
    responses((status = 200, body = Readiness), (status = "default", body = ErrorEnvelope)))]
async fn get_readiness(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Readiness>, Failure> {
    let sandbox = sandbox::get(&app, &caller, &id).await?;
    Ok(Json(readiness(sandbox)))
}

/// One event: `ready`, or `timeout` where it will not be.
#[utoipa::path(get, path = "/sandboxes/{id}/readiness/stream", tag = "sandboxes",
    responses(
        (status = 200, content_type = "text/event-stream", body = roost_api::event::StreamedEvent),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn stream_readiness(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let row = sandbox::row_for_reading(&app, &caller, &id).await?;
    Ok(sse::response(async_stream::stream! {
        if let Ok(row) = wait::until_settled(&app, row, READINESS_PATIENCE).await {
            let readiness = readiness(sandbox::record(&app, row));
            yield Frame::new(if readiness.ready { "ready" } else { "timeout" }, &readiness);
        }
    }))
}

fn readiness(sandbox: Sandbox) -> Readiness {
    Readiness { ready: sandbox.ready, state: sandbox.state, state_reason: sandbox.state_reason }
}
