//! `/usage`, `/usage/summary` and a sandbox's own usage.

use axum::extract::State;
use roost_api::usage::{SandboxUsage, UsageParameters, UsageReport, UsageSummary};
use roost_api::{Data, ErrorEnvelope};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::error::Failure;
use super::extract::{Json, Path, Query};
use crate::app::{Caller, usage};

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(get_usage))
        .routes(routes!(get_usage_summary))
        .routes(routes!(get_sandbox_usage))
}

/// Usage of a period, summed per group; running sandboxes are in it.
#[utoipa::path(get, path = "/usage", tag = "usage", params(UsageParameters),
    responses((status = 200, body = UsageReport), (status = "default", body = ErrorEnvelope)))]
async fn get_usage(
    caller: Caller,
    State(app): State<Shared>,
    Query(query): Query<UsageParameters>,
) -> Result<Json<UsageReport>, Failure> {
    Ok(Json(usage::report(&app, &caller, query).await?))
}

/// Usage of a period in one sum.
#[utoipa::path(get, path = "/usage/summary", tag = "usage", params(UsageParameters),
    responses((status = 200, body = Data<UsageSummary>), (status = "default", body = ErrorEnvelope)))]
async fn get_usage_summary(
    caller: Caller,
    State(app): State<Shared>,
    Query(query): Query<UsageParameters>,
) -> Result<Json<Data<UsageSummary>>, Failure> {
    Ok(Json(Data { data: usage::summary(&app, &caller, query).await? }))
}

/// What one sandbox has used.
#[utoipa::path(get, path = "/sandboxes/{id}/usage", tag = "usage",
    responses((status = 200, body = Data<SandboxUsage>), (status = "default", body = ErrorEnvelope)))]
async fn get_sandbox_usage(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Data<SandboxUsage>>, Failure> {
    Ok(Json(Data { data: usage::of_sandbox(&app, &caller, &id).await? }))
}
