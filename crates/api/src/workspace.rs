//! Workspaces and projects, which sort sandboxes; both are also made on the way by `POST /sandboxes`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::Timestamp;

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct CreateWorkspace {
    pub name: String,
    #[serde(default)]
    pub slug: Option<String>,
    /// An existing workspace of this external id is answered instead, with `reused`.
    #[serde(default)]
    pub external_workspace_id: Option<String>,
    #[serde(default)]
    pub allow_duplicate_name: Option<bool>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Workspace {
    pub id: String,
    pub name: String,
    pub slug: String,
    pub external_workspace_id: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WorkspaceAnswer {
    pub data: Workspace,
    pub reused: bool,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct CreateProject {
    pub name: String,
    #[serde(default)]
    pub slug: Option<String>,
    #[serde(default)]
    pub workspace_id: Option<String>,
    #[serde(default)]
    pub workspace_slug: Option<String>,
    #[serde(default)]
    pub external_project_id: Option<String>,
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<BTreeMap<String, Value>>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Project {
    pub id: String,
    pub workspace_id: String,
    pub name: String,
    pub slug: String,
    pub external_project_id: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct ListProjects {
    pub workspace_id: Option<String>,
}
