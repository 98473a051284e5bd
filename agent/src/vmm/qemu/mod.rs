//! QEMU `microvm`, emulated (TCG) or on KVM.
//!
//! One command line and one way to save and restore for both: device state by `xen-save-devices-state`, memory
//! by the agent. `command.rs` is pure, `qmp.rs` talks, `launch.rs` starts, `vm.rs` is a running one.

mod command;
mod launch;
pub mod qmp;
mod vm;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{AdoptSpec, Driver, Error, Geometry, LaunchSpec, Launched, Vm};
use crate::host::{self, cgroup, tool};
use crate::image::Image;
use crate::snapshot::Key;

/// What a VMM needs beside the guest's memory and the translation buffer: its own heap and stacks.
const OVERHEAD_MIB: u64 = 128;
/// QEMU's main loop, its block workers (64 at most) and room for two more per CPU.
const THREADS: u32 = 80;
const VERSION_DEADLINE: Duration = Duration::from_secs(10);
const MIB: u64 = 1024 * 1024;

/// How QEMU runs guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    Tcg,
    Kvm,
}

/// QEMU as found on this host.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: PathBuf,
    version: String,
    accelerator: Accelerator,
}

impl Qemu {
    /// Looks at the program and asks it for its version.
    pub async fn probe(program: &Path, accelerator: Accelerator) -> Result<Self, Error> {
        let wanted = program.to_owned();
        host::off_worker(move || {
            let program = wanted.canonicalize().map_err(|source| Error::Prepare {
                step: "looking for",
                path: wanted.clone(),
                source,
            })?;
            let path = program.to_string_lossy();
            let said = tool::run(&path, &["--version"], b"", VERSION_DEADLINE).map_err(Error::Version)?;
            let said = String::from_utf8_lossy(&said);
            let version = parse_version(&said).ok_or_else(|| Error::VersionText(said.trim().to_owned()))?;
            Ok(Self { version: version.to_owned(), program, accelerator })
        })
        .await
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }
}

/// `QEMU emulator version 7.2.22 (Debian …)`
fn parse_version(said: &str) -> Option<&str> {
    let version = said.strip_prefix("QEMU emulator version ")?.split([' ', '\n']).next()?;
    version.starts_with(|first: char| first.is_ascii_digit()).then_some(version)
}

#[async_trait]
impl Driver for Qemu {
    fn name(&self) -> &'static str {
        match self.accelerator {
            Accelerator::Tcg => "qemu-tcg",
            Accelerator::Kvm => "qemu-kvm",
        }
    }

    fn key(&self, image: &Image, geometry: Geometry) -> Key {
        Key {
            image: image.digest.clone(),
            vcpus: geometry.vcpus,
            memory_mib: geometry.memory_mib,
            machine: format!("{}/microvm", self.name()),
            vmm_version: self.version.clone(),
            hardware: command::hardware(self.accelerator, geometry).join(" "),
            command_line: command::command_line(self.accelerator, &image.command_line),
        }
    }

    fn limits(&self, geometry: Geometry) -> cgroup::Limits {
        let buffer_mib = match self.accelerator {
            Accelerator::Tcg => command::TRANSLATION_BUFFER_MIB,
            Accelerator::Kvm => 0,
        };
        cgroup::Limits {
            memory_bytes: (geometry.memory_mib + buffer_mib + OVERHEAD_MIB) * MIB,
            vcpus: geometry.vcpus,
            processes: THREADS + 2 * geometry.vcpus,
        }
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Launched, Error> {
        launch::launch(self, spec).await
    }

    async fn adopt(&self, spec: AdoptSpec) -> Result<Option<Arc<dyn Vm>>, Error> {
        launch::adopt(self, spec).await
    }
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn versions_are_found() {
        assert_eq!(parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopy"), Some("7.2.22"));
        assert_eq!(parse_version("QEMU emulator version 10.0.13\n"), Some("10.0.13"));
        assert_eq!(parse_version("QEMU emulator version of my own"), None);
        assert_eq!(parse_version("nothing"), None);
    }
}
