//! What can go wrong with a VMM.

use std::io;
use std::path::PathBuf;

use super::qemu::qmp;
use crate::host::{memory, process, spawn, tool};
use crate::snapshot::{self, Mismatch};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step} {path}")]
    Prepare { step: &'static str, path: PathBuf, source: io::Error },
    #[error("starting the VMM")]
    Spawn(#[source] spawn::Error),
    #[error("watching the VMM")]
    Watch(#[source] process::Error),
    #[error("the VMM ended while {step}: {said}")]
    Ended { step: &'static str, said: String },
    #[error("{step}")]
    Control { step: &'static str, source: qmp::Error },
    #[error("asking the VMM for its version")]
    Version(#[source] tool::Error),
    #[error("the VMM's version reads \"{0}\"")]
    VersionText(String),
    #[error("the guest is in state \"{found}\" after {step}")]
    State { step: &'static str, found: String },
    #[error("the snapshot does not fit")]
    Incompatible(#[source] Box<Mismatch>),
    #[error("the snapshot cannot be restored")]
    Restore(#[source] snapshot::Error),
    #[error("the VMM refused the snapshot")]
    Refused(#[source] Box<Error>),
    #[error("saving the guest")]
    Save(#[source] snapshot::Error),
    #[error("finding the guest's memory")]
    Memory(#[source] memory::Error),
    #[error("made to fail")]
    Injected,
}

impl Error {
    /// This snapshot will never be restored; the disk still can be booted. Trouble of the host, which another try
    /// may not meet, is not of this kind.
    pub fn is_snapshot_unusable(&self) -> bool {
        match self {
            Self::Incompatible(_) | Self::Refused(_) => true,
            Self::Restore(error) => !matches!(error, snapshot::Error::Step { .. }),
            _ => false,
        }
    }
}
