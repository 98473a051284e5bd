//! The bare VMM's turns: what `roost-control` needs, and its figures.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use super::Times;
use crate::bench::report::Samples;
use crate::stack::Stack;
use crate::{image, program};

/// Where the control works, and what it has in common with the product.
#[derive(Debug)]
pub(super) struct Control {
    binary: PathBuf,
    directory: PathBuf,
    /// An empty disk as the product makes it.
    empty_disk: PathBuf,
    image: PathBuf,
}

impl Control {
    /// Keeps what a running VMM of the product was started with.
    pub(super) fn learn(stack: &Stack, vmm_pid: i64) -> anyhow::Result<Self> {
        let place = stack.place();
        let directory = place.root.with_extension("control");
        std::fs::create_dir_all(&directory)?;
        std::fs::copy(format!("/proc/{vmm_pid}/cmdline"), directory.join("cmdline"))?;
        std::fs::copy(place.root.join("agent/identity/egress-roots.pem"), directory.join("roots.pem"))?;
        let empty_disk = directory.join("empty");
        copy(&place.root.join("agent/cache/ext4-1024"), &empty_disk)?;
        let image = image::find(&place.image_dir, image::TEMPLATE)?;
        Ok(Self { binary: place.binary("roost-control")?, directory, empty_disk, image })
    }

    /// A boot, and a restore of what that left.
    pub(super) fn take_turn(&self, times: &mut Times) -> anyhow::Result<()> {
        copy(&self.empty_disk, &self.directory.join("disk"))?;
        let mut command = program::command(&self.binary);
        command.args([&self.directory, &self.image]);
        let text = program::run(command, b"")?.success("roost-control")?.text();
        let said = serde_json::from_str(&text).with_context(|| format!("roost-control printed {text}"))?;
        times.ready.push(number(&said, "boot_ms")?);
        times.resumed.push(number(&said, "restore_ms")?);
        Ok(())
    }

    pub(super) fn remove(self) -> anyhow::Result<()> {
        Ok(std::fs::remove_dir_all(self.directory)?)
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let mut command = program::command("cp");
    command.arg("--sparse=always").args([from, to]);
    program::run(command, b"")?.success("cp").map(drop)
}

fn number(said: &Value, name: &str) -> anyhow::Result<f64> {
    said[name].as_f64().with_context(|| format!("there is no {name} in {said}"))
}

/// A list of numbers that a measuring program printed.
pub(super) fn samples(said: &Value, name: &str) -> anyhow::Result<Samples> {
    let list = said[name].as_array().with_context(|| format!("there is no {name} in {said}"))?;
    let mut samples = Samples::default();
    for value in list {
        samples.push(value.as_f64().context("a sample is no number")?);
    }
    Ok(samples)
}
