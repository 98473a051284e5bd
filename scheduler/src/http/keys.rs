//! `/api-keys` and `/whoami`.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use roost_api::key::{CreateKey, CreatedKey, Identity, Key, PatchKey};
use roost_api::{Data, ErrorEnvelope, List};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::error::Failure;
use super::extract::{Json, Path};
use crate::app::{Caller, key};

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(create_key, list_keys))
        .routes(routes!(get_key, patch_key, revoke_key))
        .routes(routes!(rotate_key))
        .routes(routes!(who_am_i))
}

/// Makes a key; its plaintext is in `data.key` and nowhere else, ever.
#[utoipa::path(post, path = "/api-keys", tag = "keys",
    responses((status = 201, body = Data<CreatedKey>), (status = "default", body = ErrorEnvelope)))]
async fn create_key(
    caller: Caller,
    State(app): State<Shared>,
    Json(request): Json<CreateKey>,
) -> Result<Response, Failure> {
    let data = key::create(&app, &caller, request).await?;
    Ok((StatusCode::CREATED, Json(Data { data })).into_response())
}

/// The tenant's keys, without their plaintext.
#[utoipa::path(get, path = "/api-keys", tag = "keys",
    responses((status = 200, body = List<Key>), (status = "default", body = ErrorEnvelope)))]
async fn list_keys(caller: Caller, State(app): State<Shared>) -> Result<Json<List<Key>>, Failure> {
    Ok(Json(List::whole(key::list(&app, &caller).await?)))
}

/// One key.
#[utoipa::path(get, path = "/api-keys/{id}", tag = "keys",
    responses((status = 200, body = Data<Key>), (status = "default", body = ErrorEnvelope)))]
async fn get_key(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Data<Key>>, Failure> {
    Ok(Json(Data { data: key::get(&app, &caller, id).await? }))
}

/// Changes name or scopes.
#[utoipa::path(patch, path = "/api-keys/{id}", tag = "keys",
    responses((status = 200, body = Data<Key>), (status = "default", body = ErrorEnvelope)))]
async fn patch_key(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<PatchKey>,
) -> Result<Json<Data<Key>>, Failure> {
    Ok(Json(Data { data: key::patch(&app, &caller, id, request).await? }))
}

/// Replaces a key by a new one; the old one is dead at once.
#[utoipa::path(post, path = "/api-keys/{id}/rotate", tag = "keys",
    responses((status = 201, body = Data<CreatedKey>), (status = "default", body = ErrorEnvelope)))]
async fn rotate_key(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let data = key::rotate(&app, &caller, id).await?;
    Ok((StatusCode::CREATED, Json(Data { data })).into_response())
}

/// Revokes a key at once.
#[utoipa::path(delete, path = "/api-keys/{id}", tag = "keys",
    responses((status = 204), (status = "default", body = ErrorEnvelope)))]
async fn revoke_key(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    key::revoke(&app, &caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whose credential this is and what it may do.
#[utoipa::path(get, path = "/whoami", tag = "keys",
    responses((status = 200, body = Data<Identity>), (status = "default", body = ErrorEnvelope)))]
async fn who_am_i(caller: Caller, State(app): State<Shared>) -> Result<Json<Data<Identity>>, Failure> {
    Ok(Json(Data { data: key::identify(&app, &caller).await? }))
}
