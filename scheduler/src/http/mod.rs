//! The tenant API over HTTP: reads requests, calls one operation, writes answers. Decides nothing.
//!
//! Owns the routes and with them the OpenAPI document, which is generated from the same annotations and
//! compared with the committed one. Errors become answers in `error.rs` and nowhere else.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware;
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;

use crate::app::{App, Error};

mod audits;
mod error;
mod events;
mod execs;
mod extract;
mod files;
mod idempotent;
mod keys;
mod previews;
mod processes;
mod quotas;
mod request;
mod sandboxes;
mod secrets;
mod settings;
mod sse;
mod templates;
mod usages;
mod variables;
mod wording;
mod workspaces;

/// Where the API lives.
pub const BASE: &str = "/api/v1";

type Shared = Arc<App>;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Roost tenant API",
        description = "Sandboxes, their files, commands, previews, secrets, audits and usage.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    security(("api_key" = [])),
    // What the data of streamed events is.
    components(schemas(roost_api::event::Event)),
)]
struct Document;

fn routes() -> (Router<Shared>, OpenApi) {
    let versioned = OpenApiRouter::new()
        .merge(sandboxes::routes())
        .merge(execs::routes())
        .merge(processes::routes())
        .merge(variables::routes())
        .merge(previews::routes())
        .merge(secrets::routes())
        .merge(audits::routes())
        .merge(usages::routes())
        .merge(quotas::routes())
        .merge(events::routes())
        .merge(keys::routes())
        .merge(workspaces::routes())
        .merge(settings::routes())
        .merge(templates::routes())
        .merge(files::routes())
        .layer(DefaultBodyLimit::max(extract::MAX_BODY_BYTES))
        .merge(files::upload_routes());
    OpenApiRouter::with_openapi(Document::openapi()).nest(BASE, versioned).split_for_parts()
}

/// The service: every route, a 404 for the rest, and a request id on every answer.
pub fn router(app: Arc<App>) -> Router {
    let (router, _) = routes();
    router
        .route("/openapi.json", axum::routing::get(|| async { axum::Json(document()) }))
        .fallback(nothing_here)
        .method_not_allowed_fallback(nothing_here)
        .layer(middleware::from_fn(request::identify))
        .with_state(app)
}

/// A path that does not exist, or not with this method, is the same to a caller: this server does not have
/// it.
async fn nothing_here(request: Request) -> error::Failure {
    Error::NoRoute { what: format!("{} {}", request.method(), request.uri().path()) }.into()
}

/// The document, generated; `crates/api/openapi.json` is this, committed.
pub fn document() -> OpenApi {
    let (_, mut document) = routes();
    document.info.version = "1".to_owned();
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    document.components.get_or_insert_default().add_security_scheme("api_key", bearer);
    // axum spells a rest-of-path parameter with a star, OpenAPI does not know such parameters.
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    document
}
