//! The two audits: outbound requests of sandboxes, and what was done through the API.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::Timestamp;

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct ListEgressAudit {
    pub resource_id: Option<String>,
    pub resource_type: Option<String>,
    pub host: Option<String>,
    pub action: Option<String>,
    pub external_user_id: Option<String>,
    pub external_workspace_id: Option<String>,
    pub external_project_id: Option<String>,
    pub secret_id: Option<String>,
    /// A duration like `7d`, `12h`, `30m`, or a time.
    pub since: Option<String>,
    pub until: Option<String>,
    pub limit: Option<u32>,
    pub cursor: Option<String>,
}

/// One outbound request, its whole identity, and which credential it got.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EgressRow {
    pub id: String,
    pub inserted_at: Timestamp,
    pub tenant_id: String,
    pub workspace_id: String,
    pub project_id: String,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub resource_id: String,
    pub resource_type: String,
    pub actor_id: String,
    pub action: String,
    pub effect: String,
    pub scheme: Option<String>,
    pub host: Option<String>,
    pub port: Option<u32>,
    pub method: Option<String>,
    pub path: Option<String>,
    pub status_code: Option<u32>,
    pub duration_ms: Option<u64>,
    pub bytes_in: Option<u64>,
    pub bytes_out: Option<u64>,
    pub policy_id: Option<String>,
    pub rule_id: Option<String>,
    pub rejected_by: Option<String>,
    pub secret_resolution: String,
    #[schema(value_type = Object)]
    pub request_transforms: Value,
    #[schema(value_type = Object)]
    pub metadata: Value,
}

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct ListAuditLog {
    /// Also as `type`.
    #[serde(alias = "type")]
    pub action: Option<String>,
    /// Also as `actor_id`.
    #[serde(alias = "actor_id")]
    pub actor: Option<String>,
    pub resource_type: Option<String>,
    pub resource_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_workspace_id: Option<String>,
    pub since: Option<String>,
    pub until: Option<String>,
    /// The cursor of the page before; also as `cursor`.
    #[serde(alias = "cursor")]
    pub after: Option<String>,
    pub limit: Option<u32>,
}

/// One thing done through the API. `action` and `type` are the same, `created_at` and `ts` too: two spellings
/// clients use.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditRow {
    pub id: String,
    pub action: String,
    #[serde(rename = "type")]
    pub kind: String,
    /// Like `api_key:msk_live_abcd`.
    pub actor: String,
    pub actor_id: String,
    pub resource_id: Option<String>,
    pub resource_type: Option<String>,
    #[schema(value_type = Object)]
    pub metadata: Value,
    pub ts: Timestamp,
    pub created_at: Timestamp,
}
