//! Room on the file system of the state directory: what is kept in reserve, and the ballast that is given back at
//! the last moment.
//!
//! ```text
//! free ≥ reserve              everything goes on
//! free < reserve              no new disk, no memory snapshot; guests held by a full disk stay held
//! nothing free (ENOSPC)       the ballast is given back: what the agent has to write down goes on
//! free ≥ reserve + ballast    the ballast is set aside again
//! ```
//! Decides nothing about sandboxes; who asks is refused or not.

use std::path::PathBuf;
use std::sync::Arc;

use super::file;

const MIB: u64 = 1024 * 1024;

/// Too little is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the host's disk is nearly full: {free_mib} MiB are free, the last {reserve_mib} MiB are kept")]
pub struct Shortage {
    pub free_mib: u64,
    pub reserve_mib: u64,
}

/// Why new sandboxes and snapshots are refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Short(#[from] Shortage),
    #[error("measuring the state directory")]
    Measure(#[from] file::Error),
}

/// The state directory's file system. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Room {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state_dir: PathBuf,
    ballast: PathBuf,
    ballast_mib: u64,
    reserve_mib: u64,
}

impl Room {
    pub fn new(state_dir: PathBuf, reserve_mib: u64, ballast_mib: u64) -> Self {
        let ballast = state_dir.join("ballast");
        Self { inner: Arc::new(Inner { state_dir, ballast, ballast_mib, reserve_mib }) }
    }

    /// MiB that are free now.
    pub fn free_mib(&self) -> Result<u64, file::Error> {
        Ok(file::space(&self.inner.state_dir)?.available_bytes / MIB)
    }

    /// Whether something large may be written.
    pub fn check(&self) -> Result<(), Error> {
        let (free_mib, reserve_mib) = (self.free_mib()?, self.inner.reserve_mib);
        if free_mib < reserve_mib { Err(Shortage { free_mib, reserve_mib }.into()) } else { Ok(()) }
    }

    /// Gives the ballast back: the disk is full and something has to be written down. True if there was any.
    pub fn give_way(&self) -> bool {
        match file::release_ballast(&self.inner.ballast) {
            Ok(true) => {
                tracing::error!("the disk of the state directory is full, the ballast is given back");
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::error!(error = %roost_daemon::telemetry::chain(&error), "the ballast stays");
                false
            }
        }
    }

    /// Sets the ballast aside where there is room for it beside the reserve. True if it is there now.
    pub fn set_aside(&self) -> Result<bool, file::Error> {
        let inner = &self.inner;
        if inner.ballast_mib == 0 || inner.ballast.exists() {
            return Ok(true);
        }
        if self.free_mib()? < inner.reserve_mib + inner.ballast_mib {
            return Ok(false);
        }
        file::ensure_ballast(&inner.ballast, inner.ballast_mib * MIB)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_needs_room_is_refused_below_the_reserve_and_told_how_much_there_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let room = |reserve_mib| Room::new(dir.path().to_owned(), reserve_mib, 1);
        assert!(room(1).check().is_ok());
        let error = room(1 << 40).check().expect_err("no disk is that large");
        assert!(error.to_string().contains("MiB are free, the last 1099511627776 MiB are kept"), "{error}");
    }

    #[test]
    fn ballast_is_set_aside_beside_the_reserve_only_and_given_back_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let room = Room::new(dir.path().to_owned(), 1, 1);
        assert!(room.set_aside().expect("measured"));
        assert!(room.set_aside().expect("still there"));
        assert!(file::allocated_bytes(&dir.path().join("ballast")).expect("there") >= MIB);
        assert!(room.give_way());
        assert!(!room.give_way());
        let crowded = Room::new(dir.path().to_owned(), 1 << 40, 1);
        assert!(!crowded.set_aside().expect("measured"));
    }
}
