//! Processes that outlive the call that started them, in the SDK's two spellings: commands and processes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{Timestamp, exec::Command};

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RunCommand {
    pub command: Command,
    #[serde(default)]
    pub cwd: Option<String>,
    #[serde(default)]
    pub env: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub user: Option<String>,
    /// Run as root.
    #[serde(default)]
    pub sudo: Option<bool>,
    #[serde(default)]
    pub stdin: Option<String>,
    /// At most 600.
    #[serde(default, alias = "timeout", alias = "timeout_sec")]
    pub timeout_seconds: Option<f64>,
    /// Answer at once with the process instead of waiting for it.
    #[serde(default)]
    pub detached: Option<bool>,
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub tty: Option<bool>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StartProcess {
    pub command: Command,
    #[serde(default)]
    pub cwd: Option<String>,
    #[serde(default)]
    pub env: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default, alias = "timeout_sec", alias = "timeout_seconds")]
    pub timeout: Option<f64>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Process {
    pub pid: u32,
    pub id: String,
    pub name: Option<String>,
    pub command: String,
    /// `running` or `exited`.
    pub status: String,
    pub running: bool,
    pub exit_code: Option<i32>,
    pub signal: Option<u32>,
    pub timed_out: bool,
    pub started_at: Timestamp,
}

/// What `POST …/commands` answers: the result, or the process when detached.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CommandResult {
    /// Of a detached command: what the other calls name it by.
    pub pid: Option<u32>,
    pub id: Option<String>,
    pub status: String,
    pub detached: bool,
    pub stdout: String,
    pub stderr: String,
    pub exit_code: Option<i32>,
    pub timed_out: bool,
    pub truncated: bool,
    pub duration_ms: Option<u64>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct KillCommand {
    /// A name like `TERM` or `SIGKILL`, or a number; `TERM` when absent.
    pub signal: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct LogParameters {
    /// Lines from the end.
    pub tail: Option<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ProcessLogs {
    pub data: String,
}
