//! `/sandboxes/{id}/commands` and `/processes`: what outlives its call, in both spellings of the SDK.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use http::StatusCode;
use roost_api::process::{
    CommandResult, KillCommand, LogParameters, Process, ProcessLogs, RunCommand, StartProcess,
};
use roost_api::{Data, ErrorEnvelope, List};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::Failure;
use super::extract::{Json, OptionalJson, Path, Query};
use super::{Shared, execs, sse};
use crate::app::Caller;
use crate::app::sandbox::{command, processes};

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(run_command, list_commands))
        .routes(routes!(get_command))
        .routes(routes!(get_command_logs))
        .routes(routes!(kill_command))
        .routes(routes!(start_process, list_processes))
        .routes(routes!(get_process, stop_process))
        .routes(routes!(get_process_logs))
        .routes(routes!(stream_process))
}

/// Runs a command to its end, or with `detached` leaves it running.
#[utoipa::path(post, path = "/sandboxes/{id}/commands", tag = "commands",
    responses(
        (status = 200, body = Data<CommandResult>),
        (status = 201, body = Data<CommandResult>),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn run_command(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<RunCommand>,
) -> Result<Response, Failure> {
    let data = command::run(&app, &caller, &id, request).await?;
    let status = if data.detached { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(Data { data })).into_response())
}

/// What was started here, the ended included for a while.
#[utoipa::path(get, path = "/sandboxes/{id}/commands", tag = "commands",
    responses((status = 200, body = List<Process>), (status = "default", body = ErrorEnvelope)))]
async fn list_commands(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<List<Process>>, Failure> {
    Ok(Json(List::whole(processes::list(&app, &caller, &id).await?)))
}

/// One command.
#[utoipa::path(get, path = "/sandboxes/{id}/commands/{pid}", tag = "commands",
    responses((status = 200, body = Data<Process>), (status = "default", body = ErrorEnvelope)))]
async fn get_command(
    caller: Caller,
    State(app): State<Shared>,
    Path((id, pid)): Path<(String, String)>,
) -> Result<Json<Data<Process>>, Failure> {
    Ok(Json(Data { data: processes::get(&app, &caller, &id, &pid).await? }))
}

/// What a command wrote, the last lines of it with `tail`.
#[utoipa::path(get, path = "/sandboxes/{id}/commands/{pid}/logs", tag = "commands", params(LogParameters),
    responses((status = 200, body = ProcessLogs), (status = "default", body = ErrorEnvelope)))]
async fn get_command_logs(
    caller: Caller,
    State(app): State<Shared>,
    Path((id, pid)): Path<(String, String)>,
    Query(query): Query<LogParameters>,
) -> Result<Json<ProcessLogs>, Failure> {
    Ok(Json(ProcessLogs { data: processes::logs(&app, &caller, &id, &pid, query.tail).await? }))
}

/// Sends a signal to a command's process group.
#[utoipa::path(post, path = "/sandboxes/{id}/commands/{pid}/kill", tag = "commands",
    request_body = Option<KillCommand>,
    responses((status = 200, body = Data<Process>), (status = "default", body = ErrorEnvelope)))]
async fn kill_command(
    caller: Caller,
    State(app): State<Shared>,
    Path((id, pid)): Path<(String, String)>,
    OptionalJson(request): OptionalJson<KillCommand>,
) -> Result<Json<Data<Process>>, Failure> {
    Ok(Json(Data { data: processes::kill(&app, &caller, &id, &pid, request.signal).await? }))
}

/// Starts a process that runs on by itself.
#[utoipa::path(post, path = "/sandboxes/{id}/processes", tag = "commands",
    responses((status = 201, body = Data<Process>), (status = "default", body = ErrorEnvelope)))]
async fn start_process(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<StartProcess>,
) -> Result<Response, Failure> {
    let data = command::start(&app, &caller, &id, request).await?;
    Ok((StatusCode::CREATED, Json(Data { data })).into_response())
}

/// What was started here, the ended included for a while.
#[utoipa::path(get, path = "/sandboxes/{id}/processes", tag = "commands",
    responses((status = 200, body = List<Process>), (status = "default", body = ErrorEnvelope)))]
async fn list_processes(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<List<Process>>, Failure> {
    Ok(Json(List::whole(processes::list(&app, &caller, &id).await?)))
}

/// One process.
#[utoipa::path(get, path = "/sandboxes/{id}/processes/{pid}", tag = "commands",
    responses((status = 200, body = Data<Process>), (status = "default", body = ErrorEnvelope)))]
async fn get_process(
    caller: Caller,
    State(app): State<Shared>,
    Path((id, pid)): Path<(String, String)>,
) -> Result<Json<Data<Process>>, Failure> {
    Ok(Json(Data { data: processes::get(&app, &caller, &id, &pid).await? }))
}

/// Ends a process: asks it first, and ends it 5 seconds later.
#[utoipa::path(delete, path = "/sandboxes/{id}/processes/{pid}", tag = "commands",
    responses((status = 204), (status = "default", body = ErrorEnvelope)))]
async fn stop_process(
    caller: Caller,
    State(app): State<Shared>,
    Path((id, pid)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    processes::stop(&app, &caller, &id, &pid).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a process wrote, the last lines of it with `tail`.
#[utoipa::path(get, path = "/sandboxes/{id}/processes/{pid}/logs", tag = "commands", params(LogParameters),
    responses((status = 200, body = ProcessLogs), (status = "default", body = ErrorEnvelope)))]
async fn get_process_logs(
    caller: Caller,
    State(app): State<Shared>,
    Path((id, pid)): Path<(String, String)>,
    Query(query): Query<LogParameters>,
) -> Result<Json<ProcessLogs>, Failure> {
    Ok(Json(ProcessLogs { data: processes::logs(&app, &caller, &id, &pid, query.tail).await? }))
}

/// What a process wrote, then what it writes; the last event is `exit`.
#[utoipa::path(get, path = "/sandboxes/{id}/processes/{pid}/stream", tag = "commands",
    responses(
        (status = 200, content_type = "text/event-stream", body = roost_api::event::StreamedEvent),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn stream_process(
    caller: Caller,
    State(app): State<Shared>,
    Path((id, pid)): Path<(String, String)>,
) -> Result<Response, Failure> {
    let outputs = processes::follow(&app, &caller, &id, &pid).await?;
    Ok(sse::response(outputs.map(execs::frame)))
}
