//! A tenant's settings, one resource under two paths.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Settings {
    pub security: SecuritySettings,
    pub previews: PreviewSettings,
    pub secrets: SecretSettings,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecuritySettings {
    /// Off: secrets of the scope `external_user` neither resolve nor can be set.
    pub allow_end_user_scoped_credentials: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PreviewSettings {
    /// Origins that may frame previews, besides the platform's own.
    pub frame_ancestors: Vec<String>,
    pub max_share_ttl_sec: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretSettings {
    /// `refuse` or `allow`: whether a secret set from now on without hosts may go to any host.
    pub unbound_hosts: String,
}

/// What is given replaces; the rest stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PatchSettings {
    #[serde(deserialize_with = "crate::object::one")]
    pub security: PatchSecuritySettings,
    #[serde(deserialize_with = "crate::object::one")]
    pub previews: PatchPreviewSettings,
    #[serde(deserialize_with = "crate::object::one")]
    pub secrets: PatchSecretSettings,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PatchSecuritySettings {
    pub allow_end_user_scoped_credentials: Option<bool>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PatchPreviewSettings {
    pub frame_ancestors: Option<Vec<String>>,
    pub max_share_ttl_sec: Option<u64>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PatchSecretSettings {
    pub unbound_hosts: Option<String>,
}
