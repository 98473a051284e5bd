//! `/quotas/…` and the quotas of workspaces, projects and the tenant.

use axum::extract::State;
use http::StatusCode;
use roost_api::quota::{Quota, SetQuota};
use roost_api::{Data, ErrorEnvelope};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::error::Failure;
use super::extract::{Json, Path};
use crate::app::Caller;
use crate::app::quota::{self, Who};

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(get_external_user_quota, set_external_user_quota, remove_external_user_quota))
        .routes(routes!(
            get_external_workspace_quota,
            set_external_workspace_quota,
            remove_external_workspace_quota
        ))
        .routes(routes!(get_workspace_quota, set_workspace_quota, remove_workspace_quota))
        .routes(routes!(get_project_quota, set_project_quota, remove_project_quota))
        .routes(routes!(get_tenant_quota, set_tenant_quota, remove_tenant_quota))
}

/// Limits of an end-user and what is in use.
#[utoipa::path(get, path = "/quotas/external/{external_user_id}", tag = "quotas",
    responses((status = 200, body = Data<Quota>), (status = "default", body = ErrorEnvelope)))]
async fn get_external_user_quota(
    caller: Caller,
    State(app): State<Shared>,
    Path(external_user_id): Path<String>,
) -> Result<Json<Data<Quota>>, Failure> {
    Ok(Json(Data { data: quota::get(&app, &caller, Who::ExternalUser(external_user_id)).await? }))
}

/// Changes the limits of an end-user.
#[utoipa::path(put, path = "/quotas/external/{external_user_id}", tag = "quotas",
    responses((status = 200, body = Data<Quota>), (status = "default", body = ErrorEnvelope)))]
async fn set_external_user_quota(
    caller: Caller,
    State(app): State<Shared>,
    Path(external_user_id): Path<String>,
    Json(request): Json<SetQuota>,
) -> Result<Json<Data<Quota>>, Failure> {
    Ok(Json(Data { data: quota::set(&app, &caller, Who::ExternalUser(external_user_id), request).await? }))
}

/// Takes the limits of an end-user away.
#[utoipa::path(delete, path = "/quotas/external/{external_user_id}", tag = "quotas",
    responses((status = 204), (status = "default", body = ErrorEnvelope)))]
async fn remove_external_user_quota(
    caller: Caller,
    State(app): State<Shared>,
    Path(external_user_id): Path<String>,
) -> Result<StatusCode, Failure> {
    quota::remove(&app, &caller, Who::ExternalUser(external_user_id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Limits of a customer and what is in use.
#[utoipa::path(get, path = "/quotas/external-workspaces/{external_workspace_id}", tag = "quotas",
    responses((status = 200, body = Data<Quota>), (status = "default", body = ErrorEnvelope)))]
async fn get_external_workspace_quota(
    caller: Caller,
    State(app): State<Shared>,
    Path(external_workspace_id): Path<String>,
) -> Result<Json<Data<Quota>>, Failure> {
    Ok(Json(Data { data: quota::get(&app, &caller, Who::ExternalWorkspace(external_workspace_id)).await? }))
}

/// Changes the limits of a customer.
#[utoipa::path(put, path = "/quotas/external-workspaces/{external_workspace_id}", tag = "quotas",
    responses((status = 200, body = Data<Quota>), (status = "default", body = ErrorEnvelope)))]
async fn set_external_workspace_quota(
    caller: Caller,
    State(app): State<Shared>,
    Path(external_workspace_id): Path<String>,
    Json(request): Json<SetQuota>,
) -> Result<Json<Data<Quota>>, Failure> {
    Ok(Json(Data {
        data: quota::set(&app, &caller, Who::ExternalWorkspace(external_workspace_id), request).await?,
    }))
}

/// Takes the limits of a customer away.
#[utoipa::path(delete, path = "/quotas/external-workspaces/{external_workspace_id}", tag = "quotas",
    responses((status = 204), (status = "default", body = ErrorEnvelope)))]
async fn remove_external_workspace_quota(
    caller: Caller,
    State(app): State<Shared>,
    Path(external_workspace_id): Path<String>,
) -> Result<StatusCode, Failure> {
    quota::remove(&app, &caller, Who::ExternalWorkspace(external_workspace_id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Limits of a workspace and what is in use.
#[utoipa::path(get, path = "/workspaces/{id}/quota", tag = "quotas",
    responses((status = 200, body = Data<Quota>), (status = "default", body = ErrorEnvelope)))]
async fn get_workspace_quota(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Data<Quota>>, Failure> {
    Ok(Json(Data { data: quota::get(&app, &caller, Who::Workspace(id)).await? }))
}

/// Changes the limits of a workspace.
#[utoipa::path(put, path = "/workspaces/{id}/quota", tag = "quotas",
    responses((status = 200, body = Data<Quota>), (status = "default", body = ErrorEnvelope)))]
async fn set_workspace_quota(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<SetQuota>,
) -> Result<Json<Data<Quota>>, Failure> {
    Ok(Json(Data { data: quota::set(&app, &caller, Who::Workspace(id), request).await? }))
}

/// Takes the limits of a workspace away.
#[utoipa::path(delete, path = "/workspaces/{id}/quota", tag = "quotas",
    responses((status = 204), (status = "default", body = ErrorEnvelope)))]
async fn remove_workspace_quota(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    quota::remove(&app, &caller, Who::Workspace(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Limits of a project and what is in use.
#[utoipa::path(get, path = "/projects/{id}/quota", tag = "quotas",
    responses((status = 200, body = Data<Quota>), (status = "default", body = ErrorEnvelope)))]
async fn get_project_quota(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Data<Quota>>, Failure> {
    Ok(Json(Data { data: quota::get(&app, &caller, Who::Project(id)).await? }))
}

/// Changes the limits of a project.
#[utoipa::path(put, path = "/projects/{id}/quota", tag = "quotas",
    responses((status = 200, body = Data<Quota>), (status = "default", body = ErrorEnvelope)))]
async fn set_project_quota(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<SetQuota>,
) -> Result<Json<Data<Quota>>, Failure> {
    Ok(Json(Data { data: quota::set(&app, &caller, Who::Project(id), request).await? }))
}

/// Takes the limits of a project away.
#[utoipa::path(delete, path = "/projects/{id}/quota", tag = "quotas",
    responses((status = 204), (status = "default", body = ErrorEnvelope)))]
async fn remove_project_quota(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    quota::remove(&app, &caller, Who::Project(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Limits of the whole tenant and what is in use.
#[utoipa::path(get, path = "/tenant/quota", tag = "quotas",
    responses((status = 200, body = Data<Quota>), (status = "default", body = ErrorEnvelope)))]
async fn get_tenant_quota(caller: Caller, State(app): State<Shared>) -> Result<Json<Data<Quota>>, Failure> {
    Ok(Json(Data { data: quota::get(&app, &caller, Who::Tenant).await? }))
}

/// Changes the limits of the whole tenant.
#[utoipa::path(put, path = "/tenant/quota", tag = "quotas",
    responses((status = 200, body = Data<Quota>), (status = "default", body = ErrorEnvelope)))]
async fn set_tenant_quota(
    caller: Caller,
    State(app): State<Shared>,
    Json(request): Json<SetQuota>,
) -> Result<Json<Data<Quota>>, Failure> {
    Ok(Json(Data { data: quota::set(&app, &caller, Who::Tenant, request).await? }))
}

/// Takes the limits of the whole tenant away.
#[utoipa::path(delete, path = "/tenant/quota", tag = "quotas",
    responses((status = 204), (status = "default", body = ErrorEnvelope)))]
async fn remove_tenant_quota(caller: Caller, State(app): State<Shared>) -> Result<StatusCode, Failure> {
    quota::remove(&app, &caller, Who::Tenant).await?;
    Ok(StatusCode::NO_CONTENT)
}
