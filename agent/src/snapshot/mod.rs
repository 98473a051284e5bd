//! Memory snapshots on disk: begun, completed, opened, removed.
//!
//! ```text
//! <state>/snapshots/<id>.unfinished ── commit ──▶ <state>/snapshots/<id>/{manifest.json, device, ram}
//! ```
//! A snapshot appears under its name only when all of it is on disk. Its key says what it can be restored into;
//! the file formats are `ram.rs` and the VMM's own. Disks are not part of it. Blocks.

mod hashing;
mod key;
pub mod ram;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use roost_domain::id::SnapshotId;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use key::{Key, Mismatch};

use crate::host::file;

const MANIFEST: &str = "manifest.json";
const DEVICE: &str = "device";
const RAM: &str = "ram";
/// Changes when an older agent could not read what this one writes.
const FORMAT: u32 = 1;
/// More than any device state; it is read as a whole.
const MAX_DEVICE_BYTES: u64 = 64 * 1024 * 1024;
const MAX_MANIFEST_BYTES: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step} {path}")]
    Step { step: &'static str, path: PathBuf, source: io::Error },
    #[error("finishing snapshot {id}")]
    Finish { id: SnapshotId, source: file::Error },
    #[error("removing snapshot {id}")]
    Remove { id: SnapshotId, source: file::Error },
    #[error("snapshot {id} is not on this host")]
    Absent { id: SnapshotId },
    #[error("the manifest of snapshot {id} does not read as expected")]
    Manifest { id: SnapshotId, source: serde_json::Error },
    #[error("snapshot {id} was written in format {found}, this agent reads {FORMAT}")]
    Format { id: SnapshotId, found: u32 },
    #[error("{path} differs from its manifest")]
    Corrupt { path: PathBuf },
    #[error("guest memory in {path}")]
    Ram { path: PathBuf, source: ram::Error },
}

fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Step { step, path, source }
}

/// What a snapshot holds, and what it can be restored into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub key: Key,
    pub device: Contents,
    pub ram: Contents,
}

/// One file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    pub sha256: String,
    pub bytes: u64,
}

/// All snapshots of this host.
#[derive(Debug, Clone)]
pub struct Snapshots {
    root: PathBuf,
}

impl Snapshots {
    pub fn new(state_dir: &Path) -> Self {
        Self { root: state_dir.join("snapshots") }
    }

    pub fn directory(&self, id: &SnapshotId) -> PathBuf {
        self.root.join(id.to_string())
    }

    /// Starts a snapshot, in place of an unfinished one of that name.
    pub fn begin(&self, id: SnapshotId) -> Result<Draft, Error> {
        let dir = self.root.join(format!("{id}{}", file::UNFINISHED));
        file::remove_tree(&dir).map_err(|source| Error::Remove { id, source })?;
        fs::create_dir_all(&dir).map_err(at("making", &dir))?;
        let make = |path: PathBuf| {
            // A guest's memory is nobody else's to read.
            let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
            made.map_err(at("making", &path)).map(|file| (path, file))
        };
        let (device, ram) = (make(dir.join(DEVICE))?, make(dir.join(RAM))?);
        Ok(Draft { id, final_dir: self.directory(&id), dir, device, ram })
    }

    /// Opens a complete snapshot. Contents are verified as they are read.
    pub fn open(&self, id: SnapshotId) -> Result<Snapshot, Error> {
        let dir = self.directory(&id);
        let path = dir.join(MANIFEST);
        let text = match fs::metadata(&path) {
            Ok(found) if found.len() > MAX_MANIFEST_BYTES => return Err(Error::Corrupt { path }),
            Ok(_) => fs::read(&path).map_err(at("reading", &path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Absent { id }),
            Err(error) => return Err(at("looking at", &path)(error)),
        };
        let format: Format =
            serde_json::from_slice(&text).map_err(|source| Error::Manifest { id, source })?;
        if format.format != FORMAT {
            return Err(Error::Format { id, found: format.format });
        }
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|source| Error::Manifest { id, source })?;
        for (name, contents) in [(DEVICE, &manifest.device), (RAM, &manifest.ram)] {
            let path = dir.join(name);
            if fs::metadata(&path).map_err(at("looking at", &path))?.len() != contents.bytes {
                return Err(Error::Corrupt { path });
            }
        }
        Ok(Snapshot { id, dir, manifest })
    }

    /// Removes a snapshot, finished or not, if it is there.
    pub fn remove(&self, id: SnapshotId) -> Result<(), Error> {
        let unfinished = self.root.join(format!("{id}{}", file::UNFINISHED));
        // Under its unfinished name first: half a snapshot must not look like a whole one.
        match fs::rename(self.directory(&id), &unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // An unfinished one is in the way, which only a crash leaves behind.
                file::remove_tree(&unfinished).map_err(|source| Error::Remove { id, source })?;
                fs::rename(self.directory(&id), &unfinished).map_err(at("removing", &unfinished))?;
            }
            _ => {}
        }
        file::remove_tree(&unfinished).map_err(|source| Error::Remove { id, source })
    }

    /// Every complete snapshot.
    pub fn list(&self) -> Result<Vec<SnapshotId>, Error> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(at("listing", &self.root))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(at("listing", &self.root))?.file_name();
            found.extend(name.to_str().and_then(|name| SnapshotId::parse(name).ok()));
        }
        Ok(found)
    }

    /// Removes what a crash left. Only safe before the first [`Snapshots::begin`].
    pub fn remove_unfinished(&self) -> Result<(), Error> {
        file::remove_unfinished(&self.root).map_err(|source| Error::Step {
            step: "cleaning",
            path: self.root.clone(),
            source: io::Error::other(source),
        })
    }
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// A snapshot under construction. Dropped without [`Draft::commit`], it goes away.
#[derive(Debug)]
pub struct Draft {
    id: SnapshotId,
    dir: PathBuf,
    final_dir: PathBuf,
    device: (PathBuf, File),
    ram: (PathBuf, File),
}

impl Draft {
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Open for writing only, for the VMM to write its device state to.
    pub fn device(&self) -> &File {
        &self.device.1
    }

    /// Writes the guest's memory from `source`, which is asked for ascending ranges.
    pub fn write_ram(&self, source: &impl ram::Source) -> Result<Contents, Error> {
        let (path, file) = &self.ram;
        let written = ram::write(source, file).map_err(|source| Error::Ram { path: path.clone(), source })?;
        file.sync_all().map_err(at("writing out", path))?;
        Ok(written)
    }

    /// Puts the snapshot under its name. `ram` is what [`Draft::write_ram`] returned.
    pub fn commit(self, key: Key, ram: Contents) -> Result<Manifest, Error> {
        let (path, device) = &self.device;
        device.sync_all().map_err(at("writing out", path))?;
        let bytes = fs::read(path).map_err(at("reading", path))?;
        let device = Contents { sha256: hex::encode(Sha256::digest(&bytes)), bytes: bytes.len() as u64 };
        let manifest = Manifest { format: FORMAT, key, device, ram };
        let text = serde_json::to_vec(&manifest).map_err(|source| Error::Manifest { id: self.id, source })?;
        let finish = |source| Error::Finish { id: self.id, source };
        file::write_atomically(&self.dir.join(MANIFEST), &text).map_err(finish)?;
        file::remove_tree(&self.final_dir).map_err(finish)?;
        fs::rename(&self.dir, &self.final_dir).map_err(at("naming", &self.final_dir))?;
        if let Some(root) = self.final_dir.parent() {
            file::sync_directory(root).map_err(finish)?;
        }
        Ok(manifest)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After a commit nothing has that name; otherwise the next start cleans up what stays.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A complete snapshot.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub id: SnapshotId,
    dir: PathBuf,
    manifest: Manifest,
}

impl Snapshot {
    pub fn key(&self) -> &Key {
        &self.manifest.key
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Bytes it takes on disk.
    pub fn bytes(&self) -> u64 {
        self.manifest.device.bytes + self.manifest.ram.bytes
    }

    /// The VMM's device state, verified, open for reading only.
    pub fn open_device(&self) -> Result<File, Error> {
        let path = self.dir.join(DEVICE);
        if self.manifest.device.bytes > MAX_DEVICE_BYTES {
            return Err(Error::Corrupt { path });
        }
        let bytes = fs::read(&path).map_err(at("reading", &path))?;
        if hex::encode(Sha256::digest(&bytes)) != self.manifest.device.sha256 {
            return Err(Error::Corrupt { path });
        }
        File::open(&path).map_err(at("opening", &path))
    }

    /// Puts the guest's memory into `target`. On an error, what was written there is worthless.
    pub fn read_ram(&self, target: &impl ram::Target) -> Result<(), Error> {
        let path = self.dir.join(RAM);
        let file = File::open(&path).map_err(at("opening", &path))?;
        let read = ram::read(file, target).map_err(|source| Error::Ram { path: path.clone(), source })?;
        if read != self.manifest.ram { Err(Error::Corrupt { path }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
