//! `/sandboxes/{id}/exec`: one command and its output.

use axum::extract::State;
use axum::response::Response;
use futures::StreamExt as _;
use roost_api::ErrorEnvelope;
use roost_api::exec::{ExecRequest, ExecResult, OutputFrame};
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::error::Failure;
use super::extract::{Json, Path};
use super::sse::{self, Frame};
use crate::app::Caller;
use crate::app::guest::command::Frame as Output;
use crate::app::sandbox::command;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(exec)).routes(routes!(stream_exec))
}

/// Runs a command and answers when its shell has ended, not when its children have closed the pipes.
#[utoipa::path(post, path = "/sandboxes/{id}/exec", tag = "commands",
    responses((status = 200, body = ExecResult), (status = "default", body = ErrorEnvelope)))]
async fn exec(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<ExecRequest>,
) -> Result<Json<ExecResult>, Failure> {
    Ok(Json(command::exec(&app, &caller, &id, request).await?))
}

/// Runs a command; events `stdout` and `stderr` with one line each, then `exit`.
#[utoipa::path(post, path = "/sandboxes/{id}/exec/stream", tag = "commands",
    responses(
        (status = 200, content_type = "text/event-stream", body = roost_api::event::StreamedEvent),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn stream_exec(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<ExecRequest>,
) -> Result<Response, Failure> {
    let outputs = command::exec_stream(&app, &caller, &id, request).await?;
    Ok(sse::response(outputs.map(frame)))
}

pub(super) fn frame(output: Output) -> Frame {
    match output {
        Output::Stdout(line) => Frame::new("stdout", &OutputFrame { line }),
        Output::Stderr(line) => Frame::new("stderr", &OutputFrame { line }),
        Output::Exit(exit) => Frame::new("exit", &exit),
        Output::Broken(problem) => {
            Frame::new("error", &json!({ "code": "sandbox_unreachable", "message": problem }))
        }
    }
}
