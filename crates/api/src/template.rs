//! What a sandbox can be made from.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Template {
    pub id: String,
    pub name: String,
    pub product: String,
    pub aliases: Vec<String>,
    pub sizes: Vec<Size>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Size {
    pub name: String,
    pub cpu_count: u32,
    pub memory_mb: u64,
    pub disk_size_mb: u64,
}

/// `GET /templates` answers under its own key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TemplateCatalog {
    pub templates: Vec<Template>,
}
