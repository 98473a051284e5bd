//! Sandboxes: the record and the requests that make and change one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::Timestamp;

/// What the outside sees. `running` means ready for commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Creating,
    Running,
    Pausing,
    Paused,
    Resuming,
    Stopping,
    Stopped,
    Destroying,
    Destroyed,
    Error,
}

/// What happens when `timeout_sec` runs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    Pause,
    Destroy,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Sandbox {
    pub id: String,
    /// `sandbox`; `computer` is reserved.
    pub kind: String,
    pub name: String,
    /// The part of preview host names; unique in the workspace and under the preview domain.
    pub slug: String,
    pub state: State,
    /// Why the state is what it is, when that is not obvious. `guest_exited`, `vmm_crashed` and `host_restarted`: what
    /// ended it. `memory_snapshot_incompatible`: it was paused and had to start from its disk. `guest_not_flushed`: what it
    /// had not written to its disk before the stop is lost. Anything else is a sentence for people.
    pub state_reason: Option<String>,
    pub ready: bool,
    pub template_id: String,
    pub size: Option<String>,
    pub cpu_count: u32,
    pub memory_mb: u64,
    pub disk_size_mb: u64,
    pub persistent: bool,
    pub always_on: bool,
    pub auto_resume: bool,
    pub on_timeout: OnTimeout,
    /// None: no limit.
    pub timeout_sec: Option<u64>,
    pub timeout_remaining_ms: Option<u64>,
    pub idle_timeout_sec: Option<u64>,
    #[schema(value_type = Object)]
    pub metadata: BTreeMap<String, Value>,
    pub tags: Vec<String>,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub owner_user_id: Option<String>,
    pub tenant_id: String,
    pub workspace_id: String,
    pub project_id: String,
    pub preview_url: Option<String>,
    pub preview_domain: Option<String>,
    /// `cold` or `snapshot`.
    pub boot_path: Option<String>,
    pub boot_ms: Option<u64>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub ready_at: Option<Timestamp>,
    pub destroyed_at: Option<Timestamp>,
}

/// Fields of features this server does not have are accepted and ignored.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct CreateSandbox {
    /// Free text of at most 128 characters; the slug is made from it when none is given.
    pub name: Option<String>,
    pub slug: Option<String>,
    pub template_id: Option<String>,
    /// `xs`, `small`, `medium`, `large` or `xl`; or all three of the fields below.
    pub size: Option<String>,
    pub cpu_count: Option<u32>,
    pub memory_mb: Option<u64>,
    #[serde(alias = "disk_mb")]
    pub disk_size_mb: Option<u64>,
    pub env: Option<BTreeMap<String, String>>,
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<BTreeMap<String, Value>>,
    pub tags: Option<Vec<String>>,
    pub timeout_sec: Option<u64>,
    pub idle_timeout_sec: Option<u64>,
    pub on_timeout: Option<OnTimeout>,
    pub persistent: Option<bool>,
    pub always_on: Option<bool>,
    pub auto_resume: Option<bool>,
    /// Without room: `no_ready_machine`, which says not to try again by itself.
    pub fail_fast: Option<bool>,
    pub workspace_id: Option<String>,
    pub workspace_slug: Option<String>,
    pub workspace_name: Option<String>,
    pub project_id: Option<String>,
    pub project_slug: Option<String>,
    pub project_name: Option<String>,
    /// The caller's own names: 1 to 256 bytes, compared byte for byte, never a permission.
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub owner_user_id: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct WaitParameters {
    /// Seconds (at most 120) to wait until the sandbox is ready, or `true` for 30.
    pub wait: Option<String>,
}

/// Only what is given changes. `external_*` cannot be changed.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct PatchSandbox {
    pub name: Option<String>,
    pub slug: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<BTreeMap<String, Value>>,
    pub tags: Option<Vec<String>>,
    pub timeout_sec: Option<u64>,
    pub idle_timeout_sec: Option<u64>,
    pub on_timeout: Option<OnTimeout>,
    pub always_on: Option<bool>,
    pub auto_resume: Option<bool>,
    /// Refused with `attribution_immutable`.
    #[schema(value_type = Option<String>)]
    pub external_workspace_id: Option<Value>,
    /// Refused with `attribution_immutable`.
    #[schema(value_type = Option<String>)]
    pub external_user_id: Option<Value>,
    /// Refused with `attribution_immutable`.
    #[schema(value_type = Option<String>)]
    pub external_project_id: Option<Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ReplaceTags {
    pub tags: Vec<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ExtendSandbox {
    pub timeout_sec: Option<u64>,
}

/// Without `limit` and `cursor` every match comes back (at most 10,000).
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct ListSandboxes {
    /// One state, or several separated by commas.
    pub state: Option<String>,
    /// Separated by commas; a sandbox must have all of them.
    pub tags: Option<String>,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub workspace_id: Option<String>,
    pub project_id: Option<String>,
    pub template_id: Option<String>,
    /// Destroyed sandboxes are left out unless this is `true` or `state` names them.
    pub include_destroyed: Option<bool>,
    pub limit: Option<u32>,
    pub cursor: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    pub ready: bool,
    pub state: State,
    pub state_reason: Option<String>,
}
