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

    /// As [`Self::give_way`], after a write that failed for want of room or for another reason: on a disk that is
    /// broken or was taken away room would not help, and be missing later.
    pub fn give_way_if_full(&self) -> bool {
        !self.free_mib().is_ok_and(|free_mib| free_mib > 0) && self.give_way()
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

/// A file system of its own, gone with the test.
#[cfg(test)]
pub(crate) struct SmallDisk(tempfile::TempDir);

#[cfg(test)]
impl SmallDisk {
    pub(crate) fn mount(mib: u32) -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let options = format!("size={mib}m");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), place.path(), Some("tmpfs"), flags, Some(options.as_str()))
            .expect("this test mounts a small file system, as root");
        Self(place)
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.0.path()
    }

    /// Takes all that is free.
    pub(crate) fn fill(&self) {
        let mut filler = std::fs::File::create(self.path().join("filler")).expect("an empty file");
        while std::io::Write::write_all(&mut filler, &[1; 4096]).is_ok() {}
    }
}

#[cfg(test)]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
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
    fn ballast_is_set_aside_beside_the_reserve_only_and_given_back_once_when_the_disk_is_full() {
        let disk = SmallDisk::mount(8);
        let room = Room::new(disk.path().to_owned(), 1, 1);
        assert!(room.set_aside().expect("measured"));
        assert!(room.set_aside().expect("still there"));
        assert!(file::allocated_bytes(&disk.path().join("ballast")).expect("there") >= MIB);
        assert!(!room.give_way_if_full(), "there is room: whatever failed, it was not for the want of it");
        disk.fill();
        assert!(room.give_way_if_full());
        assert!(!room.give_way());
        let crowded = Room::new(disk.path().to_owned(), 1 << 40, 1);
        assert!(!crowded.set_aside().expect("measured"));
    }
}
