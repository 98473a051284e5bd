//! Running one command and waiting for it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Shell text, or a program with its arguments.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected shell text, or a list: a program and its arguments")]
pub enum Command {
    Shell(String),
    Arguments(Vec<String>),
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ExecRequest {
    pub command: Command,
    #[serde(default)]
    pub cwd: Option<String>,
    #[serde(default)]
    pub env: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub user: Option<String>,
    /// Seconds; then the process group is ended and `timed_out` is true.
    #[serde(default, alias = "timeout_sec", alias = "timeout_seconds")]
    pub timeout: Option<f64>,
    #[serde(default)]
    pub stdin: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ExecResult {
    pub stdout: String,
    pub stderr: String,
    /// 128 + signal for a process ended by a signal. Not zero is a result, not an error.
    pub exit_code: i32,
    pub signal: Option<u32>,
    pub timed_out: bool,
    /// Output beyond the cap was dropped.
    pub truncated: bool,
    pub duration_ms: u64,
}

/// One frame's data of `exec/stream`, under the event `stdout` or `stderr`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OutputFrame {
    pub line: String,
}

/// The last frame's data of `exec/stream`, under the event `exit`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ExitFrame {
    pub exit_code: i32,
    pub signal: Option<u32>,
    pub timed_out: bool,
    pub duration_ms: u64,
}
