//! Events as streams show them.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::Timestamp;

/// One event of a stream. `event` names it, `data` is JSON.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StreamedEvent {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub id: Option<String>,
    pub event: String,
    pub data: String,
}

/// One frame's data. The type is in here as well, since some clients lose the frame's own.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Event {
    pub id: String,
    /// Like `sandbox.running`.
    #[serde(rename = "type")]
    pub kind: String,
    pub created_at: Timestamp,
    #[schema(value_type = Object)]
    pub data: Value,
}

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct EventParameters {
    /// Separated by commas; `sandbox.*` means all that begin so.
    pub types: Option<String>,
}
