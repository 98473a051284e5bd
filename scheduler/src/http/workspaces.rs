//! `/workspaces` and `/projects`.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use roost_api::workspace::{
    CreateProject, CreateWorkspace, ListProjects, Project, Workspace, WorkspaceAnswer,
};
use roost_api::{Data, ErrorEnvelope, List};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::error::Failure;
use super::extract::{Json, Path, Query};
use crate::app::{Caller, workspace};

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(create_workspace, list_workspaces))
        .routes(routes!(get_workspace))
        .routes(routes!(create_project, list_projects))
        .routes(routes!(get_project))
}

/// Makes a workspace; 200 and `reused` where one of this external id exists.
#[utoipa::path(post, path = "/workspaces", tag = "workspaces",
    responses(
        (status = 200, body = WorkspaceAnswer),
        (status = 201, body = WorkspaceAnswer),
        (status = "default", body = ErrorEnvelope),
    ))]
async fn create_workspace(
    caller: Caller,
    State(app): State<Shared>,
    Json(request): Json<CreateWorkspace>,
) -> Result<Response, Failure> {
    let (data, reused) = workspace::create(&app, &caller, request).await?;
    let status = if reused { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(WorkspaceAnswer { data, reused })).into_response())
}

/// The workspaces the credential can see.
#[utoipa::path(get, path = "/workspaces", tag = "workspaces",
    responses((status = 200, body = List<Workspace>), (status = "default", body = ErrorEnvelope)))]
async fn list_workspaces(
    caller: Caller,
    State(app): State<Shared>,
) -> Result<Json<List<Workspace>>, Failure> {
    Ok(Json(List::whole(workspace::list(&app, &caller).await?)))
}

/// One workspace.
#[utoipa::path(get, path = "/workspaces/{id}", tag = "workspaces",
    responses((status = 200, body = Data<Workspace>), (status = "default", body = ErrorEnvelope)))]
async fn get_workspace(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Data<Workspace>>, Failure> {
    Ok(Json(Data { data: workspace::get(&app, &caller, id).await? }))
}

/// Makes a project, or answers the one of this slug.
#[utoipa::path(post, path = "/projects", tag = "workspaces",
    responses((status = 201, body = Data<Project>), (status = "default", body = ErrorEnvelope)))]
async fn create_project(
    caller: Caller,
    State(app): State<Shared>,
    Json(request): Json<CreateProject>,
) -> Result<Response, Failure> {
    let data = workspace::create_project(&app, &caller, request).await?;
    Ok((StatusCode::CREATED, Json(Data { data })).into_response())
}

/// The projects the credential can see.
#[utoipa::path(get, path = "/projects", tag = "workspaces", params(ListProjects),
    responses((status = 200, body = List<Project>), (status = "default", body = ErrorEnvelope)))]
async fn list_projects(
    caller: Caller,
    State(app): State<Shared>,
    Query(query): Query<ListProjects>,
) -> Result<Json<List<Project>>, Failure> {
    Ok(Json(List::whole(workspace::list_projects(&app, &caller, query.workspace_id).await?)))
}

/// One project.
#[utoipa::path(get, path = "/projects/{id}", tag = "workspaces",
    responses((status = 200, body = Data<Project>), (status = "default", body = ErrorEnvelope)))]
async fn get_project(
    caller: Caller,
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Data<Project>>, Failure> {
    Ok(Json(Data { data: workspace::get_project(&app, &caller, id).await? }))
}
