//! Usage, summed from immutable deltas.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{Timestamp, sandbox::State};

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct UsageParameters {
    /// `external_user_id`, `external_workspace_id`, `external_project_id`, `workspace_id`, `project_id` or
    /// `sandbox_id`.
    pub group_by: Option<String>,
    /// `7d`, `30d` or `month-to-date`.
    pub period: Option<String>,
    /// Also as `period_start`.
    #[serde(alias = "period_start")]
    pub start: Option<String>,
    /// Also as `period_end`.
    #[serde(alias = "period_end")]
    pub end: Option<String>,
    pub external_user_id: Option<String>,
    pub external_workspace_id: Option<String>,
    pub external_project_id: Option<String>,
    pub workspace_id: Option<String>,
    pub project_id: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UsageReport {
    pub period_start: Timestamp,
    pub period_end: Timestamp,
    pub group_by: String,
    pub total: UsageAmounts,
    pub results: Vec<UsageResult>,
    /// What the figures were computed at; running sandboxes are in them.
    pub as_of: Timestamp,
}

/// One group: its value under the name it was grouped by, and the amounts beside it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UsageResult {
    #[serde(flatten)]
    pub group: BTreeMap<String, Option<String>>,
    #[serde(flatten)]
    pub amounts: UsageAmounts,
}

/// `sandbox_seconds` is wall time; `vcpu_seconds` and `memory_gib_seconds` are allocated, `cpu_seconds` and
/// `memory_used_gib_seconds` measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageAmounts {
    pub sandbox_seconds: f64,
    pub computer_seconds: f64,
    pub vcpu_seconds: f64,
    pub memory_gib_seconds: f64,
    pub cpu_seconds: f64,
    pub memory_used_gib_seconds: f64,
    pub disk_gib_seconds: f64,
    pub snapshot_gib_seconds: f64,
    pub storage_gb_hours: f64,
    pub egress_bytes: u64,
    pub ingress_bytes: u64,
    /// Zero: nothing is priced.
    pub credit_cents: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SandboxUsage {
    pub sandbox_id: String,
    pub state: State,
    pub runtime_sec: f64,
    pub provisioned_vcpu_ms: u64,
    pub provisioned_memory_mb_ms: u64,
    pub active_cpu_ms: u64,
    pub network_ingress_bytes: u64,
    pub network_egress_bytes: u64,
    pub creation_count: u64,
    pub estimated_cost_cents: f64,
    pub timeout_sec: Option<u64>,
    pub timeout_remaining_ms: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UsageSummary {
    pub period_start: Timestamp,
    pub period_end: Timestamp,
    #[serde(flatten)]
    pub amounts: UsageAmounts,
    pub sandboxes: u64,
    pub as_of: Timestamp,
}
