//! Environment variables of a sandbox, merged into every command when it starts.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Variable {
    pub key: String,
    pub value: String,
    /// Always false: credentials belong into `/egress/secrets`, which never shows them to the sandbox.
    pub encrypted: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SetVariables {
    #[serde(deserialize_with = "crate::object::list")]
    pub vars: Vec<SetVariable>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SetVariable {
    pub key: String,
    pub value: String,
    #[serde(default)]
    pub encrypted: Option<bool>,
}
