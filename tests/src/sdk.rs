//! The public Python SDK, as published, in a virtual environment below `target/`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::program::{self, Outcome};

/// An environment with the SDK and pytest, and the SDK's own tests beside it.
#[derive(Debug)]
pub struct Sdk {
    directory: PathBuf,
    scripts: PathBuf,
}

impl Sdk {
    /// Makes the environment unless an equal one is there. Several tests may ask at once.
    pub fn ensure() -> anyhow::Result<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let target = package.parent().context("this package is in no clone")?.join("target");
        let (directory, scripts) = (target.join("sdk"), package.join("sdk"));
        std::fs::create_dir_all(&directory)?;
        let lock = File::create(directory.join("lock"))?;
        lock.lock()?;
        let sdk = Self { directory, scripts };
        let wanted = std::fs::read_to_string(sdk.scripts.join("requirements.txt"))?;
        let done = sdk.directory.join("requirements.txt");
        if std::fs::read_to_string(&done).ok().as_ref() != Some(&wanted) {
            sdk.install()?;
            std::fs::write(&done, wanted)?;
        }
        Ok(sdk)
    }

    fn install(&self) -> anyhow::Result<()> {
        let environment = self.directory.join("venv");
        let mut make = program::command("/usr/bin/python3");
        make.args(["-m", "venv", "--clear"]).arg(&environment);
        program::run(make, b"")?.success("making a virtual environment (apt-get install python3-venv)")?;
        let mut install = self.python("-m");
        install.args(["pip", "install", "--quiet", "--disable-pip-version-check", "-r"]);
        install.arg(self.scripts.join("requirements.txt"));
        program::run(install, b"")?.success("pip install")?;
        let source = self.directory.join("source");
        let _ = std::fs::remove_dir_all(&source);
        let mut download = self.python("-m");
        download.args([
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-binary=miosa",
        ]);
        download.args(["-c"]).arg(self.scripts.join("requirements.txt")).arg("miosa").arg("-d").arg(&source);
        program::run(download, b"")?.success("pip download")?;
        let archive = std::fs::read_dir(&source)?.next().context("pip downloaded nothing")??.path();
        let mut unpack = program::command("tar");
        unpack.arg("-C").arg(&source).args(["--strip-components=1", "-xzf"]).arg(archive);
        program::run(unpack, b"")?.success("tar").map(drop)
    }

    fn python(&self, first: &str) -> Command {
        let mut command = program::command(self.directory.join("venv/bin/python"));
        command.arg(first);
        command
    }

    /// Runs one of this package's scripts.
    pub fn script(
        &self,
        name: &str,
        arguments: &[&str],
        environment: &[(&'static str, String)],
    ) -> anyhow::Result<Outcome> {
        let mut command = self.python("-B");
        command.arg(self.scripts.join(name)).args(arguments).envs(environment.iter().cloned());
        program::run(command, b"")?.success(name)
    }

    /// Runs the SDK's own tests against a live API.
    pub fn live_tests(&self, environment: &[(&'static str, String)]) -> anyhow::Result<Outcome> {
        let mut command = self.python("-B");
        command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_sandbox_live.py"]);
        command.current_dir(self.directory.join("source")).envs(environment.iter().cloned());
        program::run(command, b"")?.success("the SDK's live tests")
    }
}
