//! The public Python SDK, as published, in a virtual environment below `target/`.

use anyhow::Context;

use crate::program::{self, Outcome};
use crate::python::Environment;

/// An environment with the SDK and pytest, and the SDK's own tests beside it.
#[derive(Debug)]
pub struct Sdk(Environment);

impl Sdk {
    pub fn ensure() -> anyhow::Result<Self> {
        Environment::ensure("sdk", fetch_source).map(Self)
    }

    /// Runs one of this package's scripts.
    pub fn script(
        &self,
        name: &str,
        arguments: &[&str],
        environment: &[(&'static str, String)],
    ) -> anyhow::Result<Outcome> {
        let mut command = self.0.python();
        command.arg("-B").arg(self.0.scripts.join(name)).args(arguments).envs(environment.iter().cloned());
        program::run(command, b"")?.success(name)
    }

    /// Runs the SDK's own tests against a live API.
    pub fn live_tests(&self, environment: &[(&'static str, String)]) -> anyhow::Result<Outcome> {
        let mut command = self.0.python();
        command.args(["-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_sandbox_live.py"]);
        command.current_dir(self.0.directory.join("source")).envs(environment.iter().cloned());
        program::run(command, b"")?.success("the SDK's live tests")
    }
}

/// The SDK's tests are in its source only.
fn fetch_source(environment: &Environment) -> anyhow::Result<()> {
    let source = environment.directory.join("source");
    let _ = std::fs::remove_dir_all(&source);
    let mut download = environment.python();
    download.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    download.arg("--no-binary=miosa").arg("-c").arg(environment.requirements()).arg("miosa");
    download.arg("-d").arg(&source);
    program::run(download, b"")?.success("pip download")?;
    let archive = std::fs::read_dir(&source)?.next().context("pip downloaded nothing")??.path();
    let mut unpack = program::command("tar");
    unpack.arg("-C").arg(&source).args(["--strip-components=1", "-xzf"]).arg(archive);
    program::run(unpack, b"")?.success("tar").map(drop)
}
