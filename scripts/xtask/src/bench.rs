//! Builds what a measurement needs and hands over to it: the measurements themselves live with the system's tests.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

const BUILD: &[&str] = &["build", "--quiet", "--locked", "--bins", "--workspace", "--exclude", "roost-init"];
/// Programs that are measured or measure, and no binary of a package.
const EXAMPLES: &[&[&str]] = &[
    &["-p", "roost-dataplane", "--example", "egress-yardstick"],
    &["-p", "roost-agent", "--example", "agent-yardstick"],
];
/// What is compared with a control is built as it is for users; trials by fire take what the tests take.
const MEASURED: &[&str] = &["create", "egress"];

pub(crate) fn run(root: &Path, arguments: &[String]) -> anyhow::Result<()> {
    let is_measured = arguments.iter().any(|argument| MEASURED.contains(&argument.as_str()));
    let profile = if is_measured { "measure" } else { "dev" };
    if arguments.iter().any(|argument| argument == "egress") {
        start(Command::new(root.join("scripts/ensure-packages")).arg("bench"), root)?;
    }
    let cargo = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.args(words).args(["--profile", profile]);
        command
    };
    if is_measured {
        for example in EXAMPLES {
            start(&mut cargo(&[&["build", "--quiet", "--locked"], *example].concat()), root)?;
        }
    }
    start(&mut cargo(BUILD), root)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into);
    let directory = if is_measured { "measure" } else { "debug" };
    start(Command::new(target.join(directory).join("roost-bench")).args(arguments), root)
}

fn start(command: &mut Command, root: &Path) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.current_dir(root).status().with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name} did not succeed");
    }
    Ok(())
}
