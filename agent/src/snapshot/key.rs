//! What a memory snapshot can be restored into. Pure.

use serde::{Deserialize, Serialize};

/// Equal keys: the device state and the memory fit. Anything else boots from the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Digest of the image.
    pub image: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// Driver and machine type, e.g. `qemu-tcg/microvm`.
    pub machine: String,
    pub vmm_version: String,
    /// Everything about the virtual hardware that is on the VMM's command line.
    pub hardware: String,
    /// Of the guest's kernel.
    pub command_line: String,
}

/// The first difference found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("it was taken with image {saved}, not {wanted}")]
    Image { saved: String, wanted: String },
    #[error(
        "it was taken with {saved_vcpus} CPUs and {saved_mib} MiB, not {wanted_vcpus} and {wanted_mib} MiB"
    )]
    Geometry { saved_vcpus: u32, saved_mib: u64, wanted_vcpus: u32, wanted_mib: u64 },
    #[error("it was taken on machine {saved}, not {wanted}")]
    Machine { saved: String, wanted: String },
    #[error("it was taken by version {saved} of the VMM, not {wanted}")]
    VmmVersion { saved: String, wanted: String },
    #[error("it was taken with other virtual hardware")]
    Hardware { saved: String, wanted: String },
    #[error("its kernel was started with another command line")]
    CommandLine { saved: String, wanted: String },
}

impl Key {
    /// Whether a snapshot with this key fits a VMM that has the key `wanted`.
    pub fn check(&self, wanted: &Self) -> Result<(), Mismatch> {
        let pair =
            |saved: &String, wanted: &String| (saved != wanted).then(|| (saved.clone(), wanted.clone()));
        if let Some((saved, wanted)) = pair(&self.image, &wanted.image) {
            return Err(Mismatch::Image { saved, wanted });
        }
        if (self.vcpus, self.memory_mib) != (wanted.vcpus, wanted.memory_mib) {
            return Err(Mismatch::Geometry {
                saved_vcpus: self.vcpus,
                saved_mib: self.memory_mib,
                wanted_vcpus: wanted.vcpus,
                wanted_mib: wanted.memory_mib,
            });
        }
        if let Some((saved, wanted)) = pair(&self.machine, &wanted.machine) {
            return Err(Mismatch::Machine { saved, wanted });
        }
        if let Some((saved, wanted)) = pair(&self.vmm_version, &wanted.vmm_version) {
            return Err(Mismatch::VmmVersion { saved, wanted });
        }
        if let Some((saved, wanted)) = pair(&self.hardware, &wanted.hardware) {
            return Err(Mismatch::Hardware { saved, wanted });
        }
        if let Some((saved, wanted)) = pair(&self.command_line, &wanted.command_line) {
            return Err(Mismatch::CommandLine { saved, wanted });
        }
        Ok(())
    }
}
