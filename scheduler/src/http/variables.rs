//! `/sandboxes/{id}/env`: variables of a sandbox.

use axum::extract::State;
use http::StatusCode;
use roost_api::variable::{SetVariables, Variable};
use roost_api::{ErrorEnvelope, List};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::error::Failure;
use super::extract::{Json, Path};
use crate::app::Caller;
use crate::app::sandbox::change;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(list_variables, set_variables)).routes(routes!(remove_variable))
}

/// The variables every command starts with.
#[utoipa::path(get, path = "/sandboxes/{id}/env", tag = "environment",
    responses((status = 200, body = List<Variable>), (status = "default", body = ErrorEnvelope)))]
async fn list_variables(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<List<Variable>>, Failure> {
    Ok(Json(List::whole(change::variables(&app, &caller, &id).await?)))
}

/// Sets variables and keeps the others.
#[utoipa::path(put, path = "/sandboxes/{id}/env", tag = "environment",
    responses((status = 200, body = List<Variable>), (status = "default", body = ErrorEnvelope)))]
async fn set_variables(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<SetVariables>,
) -> Result<Json<List<Variable>>, Failure> {
    Ok(Json(List::whole(change::set_variables(&app, &caller, &id, request).await?)))
}

/// Removes a variable.
#[utoipa::path(delete, path = "/sandboxes/{id}/env/{key}", tag = "environment",
    responses((status = 204), (status = "default", body = ErrorEnvelope)))]
async fn remove_variable(
    caller: Caller,
    State(app): State<Shared>,
    Path((id, key)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    change::remove_variable(&app, &caller, &id, key).await?;
    Ok(StatusCode::NO_CONTENT)
}
