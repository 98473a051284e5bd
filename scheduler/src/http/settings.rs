//! `/settings` and `/tenant/settings`: one resource under two paths.

use axum::extract::State;
use roost_api::settings::{PatchSettings, Settings};
use roost_api::{Data, ErrorEnvelope};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::error::Failure;
use super::extract::Json;
use crate::app::{Caller, settings};

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(get_settings, put_settings))
        .routes(routes!(get_tenant_settings, patch_tenant_settings))
}

/// The tenant's settings.
#[utoipa::path(get, path = "/settings", tag = "settings",
    responses((status = 200, body = Data<Settings>), (status = "default", body = ErrorEnvelope)))]
async fn get_settings(caller: Caller, State(app): State<Shared>) -> Result<Json<Data<Settings>>, Failure> {
    Ok(Json(Data { data: settings::get(&app, &caller).await? }))
}

/// Changes what is given; the rest stays.
#[utoipa::path(put, path = "/settings", tag = "settings",
    responses((status = 200, body = Data<Settings>), (status = "default", body = ErrorEnvelope)))]
async fn put_settings(
    caller: Caller,
    State(app): State<Shared>,
    Json(request): Json<PatchSettings>,
) -> Result<Json<Data<Settings>>, Failure> {
    Ok(Json(Data { data: settings::change(&app, &caller, request).await? }))
}

/// The tenant's settings.
#[utoipa::path(get, path = "/tenant/settings", tag = "settings",
    responses((status = 200, body = Data<Settings>), (status = "default", body = ErrorEnvelope)))]
async fn get_tenant_settings(
    caller: Caller,
    State(app): State<Shared>,
) -> Result<Json<Data<Settings>>, Failure> {
    Ok(Json(Data { data: settings::get(&app, &caller).await? }))
}

/// Changes what is given; the rest stays.
#[utoipa::path(patch, path = "/tenant/settings", tag = "settings",
    responses((status = 200, body = Data<Settings>), (status = "default", body = ErrorEnvelope)))]
async fn patch_tenant_settings(
    caller: Caller,
    State(app): State<Shared>,
    Json(request): Json<PatchSettings>,
) -> Result<Json<Data<Settings>>, Failure> {
    Ok(Json(Data { data: settings::change(&app, &caller, request).await? }))
}
