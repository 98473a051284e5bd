//! `/egress/secrets`, `/egress/bindings`, and why a sandbox gets which secret.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use roost_api::secret::{
    Binding, CreateBinding, ListBindings, ListSecrets, PatchSecret, Resolution, Secret, SetSecret,
    SetSecretAnswer,
};
use roost_api::{Data, ErrorEnvelope, List};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::error::Failure;
use super::extract::{Json, Path, Query};
use crate::app::{Caller, secret};

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(set_secret, list_secrets))
        .routes(routes!(get_secret, patch_secret, delete_secret))
        .routes(routes!(create_binding, list_bindings))
        .routes(routes!(delete_binding))
        .routes(routes!(get_resolution))
}

/// Stores a secret; 200 where it replaced one of the same scope, owner and name. No answer ever holds the
/// value.
#[utoipa::path(post, path = "/egress/secrets", tag = "secrets",
    responses(
        (status = 200, body = SetSecretAnswer),
        (status = 201, body = SetSecretAnswer),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn set_secret(
    caller: Caller,
    State(app): State<Shared>,
    Json(request): Json<SetSecret>,
) -> Result<Response, Failure> {
    let (data, binding, created) = secret::set(&app, &caller, request).await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(SetSecretAnswer { data, binding })).into_response())
}

/// Secrets, without their values.
#[utoipa::path(get, path = "/egress/secrets", tag = "secrets", params(ListSecrets),
    responses((status = 200, body = List<Secret>), (status = "default", body = ErrorEnvelope)))]
async fn list_secrets(
    caller: Caller,
    State(app): State<Shared>,
    Query(query): Query<ListSecrets>,
) -> Result<Json<List<Secret>>, Failure> {
    Ok(Json(List::whole(secret::list(&app, &caller, query).await?)))
}

/// One secret, without its value.
#[utoipa::path(get, path = "/egress/secrets/{id}", tag = "secrets",
    responses((status = 200, body = Data<Secret>), (status = "default", body = ErrorEnvelope)))]
async fn get_secret(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Data<Secret>>, Failure> {
    Ok(Json(Data { data: secret::get(&app, &caller, id).await? }))
}

/// Rotates, disables or narrows. To widen what may receive the value, send the value too.
#[utoipa::path(patch, path = "/egress/secrets/{id}", tag = "secrets",
    responses((status = 200, body = Data<Secret>), (status = "default", body = ErrorEnvelope)))]
async fn patch_secret(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<PatchSecret>,
) -> Result<Json<Data<Secret>>, Failure> {
    Ok(Json(Data { data: secret::patch(&app, &caller, id, request).await? }))
}

/// Removes a secret, its bindings and its value.
#[utoipa::path(delete, path = "/egress/secrets/{id}", tag = "secrets",
    responses((status = 204), (status = "default", body = ErrorEnvelope)))]
async fn delete_secret(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    secret::remove(&app, &caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives a secret to one sandbox directly.
#[utoipa::path(post, path = "/egress/bindings", tag = "secrets",
    responses((status = 201, body = Data<Binding>), (status = "default", body = ErrorEnvelope)))]
async fn create_binding(
    caller: Caller,
    State(app): State<Shared>,
    Json(request): Json<CreateBinding>,
) -> Result<Response, Failure> {
    let data = secret::bind(&app, &caller, request).await?;
    Ok((StatusCode::CREATED, Json(Data { data })).into_response())
}

/// Bindings.
#[utoipa::path(get, path = "/egress/bindings", tag = "secrets", params(ListBindings),
    responses((status = 200, body = List<Binding>), (status = "default", body = ErrorEnvelope)))]
async fn list_bindings(
    caller: Caller,
    State(app): State<Shared>,
    Query(query): Query<ListBindings>,
) -> Result<Json<List<Binding>>, Failure> {
    Ok(Json(List::whole(secret::bindings(&app, &caller, query).await?)))
}

/// Takes a binding away.
#[utoipa::path(delete, path = "/egress/bindings/{id}", tag = "secrets",
    responses((status = 204), (status = "default", body = ErrorEnvelope)))]
async fn delete_binding(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    secret::unbind(&app, &caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Which secret each variable of a sandbox would get now, and why.
#[utoipa::path(get, path = "/sandboxes/{id}/secrets/resolution", tag = "secrets",
    responses((status = 200, body = List<Resolution>), (status = "default", body = ErrorEnvelope)))]
async fn get_resolution(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<List<Resolution>>, Failure> {
    Ok(Json(List::whole(secret::explain(&app, &caller, &id).await?)))
}
