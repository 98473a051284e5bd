//! The operator of a host, at the command line: `roost-agent`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use crate::program::{self, Outcome};

/// `roost-agent` with the stack's settings file.
#[derive(Debug, Clone)]
pub struct AgentCli {
    binary: PathBuf,
    settings: PathBuf,
}

impl AgentCli {
    pub fn new(binary: PathBuf, settings: PathBuf) -> Self {
        Self { binary, settings }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program::command(&self.binary);
        command.arg("--config").arg(&self.settings).args(arguments);
        command
    }

    /// What a person types before the sub-command.
    pub fn shown(&self) -> String {
        format!("{} --config {}", self.binary.display(), self.settings.display())
    }

    /// One run to its end, whatever its exit code.
    pub fn call(&self, arguments: &[&str], input: &[u8]) -> anyhow::Result<Outcome> {
        program::run(self.command(arguments), input)
    }

    fn succeed(&self, arguments: &[&str]) -> anyhow::Result<Outcome> {
        self.call(arguments, b"")?.success(&format!("roost-agent {}", arguments.join(" ")))
    }

    /// Boots a small sandbox and answers with its id.
    pub fn run(&self) -> anyhow::Result<String> {
        Ok(self.succeed(&["run", "--memory-mib", "256"])?.text())
    }

    /// Runs shell text in a sandbox, whatever its exit code.
    pub fn shell(&self, id: &str, text: &str) -> anyhow::Result<Outcome> {
        self.call(&["exec", "--shell", id, text], b"")
    }

    /// The output of shell text that must succeed.
    pub fn shell_text(&self, id: &str, text: &str) -> anyhow::Result<String> {
        Ok(self.shell(id, text)?.success(text)?.text())
    }

    pub fn list(&self) -> anyhow::Result<Vec<Value>> {
        let text = self.succeed(&["ps", "--json"])?.text();
        let lines =
            text.lines().map(|line| serde_json::from_str(line).context("reading a line of ps --json"));
        lines.collect()
    }

    pub fn inspect(&self, id: &str) -> anyhow::Result<Value> {
        let text = self.succeed(&["inspect", id])?.text();
        serde_json::from_str(&text).context("reading the answer of inspect")
    }

    pub fn pause(&self, id: &str) -> anyhow::Result<()> {
        self.succeed(&["pause", id]).map(drop)
    }

    pub fn resume(&self, id: &str) -> anyhow::Result<()> {
        self.succeed(&["resume", id]).map(drop)
    }

    pub fn destroy(&self, id: &str) -> anyhow::Result<()> {
        self.succeed(&["destroy", id]).map(drop)
    }
}
