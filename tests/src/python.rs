//! Virtual environments of Python below `target/`, each made once from a file of pinned requirements.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::program;

/// An environment that has what its requirements file lists.
#[derive(Debug)]
pub struct Environment {
    /// Also holds whatever `prepare` put beside the environment.
    pub directory: PathBuf,
    /// The directory of this package with the requirements file.
    pub scripts: PathBuf,
}

impl Environment {
    /// Makes it unless an equal one is there; `prepare` adds what belongs to it. Several tests may ask at once.
    pub fn ensure(name: &str, prepare: impl FnOnce(&Self) -> anyhow::Result<()>) -> anyhow::Result<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let target = package.parent().context("this package is in no clone")?.join("target");
        let environment = Self { directory: target.join(name), scripts: package.join(name) };
        std::fs::create_dir_all(&environment.directory)?;
        let lock = File::create(environment.directory.join("lock"))?;
        lock.lock()?;
        let wanted = std::fs::read_to_string(environment.requirements())?;
        let done = environment.directory.join("requirements.txt");
        if std::fs::read_to_string(&done).ok().as_ref() != Some(&wanted) {
            environment.install()?;
            prepare(&environment)?;
            std::fs::write(&done, wanted)?;
        }
        Ok(environment)
    }

    pub fn requirements(&self) -> PathBuf {
        self.scripts.join("requirements.txt")
    }

    fn install(&self) -> anyhow::Result<()> {
        let mut make = program::command("/usr/bin/python3");
        make.args(["-m", "venv", "--clear"]).arg(self.directory.join("venv"));
        program::run(make, b"")?.success("making a virtual environment (apt-get install python3-venv)")?;
        let mut install = self.python();
        install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]);
        install.arg(self.requirements());
        program::run(install, b"")?.success("pip install").map(drop)
    }

    pub fn python(&self) -> Command {
        program::command(self.directory.join("venv/bin/python"))
    }
}
