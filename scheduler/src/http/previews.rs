//! `/sandboxes/{id}/previews`, `/expose`, `/preview-token`, and the share tokens of a preview under both its
//! paths.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use roost_api::preview::{
    ActiveShare, CreatePreview, ExposePort, ExposedPort, MintPreviewToken, MintShare, MintedPreviewToken,
    MintedShare, PatchPreview, Preview,
};
use roost_api::{Data, ErrorEnvelope, List};
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::error::Failure;
use super::extract::{Json, OptionalJson, Path};
use crate::app::Caller;
use crate::app::preview::{self, Place, share};

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(expose_port))
        .routes(routes!(create_preview, list_previews))
        .routes(routes!(get_preview, patch_preview, delete_preview))
        .routes(routes!(mint_share, list_shares, revoke_shares))
        .routes(routes!(mint_share_by_preview, list_shares_by_preview, revoke_shares_by_preview))
        .routes(routes!(mint_preview_token))
}

/// Makes a port public.
#[utoipa::path(post, path = "/sandboxes/{id}/expose", tag = "previews", request_body = Option<ExposePort>,
    responses((status = 200, body = ExposedPort), (status = "default", body = ErrorEnvelope)))]
async fn expose_port(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    OptionalJson(request): OptionalJson<ExposePort>,
) -> Result<Json<ExposedPort>, Failure> {
    Ok(Json(preview::expose(&app, &caller, &id, request).await?))
}

/// Publishes a port, privately unless asked otherwise; 200 with the preview it already has.
#[utoipa::path(post, path = "/sandboxes/{id}/previews", tag = "previews",
    responses(
        (status = 200, body = Data<Preview>),
        (status = 201, body = Data<Preview>),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn create_preview(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<CreatePreview>,
) -> Result<Response, Failure> {
    let (data, made) = preview::create(&app, &caller, &id, request).await?;
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(Data { data })).into_response())
}

/// The previews of a sandbox.
#[utoipa::path(get, path = "/sandboxes/{id}/previews", tag = "previews",
    responses((status = 200, body = List<Preview>), (status = "default", body = ErrorEnvelope)))]
async fn list_previews(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<List<Preview>>, Failure> {
    Ok(Json(List::whole(preview::list(&app, &caller, &id).await?)))
}

/// One preview.
#[utoipa::path(get, path = "/sandboxes/{id}/previews/{preview_id}", tag = "previews",
    responses((status = 200, body = Data<Preview>), (status = "default", body = ErrorEnvelope)))]
async fn get_preview(
    caller: Caller,
    State(app): State<Shared>,
    Path((id, preview_id)): Path<(String, String)>,
) -> Result<Json<Data<Preview>>, Failure> {
    Ok(Json(Data { data: preview::get(&app, &caller, &id, preview_id).await? }))
}

/// Changes name or visibility.
#[utoipa::path(patch, path = "/sandboxes/{id}/previews/{preview_id}", tag = "previews",
    responses((status = 200, body = Data<Preview>), (status = "default", body = ErrorEnvelope)))]
async fn patch_preview(
    caller: Caller,
    State(app): State<Shared>,
    Path((id, preview_id)): Path<(String, String)>,
    Json(request): Json<PatchPreview>,
) -> Result<Json<Data<Preview>>, Failure> {
    Ok(Json(Data { data: preview::patch(&app, &caller, &id, preview_id, request).await? }))
}

/// Takes the address away.
#[utoipa::path(delete, path = "/sandboxes/{id}/previews/{preview_id}", tag = "previews",
    responses((status = 204), (status = "default", body = ErrorEnvelope)))]
async fn delete_preview(
    caller: Caller,
    State(app): State<Shared>,
    Path((id, preview_id)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    preview::remove(&app, &caller, &id, preview_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Mints a token for browsers; it is shown only here.
#[utoipa::path(post, path = "/sandboxes/{id}/previews/{preview_id}/share", tag = "previews",
    request_body = Option<MintShare>,
    responses((status = 201, body = MintedShare), (status = "default", body = ErrorEnvelope)))]
async fn mint_share(
    caller: Caller,
    State(app): State<Shared>,
    Path((id, preview_id)): Path<(String, String)>,
    OptionalJson(request): OptionalJson<MintShare>,
) -> Result<Response, Failure> {
    let place = Place { sandbox: Some(id), preview: preview_id };
    Ok(shown_once(share::mint(&app, &caller, place, request).await?))
}

/// The same by the preview's id alone.
#[utoipa::path(post, path = "/previews/{preview_id}/share", tag = "previews",
    request_body = Option<MintShare>,
    responses((status = 201, body = MintedShare), (status = "default", body = ErrorEnvelope)))]
async fn mint_share_by_preview(
    caller: Caller,
    State(app): State<Shared>,
    Path(preview_id): Path<String>,
    OptionalJson(request): OptionalJson<MintShare>,
) -> Result<Response, Failure> {
    let place = Place { sandbox: None, preview: preview_id };
    Ok(shown_once(share::mint(&app, &caller, place, request).await?))
}

/// Tokens that still open the preview, without the tokens.
#[utoipa::path(get, path = "/sandboxes/{id}/previews/{preview_id}/share", tag = "previews",
    responses((status = 200, body = List<ActiveShare>), (status = "default", body = ErrorEnvelope)))]
async fn list_shares(
    caller: Caller,
    State(app): State<Shared>,
    Path((id, preview_id)): Path<(String, String)>,
) -> Result<Json<List<ActiveShare>>, Failure> {
    let place = Place { sandbox: Some(id), preview: preview_id };
    Ok(Json(List::whole(share::list(&app, &caller, place).await?)))
}

/// The same by the preview's id alone.
#[utoipa::path(get, path = "/previews/{preview_id}/share", tag = "previews",
    responses((status = 200, body = List<ActiveShare>), (status = "default", body = ErrorEnvelope)))]
async fn list_shares_by_preview(
    caller: Caller,
    State(app): State<Shared>,
    Path(preview_id): Path<String>,
) -> Result<Json<List<ActiveShare>>, Failure> {
    let place = Place { sandbox: None, preview: preview_id };
    Ok(Json(List::whole(share::list(&app, &caller, place).await?)))
}

/// Kills every outstanding token of the preview.
#[utoipa::path(delete, path = "/sandboxes/{id}/previews/{preview_id}/share", tag = "previews",
    responses((status = 204), (status = "default", body = ErrorEnvelope)))]
async fn revoke_shares(
    caller: Caller,
    State(app): State<Shared>,
    Path((id, preview_id)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    share::revoke(&app, &caller, Place { sandbox: Some(id), preview: preview_id }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The same by the preview's id alone.
#[utoipa::path(delete, path = "/previews/{preview_id}/share", tag = "previews",
    responses((status = 204), (status = "default", body = ErrorEnvelope)))]
async fn revoke_shares_by_preview(
    caller: Caller,
    State(app): State<Shared>,
    Path(preview_id): Path<String>,
) -> Result<StatusCode, Failure> {
    share::revoke(&app, &caller, Place { sandbox: None, preview: preview_id }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Mints a token for a port of a sandbox; it is shown only here.
#[utoipa::path(post, path = "/sandboxes/{id}/preview-token", tag = "previews",
    request_body = Option<MintPreviewToken>,
    responses((status = 201, body = Data<MintedPreviewToken>), (status = "default", body = ErrorEnvelope)))]
async fn mint_preview_token(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    OptionalJson(request): OptionalJson<MintPreviewToken>,
) -> Result<Response, Failure> {
    Ok(shown_once(Data { data: share::mint_preview_token(&app, &caller, &id, request).await? }))
}

/// An answer that no cache may keep.
fn shown_once<T: Serialize>(body: T) -> Response {
    let mut response = (StatusCode::CREATED, Json(body)).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
