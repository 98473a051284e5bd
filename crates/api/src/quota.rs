//! Quotas of the five subjects a sandbox counts against, and what is in use.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is given replaces; the rest stays. `DELETE` takes all limits away.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SetQuota {
    pub max_sandboxes: Option<u64>,
    /// Sandboxes that run at the same time; vCPUs and memory are theirs.
    pub max_concurrent: Option<u64>,
    pub max_vcpus: Option<u64>,
    pub max_memory_mb: Option<u64>,
    pub max_storage_gb: Option<u64>,
    /// Kept, and without effect as long as nothing is priced.
    pub max_credit_cents: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Quota {
    /// `external_user`, `external_workspace`, `workspace`, `project` or `tenant`.
    pub subject: String,
    pub subject_id: String,
    /// Set for the subject `external_user`.
    pub external_user_id: Option<String>,
    pub max_sandboxes: Option<u64>,
    pub max_concurrent: Option<u64>,
    pub max_vcpus: Option<u64>,
    pub max_memory_mb: Option<u64>,
    pub max_storage_gb: Option<u64>,
    pub max_credit_cents: Option<u64>,
    pub usage: QuotaUse,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct QuotaUse {
    pub sandboxes: u64,
    pub concurrent: u64,
    pub vcpus: u64,
    pub memory_mb: u64,
    pub storage_gb: f64,
}
