//! Runs the parts of `check` one after the other and says how long each took.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};

use crate::{licences, tidy};

/// Every part runs, so that one run shows every failure.
pub(crate) fn check(root: &Path, quick: bool) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    let mut part = |name: &'static str, run: &dyn Fn() -> anyhow::Result<()>| {
        let start = Instant::now();
        let result = run();
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        eprintln!("xtask: {name}: {verdict} in {:.1} s", start.elapsed().as_secs_f64());
        if let Err(error) = result {
            eprintln!("xtask: {name}: {error:#}");
            failed.push(name);
        }
    };
    part("fmt", &|| cargo(root, &["fmt", "--all", "--", "--check"]));
    part("tidy", &|| tidy::run(root));
    part("licences", &|| licences::run(root));
    if !quick {
        part("clippy", &|| {
            cargo(
                root,
                &["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
            )
        });
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

fn cargo(root: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new(env!("CARGO")).args(arguments).current_dir(root).status();
    let status = status.with_context(|| format!("cannot start cargo {}", arguments[0]))?;
    if status.success() { Ok(()) } else { bail!("cargo {} found something", arguments[0]) }
}
