//! `/sandboxes/{id}/fs` and `/files`: files in and out, with the older spellings the SDK falls back to.

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt as _, TryStreamExt as _};
use http::{HeaderValue, header};
use roost_api::file::{
    Directory, FileInfo, ListParameters, PathParameters, StatFile, TreeNode, WriteFile, WriteFileLegacy,
    WriteFiles, WriteFilesResult,
};
use roost_api::{Data, ErrorEnvelope};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::error::Failure;
use super::extract::{self, Json, Path, Query};
use super::sse::{self, Frame};
use crate::app::Caller;
use crate::app::sandbox::files;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(download_file))
        .routes(routes!(stat_file))
        .routes(routes!(stat_file_legacy))
        .routes(routes!(get_tree))
        .routes(routes!(watch_files))
        .routes(routes!(download_file_legacy))
}

/// Those whose bodies carry files.
pub(super) fn upload_routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(write_file))
        .routes(routes!(write_files))
        .routes(routes!(write_file_legacy, list_files))
        .routes(routes!(write_files_legacy))
        .layer(DefaultBodyLimit::max(extract::MAX_FILE_BODY_BYTES))
}

/// Writes one file whole; directories above it are made.
#[utoipa::path(post, path = "/sandboxes/{id}/fs/write", tag = "files",
    responses((status = 200, body = Data<FileInfo>), (status = "default", body = ErrorEnvelope)))]
async fn write_file(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<WriteFile>,
) -> Result<Json<Data<FileInfo>>, Failure> {
    Ok(Json(Data { data: files::write(&app, &caller, &id, request).await? }))
}

/// The older spelling of `fs/write`.
#[utoipa::path(post, path = "/sandboxes/{id}/files", tag = "files",
    responses((status = 200, body = Data<FileInfo>), (status = "default", body = ErrorEnvelope)))]
async fn write_file_legacy(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<WriteFileLegacy>,
) -> Result<Json<Data<FileInfo>>, Failure> {
    Ok(Json(Data { data: files::write(&app, &caller, &id, request.into()).await? }))
}

/// Writes several files; each is written or says why not.
#[utoipa::path(post, path = "/sandboxes/{id}/fs/write-many", tag = "files",
    responses((status = 200, body = WriteFilesResult), (status = "default", body = ErrorEnvelope)))]
async fn write_files(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<WriteFiles>,
) -> Result<Json<WriteFilesResult>, Failure> {
    Ok(Json(files::write_many(&app, &caller, &id, request.files).await?))
}

/// The older spelling of `fs/write-many`.
#[utoipa::path(post, path = "/sandboxes/{id}/files/write-many", tag = "files",
    responses((status = 200, body = WriteFilesResult), (status = "default", body = ErrorEnvelope)))]
async fn write_files_legacy(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<WriteFiles>,
) -> Result<Json<WriteFilesResult>, Failure> {
    Ok(Json(files::write_many(&app, &caller, &id, request.files).await?))
}

/// A file's bytes.
#[utoipa::path(get, path = "/sandboxes/{id}/fs/download", tag = "files", params(PathParameters),
    responses(
        (status = 200, content_type = "application/octet-stream", body = Vec<u8>),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn download_file(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<PathParameters>,
) -> Result<Response, Failure> {
    download(&app, &caller, &id, &query.path).await
}

/// The older spelling of `fs/download`; the path counts from the root.
#[utoipa::path(get, path = "/sandboxes/{id}/files/{*path}", tag = "files",
    params(("id" = String, Path), ("path" = String, Path)),
    responses(
        (status = 200, content_type = "application/octet-stream", body = Vec<u8>),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn download_file_legacy(
    caller: Caller,
    State(app): State<Shared>,
    Path((id, path)): Path<(String, String)>,
) -> Result<Response, Failure> {
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    download(&app, &caller, &id, &path).await
}

/// Never JSON: the SDK would parse a JSON file instead of handing it out.
async fn download(app: &Shared, caller: &Caller, id: &str, path: &str) -> Result<Response, Failure> {
    let chunks = files::read(app, caller, id, path).await?;
    let body = Body::from_stream(chunks.map_err(std::io::Error::other));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// What a path is.
#[utoipa::path(post, path = "/sandboxes/{id}/fs/stat", tag = "files",
    responses((status = 200, body = Data<FileInfo>), (status = "default", body = ErrorEnvelope)))]
async fn stat_file(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<StatFile>,
) -> Result<Json<Data<FileInfo>>, Failure> {
    Ok(Json(Data { data: files::stat(&app, &caller, &id, &request.path).await? }))
}

/// The older spelling of `fs/stat`.
#[utoipa::path(post, path = "/sandboxes/{id}/files/stat", tag = "files",
    responses((status = 200, body = Data<FileInfo>), (status = "default", body = ErrorEnvelope)))]
async fn stat_file_legacy(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Json(request): Json<StatFile>,
) -> Result<Json<Data<FileInfo>>, Failure> {
    Ok(Json(Data { data: files::stat(&app, &caller, &id, &request.path).await? }))
}

/// What is in a directory.
#[utoipa::path(get, path = "/sandboxes/{id}/files", tag = "files", params(ListParameters),
    responses((status = 200, body = Directory), (status = "default", body = ErrorEnvelope)))]
async fn list_files(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<ListParameters>,
) -> Result<Json<Directory>, Failure> {
    Ok(Json(files::list(&app, &caller, &id, query.path.as_deref(), query.depth).await?))
}

/// A directory and what is below it.
#[utoipa::path(get, path = "/sandboxes/{id}/files/tree", tag = "files", params(ListParameters),
    responses((status = 200, body = TreeNode), (status = "default", body = ErrorEnvelope)))]
async fn get_tree(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<ListParameters>,
) -> Result<Json<TreeNode>, Failure> {
    Ok(Json(files::tree(&app, &caller, &id, query.path.as_deref(), query.depth).await?))
}

/// Changes below a directory, as they happen.
#[utoipa::path(get, path = "/sandboxes/{id}/files/watch", tag = "files", params(ListParameters),
    responses(
        (status = 200, content_type = "text/event-stream", body = roost_api::event::StreamedEvent),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn watch_files(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<ListParameters>,
) -> Result<Response, Failure> {
    let changes = files::watch(&app, &caller, &id, query.path.as_deref()).await?;
    Ok(sse::response(changes.map(|change| Frame::new("change", &change))))
}
