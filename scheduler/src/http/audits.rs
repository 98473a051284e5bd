//! `/egress/audit` and `/audit-log`.

use axum::extract::State;
use roost_api::audit::{AuditRow, EgressRow, ListAuditLog, ListEgressAudit};
use roost_api::{Data, ErrorEnvelope, List};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::error::Failure;
use super::extract::{Json, Path, Query};
use crate::app::Caller;
use crate::app::audit::list;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list_egress))
        .routes(routes!(get_egress_row))
        .routes(routes!(list_audit_log))
}

/// What sandboxes requested from the outside, oldest first.
#[utoipa::path(get, path = "/egress/audit", tag = "audit", params(ListEgressAudit),
    responses((status = 200, body = List<EgressRow>), (status = "default", body = ErrorEnvelope)))]
async fn list_egress(
    caller: Caller,
    State(app): State<Shared>,
    Query(query): Query<ListEgressAudit>,
) -> Result<Json<List<EgressRow>>, Failure> {
    Ok(Json(list::egress(&app, &caller, query).await?))
}

/// One outbound request.
#[utoipa::path(get, path = "/egress/audit/{id}", tag = "audit",
    responses((status = 200, body = Data<EgressRow>), (status = "default", body = ErrorEnvelope)))]
async fn get_egress_row(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Data<EgressRow>>, Failure> {
    Ok(Json(Data { data: list::egress_row(&app, &caller, &id).await? }))
}

/// What was done through the API, newest first.
#[utoipa::path(get, path = "/audit-log", tag = "audit", params(ListAuditLog),
    responses((status = 200, body = List<AuditRow>), (status = "default", body = ErrorEnvelope)))]
async fn list_audit_log(
    caller: Caller,
    State(app): State<Shared>,
    Query(query): Query<ListAuditLog>,
) -> Result<Json<List<AuditRow>>, Failure> {
    Ok(Json(list::control(&app, &caller, query).await?))
}
