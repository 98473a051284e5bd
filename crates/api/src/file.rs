//! Files of a sandbox.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::Timestamp;

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WriteFile {
    pub path: String,
    pub content_base64: String,
    /// Permission bits, like 420 for rw-r--r--.
    #[serde(default)]
    pub mode: Option<u32>,
    #[serde(default)]
    pub user: Option<String>,
}

/// The older spelling of [`WriteFile`].
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WriteFileLegacy {
    pub path: String,
    /// Base64, also as `content_base64`.
    #[serde(alias = "content_base64")]
    pub content: String,
}

impl From<WriteFileLegacy> for WriteFile {
    fn from(legacy: WriteFileLegacy) -> Self {
        Self { path: legacy.path, content_base64: legacy.content, mode: None, user: None }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WriteFiles {
    #[serde(deserialize_with = "crate::object::list")]
    pub files: Vec<WriteFile>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WriteFilesResult {
    pub written: Vec<WrittenFile>,
    pub failed: Vec<FailedFile>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WrittenFile {
    pub path: String,
    pub size_bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FailedFile {
    pub path: String,
    pub error: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StatFile {
    pub path: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FileInfo {
    pub path: String,
    pub name: String,
    /// `file`, `dir`, `symlink` or `other`.
    #[serde(rename = "type")]
    pub kind: String,
    pub is_dir: bool,
    pub size: u64,
    /// Like `0644`.
    pub mode: String,
    pub owner: String,
    pub group: String,
    pub modified_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
}

#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PathParameters {
    pub path: String,
}

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct ListParameters {
    /// `/workspace` when absent.
    pub path: Option<String>,
    pub depth: Option<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Directory {
    pub path: String,
    pub entries: Vec<FileInfo>,
    pub truncated: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TreeNode {
    pub path: String,
    pub name: String,
    /// `file`, `dir`, `symlink` or `other`.
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(no_recursion)]
    pub children: Option<Vec<TreeNode>>,
}

/// One frame's data of `files/watch`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FileChange {
    /// `created`, `modified`, `removed`, `moved` or `overflow`.
    pub event: String,
    pub path: String,
    pub is_dir: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_path: Option<String>,
}
