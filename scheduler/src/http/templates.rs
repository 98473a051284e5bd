//! `/sandbox-templates` and `/templates`: what a sandbox can be made from.

use axum::extract::State;
use roost_api::template::{Template, TemplateCatalog};
use roost_api::{Data, ErrorEnvelope, List};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::error::Failure;
use super::extract::{Json, Path};
use crate::app::{Caller, template};

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list_templates))
        .routes(routes!(get_template))
        .routes(routes!(get_catalog))
}

/// The templates that some host has.
#[utoipa::path(get, path = "/sandbox-templates", tag = "templates",
    responses((status = 200, body = List<Template>), (status = "default", body = ErrorEnvelope)))]
async fn list_templates(caller: Caller, State(app): State<Shared>) -> Result<Json<List<Template>>, Failure> {
    Ok(Json(List::whole(template::list(&app, &caller).await?)))
}

/// One template.
#[utoipa::path(get, path = "/sandbox-templates/{id}", tag = "templates",
    responses((status = 200, body = Data<Template>), (status = "default", body = ErrorEnvelope)))]
async fn get_template(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Data<Template>>, Failure> {
    Ok(Json(Data { data: template::get(&app, &caller, &id).await? }))
}

/// The same as a catalog.
#[utoipa::path(get, path = "/templates", tag = "templates",
    responses((status = 200, body = TemplateCatalog), (status = "default", body = ErrorEnvelope)))]
async fn get_catalog(caller: Caller, State(app): State<Shared>) -> Result<Json<TemplateCatalog>, Failure> {
    Ok(Json(TemplateCatalog { templates: template::list(&app, &caller).await? }))
}
