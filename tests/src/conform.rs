//! The API held against its own document by Schemathesis, in a virtual environment below `target/`.
//!
//! One run is bounded in time and cases and repeatable: the seed is fixed. `ROOST_CONFORM_EXAMPLES` (cases for each
//! operation, beside those it derives for every bound of the document) makes a longer one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::program;
use crate::python::Environment;

const SEED: &str = "20261129";
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,ignored_auth";
const EXAMPLES: u32 = 6;
/// One request, and by default one run.
const REQUEST_S: &str = "20";
const RUN_S: u64 = 240;

/// What is asked for and where.
#[derive(Debug)]
pub struct Wish<'a> {
    pub document: &'a Path,
    pub origin: &'a str,
    pub key: &'a str,
    /// Operation ids; all but `without` when empty.
    pub only: &'a [&'a str],
    pub without: &'a [&'a str],
    /// By the beginning of a path: what exists there, for each of its parameters.
    pub names: BTreeMap<&'a str, Value>,
    pub report: PathBuf,
}

/// What a run did.
#[derive(Debug)]
pub struct Verdict {
    /// Operations that had a case, as `GET /path`.
    pub operations: BTreeSet<String>,
    /// Those of them that were also served once.
    pub served: BTreeSet<String>,
    pub cases: usize,
    /// Nothing was found.
    pub clean: bool,
    pub said: String,
}

#[derive(Debug)]
pub struct Schemathesis(Environment);

impl Schemathesis {
    pub fn ensure() -> anyhow::Result<Self> {
        Environment::ensure("conform", |_| Ok(())).map(Self)
    }

    pub fn run(&self, wish: &Wish<'_>) -> anyhow::Result<Verdict> {
        let asked = std::env::var("ROOST_CONFORM_EXAMPLES").ok();
        let examples = asked.unwrap_or_else(|| EXAMPLES.to_string());
        let more =
            examples.parse::<u64>().context("ROOST_CONFORM_EXAMPLES is no number")?.div_ceil(EXAMPLES.into());
        let patience_s = RUN_S.saturating_mul(more);
        let mut command = program::command(self.0.directory.join("venv/bin/schemathesis"));
        command.arg("run").arg(wish.document);
        command.args(["--url", wish.origin, "--seed", SEED, "--max-examples", &examples, "--checks", CHECKS]);
        command.args([
            "--phases",
            "examples,coverage,fuzzing",
            "--generation-database",
            "none",
            "--no-shrink",
        ]);
        command.args([
            "--continue-on-failure",
            "--no-color",
            "--warnings",
            "off",
            "--request-timeout",
            REQUEST_S,
        ]);
        command.args(["--header", &format!("Authorization: Bearer {}", wish.key)]);
        command.args(["--report", "ndjson", "--report-ndjson-path"]).arg(&wish.report);
        for id in wish.only {
            command.args(["--include-operation-id", id]);
        }
        for id in wish.without {
            command.args(["--exclude-operation-id", id]);
        }
        command.env("SCHEMATHESIS_HOOKS", "hooks").env("PYTHONPATH", &self.0.scripts);
        command.env("PYTHONDONTWRITEBYTECODE", "1").env("ROOST_NAMES", serde_json::to_string(&wish.names)?);
        command.current_dir(wish.report.parent().context("the report has no directory")?);
        let outcome = program::run_within(command, b"", Duration::from_secs(patience_s))?;
        let said = format!("{}\n{}", outcome.text(), outcome.complaint());
        ensure!(matches!(outcome.code, 0 | 1), "schemathesis exited with {}: {said}", outcome.code);
        let mut verdict = Verdict {
            operations: BTreeSet::new(),
            served: BTreeSet::new(),
            cases: 0,
            clean: outcome.code == 0,
            said,
        };
        verdict.count(&wish.report).with_context(|| verdict.said.clone())?;
        Ok(verdict)
    }
}

impl Verdict {
    /// Reads a report: each scenario is one operation in one phase, with its cases.
    fn count(&mut self, report: &Path) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(report).context("schemathesis wrote no report")?;
        for line in text.lines() {
            let event: Value = serde_json::from_str(line).context("reading a line of the report")?;
            let Some(recorder) = event.pointer("/ScenarioFinished/recorder") else { continue };
            let label = recorder["label"].as_str().unwrap_or_default();
            for interaction in recorder["interactions"].as_object().into_iter().flatten().map(|(_, one)| one)
            {
                self.operations.insert(label.to_owned());
                self.cases += 1;
                let status = interaction.pointer("/response/status_code").and_then(Value::as_u64);
                if status.is_some_and(|status| (200..300).contains(&status)) {
                    self.served.insert(label.to_owned());
                }
            }
        }
        Ok(())
    }
}
