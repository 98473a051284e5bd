//! Giving up every privilege, once, before the first thread and the first byte from outside.
//!
//! Owns the order: directories and ports that need root are taken first (the caller's part), then the uid, the
//! capabilities, core dumps and ptrace, and last the system call filter, which everything later inherits. There is
//! no way back and no partial success: a step that fails ends the process.

mod privilege;
mod seccomp;

use nix::unistd::{Gid, Uid};
use roost_domain::sabotage::Defence;

pub use seccomp::{Error as FilterError, install as install_filter};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the data plane must not run as root: set uid and gid to its own")]
    Root,
    #[error("running as uid {actual}, configured is {wanted}; only root may change it")]
    OtherUser { actual: u32, wanted: u32 },
    #[error("drop privileges: {step}")]
    Errno { step: &'static str, source: nix::Error },
    #[error("drop privileges: {step}")]
    Capabilities { step: &'static str, source: caps::errors::CapsError },
    #[error(transparent)]
    Dumps(#[from] roost_daemon::dumps::Error),
    #[error("install the system call filter")]
    Filter(#[from] FilterError),
}

/// Whom to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
}

/// Becomes `identity` for good, without capabilities, and filters system calls on every thread.
pub fn enter(identity: Identity) -> Result<(), Error> {
    if identity.uid == 0 || identity.gid == 0 {
        return Err(Error::Root);
    }
    privilege::drop_to(Uid::from_raw(identity.uid), Gid::from_raw(identity.gid))?;
    if !Defence::SystemCallFilter.is_off() {
        seccomp::install()?;
    }
    Ok(())
}
