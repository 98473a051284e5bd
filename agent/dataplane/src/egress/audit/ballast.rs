//! Room on the audit's disk that is given back for the ends of calls when nothing else is left.
//!
//! Written, not only reserved: the process may make no other system call for it, and every file system honours it.
//! While it is not set aside no call begins, so what was given back is there for the ends of those that did.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Completions of as many calls as may be open at once are smaller.
const BYTES: usize = 4 << 20;
static BLOCK: [u8; 64 << 10] = [0; 64 << 10];
/// Between two attempts to set it aside again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    is_set_aside: bool,
    tried: Option<Instant>,
}

impl Ballast {
    /// In `directory`, there or not.
    pub(super) fn beside(directory: &Path) -> Self {
        let path = directory.join("ballast");
        let is_set_aside = fs::metadata(&path).is_ok_and(|found| found.len() == BYTES as u64);
        Self { path, is_set_aside, tried: None }
    }

    /// Whether it is there, set aside now if it can be; asked often, it tries now and then.
    pub(super) fn is_set_aside(&mut self) -> bool {
        let is_due = self.tried.is_none_or(|tried| tried.elapsed() >= RETRY_AFTER);
        if !self.is_set_aside && is_due && self.set_aside().is_ok() {
            tracing::info!("there is room again for the audit");
        }
        self.is_set_aside
    }

    pub(super) fn set_aside(&mut self) -> io::Result<()> {
        if self.is_set_aside {
            return Ok(());
        }
        self.tried = Some(Instant::now());
        let written = self.write();
        match &written {
            Ok(()) => self.is_set_aside = true,
            Err(_) => drop(fs::remove_file(&self.path)),
        }
        written
    }

    fn write(&self) -> io::Result<()> {
        let mut file = File::create(&self.path)?;
        for _ in 0..BYTES / BLOCK.len() {
            file.write_all(&BLOCK)?;
        }
        file.sync_data()
    }

    /// True if there was any to give back.
    pub(super) fn give_back(&mut self) -> bool {
        let was_there = std::mem::take(&mut self.is_set_aside);
        self.tried = Some(Instant::now());
        was_there && fs::remove_file(&self.path).is_ok()
    }
}
