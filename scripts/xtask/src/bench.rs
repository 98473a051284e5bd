//! Builds what a measurement needs and hands over to it: the measurements themselves live with the system's tests.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

const BUILD: &[&str] = &["build", "--quiet", "--locked", "--bins", "--workspace", "--exclude", "roost-init"];
const RUN: &[&str] = &["run", "--quiet", "--locked", "-p", "roost-tests", "--bin", "roost-bench", "--"];

pub(crate) fn run(root: &Path, arguments: &[String]) -> anyhow::Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    for words in [BUILD.to_vec(), [RUN, &arguments].concat()] {
        let status = Command::new(env!("CARGO")).args(&words).current_dir(root).status();
        if !status.context("cannot start cargo")?.success() {
            bail!("cargo {} did not succeed", words[0]);
        }
    }
    Ok(())
}
