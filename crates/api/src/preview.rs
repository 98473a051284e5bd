//! Previews and the tokens that open private ones.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{OneTime, Timestamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    Private,
    Public,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Preview {
    pub id: String,
    pub sandbox_id: String,
    pub name: Option<String>,
    pub port: u16,
    pub visibility: Visibility,
    /// `active`.
    pub state: String,
    pub url: String,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub workspace_id: String,
    pub project_id: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// `label` and further fields are accepted and ignored; nothing here opens anything without `visibility`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatePreview {
    pub port: u32,
    #[serde(default)]
    pub visibility: Option<Visibility>,
    #[serde(default, alias = "label")]
    pub name: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PatchPreview {
    pub visibility: Option<Visibility>,
    pub name: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExposePort {
    /// 3000 when absent.
    pub port: Option<u32>,
}

/// The port is public from now on.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ExposedPort {
    pub url: String,
    pub preview_url: String,
    pub preview_id: String,
    pub port: u16,
    pub visibility: Visibility,
    pub url_class: String,
    pub stable_for_embedding: bool,
}

/// Five spellings of one lifetime; two that differ are refused, and so is any field not listed here.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MintShare {
    /// 60 to 86400, 3600 when absent.
    pub expires_in_sec: Option<u64>,
    pub ttl_seconds: Option<u64>,
    pub expires_in: Option<u64>,
    pub expires_in_seconds: Option<u64>,
    #[serde(rename = "expiresInSec")]
    pub expires_in_sec_camel: Option<u64>,
    /// `preview:read`, and `preview:interact` for methods that change something.
    pub scopes: Option<Vec<String>>,
}

/// The mint's answer. Exactly three top-level keys, or the SDK loses the token.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MintedShare {
    pub data: MintedShareData,
    /// Shown once.
    #[schema(value_type = String)]
    pub preview_token: OneTime,
    #[schema(value_type = String)]
    pub share_url: OneTime,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MintedShareData {
    /// The preview's id.
    pub id: String,
    pub share_token_prefix: String,
    pub share_token_expires_at: Timestamp,
    /// Correlates with audit rows; not a secret.
    pub token_id: String,
}

/// A token that still opens its preview. The token itself is never stored.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ActiveShare {
    pub token_id: String,
    pub prefix: String,
    pub scopes: Vec<String>,
    pub created_by: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MintPreviewToken {
    /// 3000 when absent.
    pub port: Option<u32>,
    pub expires_in: Option<u64>,
    pub expires_in_sec: Option<u64>,
    pub expires_in_seconds: Option<u64>,
    pub ttl_seconds: Option<u64>,
    /// `read` (default) or `interact`.
    pub scope: Option<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MintedPreviewToken {
    #[schema(value_type = String)]
    pub token: OneTime,
    #[schema(value_type = String)]
    pub url: OneTime,
    pub expires_at: Timestamp,
    pub scope: String,
    pub token_id: String,
}

/// Values of a mint that are recorded in the control audit, in the shape the audit promises.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShareIssuedMetadata {
    pub workspace_id: String,
    pub project_id: String,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub expires_at: Timestamp,
    pub token_prefix: String,
}

impl From<ShareIssuedMetadata> for BTreeMap<String, Value> {
    fn from(metadata: ShareIssuedMetadata) -> Self {
        match serde_json::to_value(metadata) {
            Ok(Value::Object(map)) => map.into_iter().collect(),
            _ => BTreeMap::new(),
        }
    }
}
