//! A tenant's backend: REST with `curl`, as a person would try it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::poll;
use crate::program;

const DESTROY_DEADLINE: Duration = Duration::from_secs(30);
/// Characters of a key that show.
const KEY_SHOWN: usize = 12;

/// A tenant's API key and where it is good.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Like `http://127.0.0.1:8480`, without the path.
    pub origin: String,
    pub key: String,
}

/// An answer of the API.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub bytes: Vec<u8>,
    /// Null if it is not JSON.
    pub body: Value,
}

impl Answer {
    /// The object under `data`, unless it is an error.
    pub fn data(self) -> anyhow::Result<Value> {
        if !(200..300).contains(&self.status) {
            bail!("the API answered {}: {}", self.status, String::from_utf8_lossy(&self.bytes));
        }
        let Value::Object(mut whole) = self.body else { return Ok(Value::Null) };
        Ok(whole.remove("data").unwrap_or(Value::Object(whole)))
    }
}

impl Tenant {
    pub fn base(&self) -> String {
        format!("{}/api/v1", self.origin)
    }

    /// One call; any status is an answer.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
        self.call_with(method, path, body, &[])
    }

    /// As [`Tenant::call`], with further arguments of curl.
    pub fn call_with(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        further: &[&str],
    ) -> anyhow::Result<Answer> {
        let mut command = self.curl(method, path);
        command.args(further);
        let mut input = Vec::new();
        if let Some(body) = body {
            command.args(["-H", "content-type: application/json", "--data-binary", "@-"]);
            input = body.to_string().into_bytes();
        }
        let outcome = program::run(command, &input)?.success(&format!("curl {path}"))?;
        // `-w` puts the status behind the body.
        let end = outcome.stdout.len().checked_sub(3).context("curl printed no status")?;
        let (bytes, status) = outcome.stdout.split_at(end);
        let status = std::str::from_utf8(status)?.parse().context("curl printed no status")?;
        let body = serde_json::from_slice(bytes).unwrap_or(Value::Null);
        Ok(Answer { status, bytes: bytes.to_vec(), body })
    }

    fn curl(&self, method: &str, path: &str) -> Command {
        let mut command = program::command("curl");
        command.args(["-sS", "--max-time", "100", "-w", "%{http_code}", "-X", method]);
        command.args(["-H", &format!("authorization: Bearer {}", self.key)]);
        command.arg(format!("{}{path}", self.base()));
        command
    }

    /// The call as a person would type it.
    pub fn shown(&self, method: &str, path: &str, body: Option<&Value>) -> String {
        let key: String = self.key.chars().take(KEY_SHOWN).collect();
        let method = match (method, body) {
            ("GET", _) | ("POST", Some(_)) => String::new(),
            _ => format!(" -X {method}"),
        };
        let body = body.map(|body| format!(" --json '{body}'")).unwrap_or_default();
        format!("curl -H 'Authorization: Bearer {key}…'{method} '{}{path}'{body}", self.base())
    }

    /// Destroys everything the tenant has and waits until it is gone.
    pub fn destroy_all(&self) -> anyhow::Result<()> {
        for sandbox in self.list()? {
            let id = sandbox["id"].as_str().context("a sandbox without id")?;
            let answer = self.call("DELETE", &format!("/sandboxes/{id}"), None)?;
            ensure!(matches!(answer.status, 200..300 | 404), "DELETE of {id} answered {}", answer.status);
        }
        poll::until("the tenant's sandboxes to be gone", DESTROY_DEADLINE, || {
            Ok(self.list()?.is_empty().then_some(()))
        })
    }

    /// All sandboxes that are not destroyed.
    pub fn list(&self) -> anyhow::Result<Vec<Value>> {
        match self.call("GET", "/sandboxes", None)?.data()? {
            Value::Array(rows) => Ok(rows),
            other => bail!("GET /sandboxes answered {other}"),
        }
    }
}
