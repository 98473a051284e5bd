//! Secrets, bindings and the explanation of which secret a sandbox would get.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::{Sensitive, Timestamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    User,
    ExternalUser,
    ExternalWorkspace,
    Workspace,
    Tenant,
}

/// The same (scope, owner, name) again replaces the value.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSecret {
    pub name: String,
    #[schema(value_type = String, write_only)]
    pub value: Sensitive,
    /// `api_key`, `oauth_token`, `bearer`, `basic` or `generic`.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    #[serde(default)]
    pub scope: Option<Scope>,
    /// The environment variable that holds the placeholder.
    #[serde(default)]
    pub expose_as_env: Option<String>,
    #[serde(default)]
    pub workspace_id: Option<String>,
    #[serde(default)]
    pub owner_user_id: Option<String>,
    #[serde(default)]
    pub external_user_id: Option<String>,
    #[serde(default)]
    pub external_workspace_id: Option<String>,
    /// With `expose_as_env`: also binds the secret to this sandbox.
    #[serde(default)]
    pub resource_id: Option<String>,
    #[serde(default)]
    pub resource_type: Option<String>,
    /// Hosts that may receive the value, like `api.example.com` or `*.example.com`.
    #[serde(default)]
    pub allowed_hosts: Option<Vec<String>>,
    /// Header names beyond the usual credential headers.
    #[serde(default)]
    pub slots: Option<Vec<String>>,
    #[serde(default)]
    pub provider: Option<String>,
    #[serde(default)]
    #[schema(value_type = Option<String>, write_only)]
    pub refresh_token: Option<Sensitive>,
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<BTreeMap<String, Value>>,
}

/// Widening what may receive the value needs the value again in the same call.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchSecret {
    #[schema(value_type = Option<String>, write_only)]
    pub value: Option<Sensitive>,
    pub enabled: Option<bool>,
    pub allowed_hosts: Option<Vec<String>>,
    pub slots: Option<Vec<String>>,
    #[schema(value_type = Option<String>, write_only)]
    pub refresh_token: Option<Sensitive>,
    pub expires_at: Option<Timestamp>,
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<BTreeMap<String, Value>>,
}

/// Everything about a secret but its value, which no call returns.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Secret {
    pub id: String,
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub scope: Scope,
    pub expose_as_env: Option<String>,
    pub workspace_id: Option<String>,
    pub owner_user_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_workspace_id: Option<String>,
    pub masked_value: String,
    pub allowed_hosts: Vec<String>,
    pub slots: Vec<String>,
    pub provider: Option<String>,
    pub enabled: bool,
    /// `active`, `disabled` or `expired`.
    pub status: String,
    pub has_value: bool,
    pub version: u64,
    pub last_used_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    #[schema(value_type = Object)]
    pub metadata: BTreeMap<String, Value>,
    /// `unbound`: no host may receive it, so it is never put into a request.
    pub warnings: Vec<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SetSecretAnswer {
    pub data: Secret,
    pub binding: Option<Binding>,
}

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct ListSecrets {
    pub scope: Option<String>,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub provider: Option<String>,
    pub name: Option<String>,
    pub workspace_id: Option<String>,
    pub owner_user_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_workspace_id: Option<String>,
    pub resource_id: Option<String>,
    pub resource_type: Option<String>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateBinding {
    pub secret_id: String,
    pub resource_id: String,
    /// `sandbox`.
    #[serde(default)]
    pub resource_type: Option<String>,
    #[serde(default)]
    pub expose_as_env: Option<String>,
    /// Needed to bind another end-user's secret.
    #[serde(default)]
    #[schema(value_type = Option<String>, write_only)]
    pub value: Option<Sensitive>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Binding {
    pub id: String,
    pub secret_id: String,
    pub resource_id: String,
    pub resource_type: String,
    pub expose_as_env: String,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct ListBindings {
    pub secret_id: Option<String>,
    pub resource_id: Option<String>,
    pub resource_type: Option<String>,
}

/// For one environment variable: which secret the sandbox would get now, and why not the others.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Resolution {
    pub env: String,
    pub secret_id: Option<String>,
    pub resolved_by: Option<String>,
    pub unbound: bool,
    pub allowed_hosts: Vec<String>,
    pub steps: Vec<ResolutionStep>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ResolutionStep {
    pub step: String,
    /// `matched`, or why this step gives nothing.
    pub outcome: String,
    pub secret_id: Option<String>,
}
