//! API keys and the identity behind a credential.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{OneTime, Timestamp};

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    pub name: String,
    /// A subset of the caller's; the caller's own when absent.
    #[serde(default)]
    pub scopes: Option<Vec<String>>,
    #[serde(default)]
    pub description: Option<String>,
    /// Restricts the key to one workspace.
    #[serde(default)]
    pub workspace_id: Option<String>,
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<BTreeMap<String, Value>>,
}

/// Only what is given changes. Scopes may only shrink to what the caller has.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PatchKey {
    pub name: Option<String>,
    pub scopes: Option<Vec<String>>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Key {
    pub id: String,
    pub name: String,
    /// The first characters, as audit rows show them.
    pub key_prefix: String,
    pub scopes: Vec<String>,
    pub workspace_id: Option<String>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub last_used_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

/// A new key with its plaintext, which is shown only here.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CreatedKey {
    #[schema(value_type = String)]
    pub key: OneTime,
    #[serde(flatten)]
    pub record: Key,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Identity {
    pub tenant_id: String,
    pub tenant_name: String,
    pub workspace_id: Option<String>,
    pub principal: String,
    pub key_id: String,
    pub key_prefix: String,
    pub scopes: Vec<String>,
}
