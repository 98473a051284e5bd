//! The one build that serves every defence, and running its tests.
//!
//! Cargo keeps what it compiles with and without the feature apart, but puts the binaries of both at one place. They
//! are moved from there to a directory of their own, and those that were there before come back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use super::table::Test;
use super::verdict::Ended;

/// Packages with decisions, and those whose tests look at them.
const PACKAGES: &[&str] = &[
    "roost-domain",
    "roost-dial",
    "roost-init",
    "roost-agent",
    "roost-dataplane",
    "roost-scheduler",
    "roost-tests",
];
const WITH_FEATURE: &[&str] =
    &["roost-dial", "roost-init", "roost-agent", "roost-dataplane", "roost-scheduler"];
/// Test programs that notice something. The others are not built a second time.
const TEST_TARGETS: &[&str] = &[
    "access",
    "api",
    "confine",
    "connector",
    "control",
    "egress",
    "host",
    "network",
    "preview",
    "suite",
    "system",
];
/// What the tests of the whole system start.
const BINARIES: &[&str] =
    &["roost-agent", "roost-dataplane", "roost-init", "roost-scheduler", "roost-quickstart", "roost-bench"];
/// Names the defence that is off; the build reads it.
const DEFENCE_VARIABLE: &str = "ROOST_SABOTAGE";
/// Names the directory from which tests take the daemons.
const BINARIES_VARIABLE: &str = "ROOST_TEST_BINARIES";

/// A finished build.
#[derive(Debug)]
pub(super) struct Build {
    root: PathBuf,
    pub(super) directory: PathBuf,
}

/// Builds whatever is not built yet. On every way out the binaries of the ordinary build are where they were.
pub(super) fn build(root: &Path) -> anyhow::Result<Build> {
    let metadata = cargo_output(root, &["metadata", "--format-version=1", "--no-deps", "--locked"])?;
    let target = find_target(&metadata)?;
    let directory = target.join("sabotage");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    fs::write(directory.join("cargo-metadata.json"), &metadata)?;
    let shared = target.join("debug");
    fs::create_dir_all(&shared)?;
    let kept = Kept::take(&shared, &directory.join("kept"))?;
    let built = cargo_output(root, &arguments());
    let moved = built.and_then(|tests| {
        fs::write(directory.join("binaries.json"), tests)?;
        for name in BINARIES.iter().filter(|name| shared.join(name).exists()) {
            replace(&shared.join(name), &directory.join(name))?;
        }
        Ok(())
    });
    kept.put_back()?;
    moved?;
    Ok(Build { root: root.to_owned(), directory })
}

fn arguments() -> Vec<&'static str> {
    let mut words =
        vec!["nextest", "list", "--locked", "--list-type", "binaries-only", "--message-format", "json"];
    words.extend(["--cargo-quiet", "--lib", "--bins"]);
    words.extend(PACKAGES.iter().flat_map(|package| ["-p", package]));
    words.extend(TEST_TARGETS.iter().flat_map(|target| ["--test", target]));
    words.extend(WITH_FEATURE.iter().flat_map(|package| ["--features", feature(package)]));
    words
}

fn feature(package: &str) -> &'static str {
    match package {
        "roost-dial" => "roost-dial/sabotage",
        "roost-init" => "roost-init/sabotage",
        "roost-agent" => "roost-agent/sabotage",
        "roost-dataplane" => "roost-dataplane/sabotage",
        _ => "roost-scheduler/sabotage",
    }
}

fn find_target(metadata: &[u8]) -> anyhow::Result<PathBuf> {
    let metadata: serde_json::Value =
        serde_json::from_slice(metadata).context("cargo metadata is not readable")?;
    Ok(metadata["target_directory"].as_str().context("cargo metadata names no target directory")?.into())
}

fn cargo_output(root: &Path, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let mut command = Command::new(env!("CARGO"));
    command.args(arguments).current_dir(root).stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("cannot start cargo {}", arguments[0]))?;
    ensure!(
        output.status.success(),
        "cargo {} did not succeed; it needs cargo-nextest",
        arguments[..2].join(" ")
    );
    Ok(output.stdout)
}

impl Build {
    /// Runs tests of this build, with one defence off or none.
    pub(super) fn run(&self, off: Option<&str>, tests: &[&Test]) -> anyhow::Result<Ended> {
        let filter = tests.iter().map(|test| test.filter()).collect::<Vec<_>>().join(" | ");
        let mut command = Command::new(env!("CARGO"));
        command.args(["nextest", "run", "--color", "never", "--retries", "0", "--no-fail-fast"]);
        command.args(["--failure-output", "final", "--status-level", "none", "--final-status-level", "fail"]);
        command.arg("--binaries-metadata").arg(self.directory.join("binaries.json"));
        command.arg("--cargo-metadata").arg(self.directory.join("cargo-metadata.json"));
        command.args(["-E", &filter]).current_dir(&self.root);
        command.env(BINARIES_VARIABLE, &self.directory).env_remove(DEFENCE_VARIABLE);
        // The message of an assertion is what is quoted.
        command.env("RUST_BACKTRACE", "0");
        // What fails here is no case worth keeping.
        command.env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true");
        if let Some(name) = off {
            command.env(DEFENCE_VARIABLE, name);
        }
        let output = command.stdin(Stdio::null()).output().context("cannot start cargo nextest")?;
        let text = [output.stderr, output.stdout].concat();
        let ended = Ended { code: output.status.code(), output: String::from_utf8_lossy(&text).into_owned() };
        // A stack whose test fails is kept for whoever looks for the reason; here the reason is known.
        if off.is_some() {
            for folder in kept_folders(&ended.output, &self.directory) {
                fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
            }
        }
        Ok(ended)
    }
}

/// Folders that tests of the whole system say they left, as far as they are beside `directory`.
fn kept_folders(output: &str, directory: &Path) -> Vec<PathBuf> {
    let stacks = directory.with_file_name("stacks");
    let named = output.lines().filter_map(|line| line.split_once("the folder is kept: "));
    let folders = named.map(|(_, path)| PathBuf::from(path.trim()));
    folders.filter(|folder| folder.parent() == Some(&*stacks) && folder.exists()).collect()
}

/// The ordinary build's binaries, out of the way of the other build.
#[derive(Debug)]
struct Kept {
    shared: PathBuf,
    aside: PathBuf,
}

impl Kept {
    /// Takes them aside; what an interrupted run left aside goes back first.
    fn take(shared: &Path, aside: &Path) -> anyhow::Result<Self> {
        let kept = Self { shared: shared.to_owned(), aside: aside.to_owned() };
        if aside.exists() {
            kept.move_back()?;
        }
        fs::create_dir_all(aside).with_context(|| format!("making {}", aside.display()))?;
        for name in BINARIES.iter().filter(|name| shared.join(name).exists()) {
            replace(&shared.join(name), &aside.join(name))?;
        }
        Ok(kept)
    }

    fn put_back(self) -> anyhow::Result<()> {
        self.move_back()
    }

    /// A binary that was not there before does not stay: nobody takes it for an ordinary one.
    fn move_back(&self) -> anyhow::Result<()> {
        for name in BINARIES {
            let (here, aside) = (self.shared.join(name), self.aside.join(name));
            let moved = if aside.exists() { fs::rename(&aside, &here) } else { remove_if_there(&here) };
            moved.with_context(|| format!("putting {} back", here.display()))?;
        }
        fs::remove_dir_all(&self.aside).with_context(|| format!("removing {}", self.aside.display()))
    }
}

/// Moves a file within one file system.
fn replace(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to).with_context(|| format!("moving {} to {}", from.display(), to.display()))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ordinary_binaries_come_back_whatever_was_built_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let (shared, aside) = (directory.path().join("debug"), directory.path().join("kept"));
        fs::create_dir(&shared).unwrap();
        fs::write(shared.join("roost-agent"), "ordinary").unwrap();
        let kept = Kept::take(&shared, &aside).unwrap();
        assert!(!shared.join("roost-agent").exists());
        for name in ["roost-agent", "roost-scheduler"] {
            fs::write(shared.join(name), "without defences").unwrap();
        }
        // A run that was killed here is mended by the next one.
        drop(kept);
        let kept = Kept::take(&shared, &aside).unwrap();
        fs::write(shared.join("roost-agent"), "without defences").unwrap();
        kept.put_back().unwrap();
        assert_eq!(fs::read_to_string(shared.join("roost-agent")).unwrap(), "ordinary");
        assert!(!shared.join("roost-scheduler").exists() && !aside.exists());
    }

    #[test]
    fn only_kept_folders_of_stacks_are_found() {
        let target = tempfile::tempdir().unwrap();
        let folder = target.path().join("stacks/boot-1");
        fs::create_dir_all(&folder).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let gone = target.path().join("stacks/boot-2");
        let output: String = [&*folder, elsewhere.path(), &*gone]
            .iter()
            .map(|path| format!("    the end of a logthe folder is kept: {}\nmore\n", path.display()))
            .collect();
        assert_eq!(kept_folders(&output, &target.path().join("sabotage")), [folder]);
    }

    #[test]
    fn every_package_with_the_feature_is_built_with_it() {
        let words = arguments().join(" ");
        for package in WITH_FEATURE {
            assert!(
                words.contains(&format!("-p {package} ")) && words.contains(&format!("{package}/sabotage"))
            );
        }
    }

    #[test]
    fn a_failed_build_is_an_error() {
        let error = cargo_output(Path::new("."), &["no-such-command", "x"]).unwrap_err().to_string();
        assert!(error.starts_with("cargo no-such-command x did not succeed"), "{error}");
    }
}
