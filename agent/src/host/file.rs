//! Files that must be whole or absent, disks that must stay sparse, and the space they take.
//!
//! Whatever is written here appears under its name only when it is complete and on disk. Names ending in
//! [`UNFINISHED`] are what a crash left behind.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Whence, lseek};

use super::tool;

/// Ending of a file that is not complete.
pub const UNFINISHED: &str = ".unfinished";
const MKE2FS_DEADLINE: Duration = Duration::from_secs(60);
const MIB: u64 = 1024 * 1024;
const COPY_BYTES: usize = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step} {path}")]
    Step { step: &'static str, path: PathBuf, source: io::Error },
    #[error("making an empty file system")]
    Format(#[from] tool::Error),
    #[error("{path} has no parent directory")]
    NoParent { path: PathBuf },
}

impl Error {
    /// The file system is full: a state of the host, not a fault of the caller.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Step { source, .. } if source.raw_os_error() == Some(libc::ENOSPC))
    }
}

fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Step { step, path, source }
}

/// A file under construction. Dropped without [`Pending::commit`], it goes away.
#[derive(Debug)]
struct Pending {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl Pending {
    fn create(target: &Path) -> Result<Self, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut name = OsString::from(target);
        name.push(format!(".{}-{}{UNFINISHED}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let temporary = PathBuf::from(name);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&temporary);
        let file = file.map_err(at("making", &temporary))?;
        Ok(Self { file, temporary, target: target.to_owned(), committed: false })
    }

    fn commit(mut self) -> Result<(), Error> {
        self.file.sync_all().map_err(at("writing out", &self.temporary))?;
        fs::rename(&self.temporary, &self.target).map_err(at("naming", &self.target))?;
        self.committed = true;
        let parent = self.target.parent().ok_or_else(|| Error::NoParent { path: self.target.clone() })?;
        sync_directory(parent)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort: what stays is removed by `remove_unfinished` at the next start.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Makes names in `path` durable.
pub fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(at("writing out", path))
}

/// Replaces `path` as a whole; readable for root alone.
pub fn write_atomically(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let mut pending = Pending::create(path)?;
    pending.file.write_all(contents).map_err(at("writing", path))?;
    pending.commit()
}

/// Copies `from` to `to`: shared blocks where the file system can (`FICLONE`), else data without holes.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<(), Error> {
    let source = File::open(from).map_err(at("opening", from))?;
    let pending = Pending::create(to)?;
    if !clone_blocks(&source, &pending.file).map_err(at("sharing the blocks of", from))? {
        copy_extents(&source, &pending.file).map_err(at("copying", from))?;
    }
    pending.commit()
}

/// False: this file system (or this pair of them) cannot.
#[allow(unsafe_code)]
fn clone_blocks(from: &File, to: &File) -> io::Result<bool> {
    // SAFETY: FICLONE takes the number of an open descriptor and touches no memory.
    if unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) } == 0 {
        return Ok(true);
    }
    let failure = io::Error::last_os_error();
    match failure.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EXDEV | libc::EINVAL | libc::ENOSYS) => Ok(false),
        _ => Err(failure),
    }
}

fn copy_extents(from: &File, to: &File) -> io::Result<()> {
    let size = from.metadata()?.len() as i64;
    to.set_len(size as u64)?;
    let mut position = 0;
    while position < size {
        let start = match lseek(from, position, Whence::SeekData) {
            Err(Errno::ENXIO) => break,
            other => other?,
        };
        let end = lseek(from, start, Whence::SeekHole)?;
        copy_range(from, to, start, end)?;
        position = end;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, start: i64, end: i64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let wanted = (end - read_at) as usize;
        match copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), wanted) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // Two file systems that the kernel does not copy between.
            Err(Errno::EXDEV | Errno::EOPNOTSUPP | Errno::EINVAL) => {
                return copy_by_hand(from, to, read_at as u64, end as u64);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0u8; COPY_BYTES];
    let mut at = start;
    while at < end {
        let piece = &mut buffer[..(end - at).min(COPY_BYTES as u64) as usize];
        from.read_exact_at(piece, at)?;
        to.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Makes an empty ext4 disk unless `disk` is there. Each size is formatted once, in `cache_dir`, and copied.
pub fn ensure_empty_disk(cache_dir: &Path, disk: &Path, size_mib: u64) -> Result<(), Error> {
    if disk.try_exists().map_err(at("looking at", disk))? {
        return Ok(());
    }
    let formatted = cache_dir.join(format!("ext4-{size_mib}"));
    if !formatted.try_exists().map_err(at("looking at", &formatted))? {
        fs::create_dir_all(cache_dir).map_err(at("making", cache_dir))?;
        let pending = Pending::create(&formatted)?;
        pending.file.set_len(size_mib.saturating_mul(MIB)).map_err(at("sizing", &formatted))?;
        let options = ["-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"];
        let mut arguments: Vec<OsString> = options.map(OsString::from).into();
        arguments.push(pending.temporary.clone().into());
        tool::run("mke2fs", &arguments, b"", MKE2FS_DEADLINE)?;
        pending.commit()?;
    }
    copy_sparse(&formatted, disk)
}

/// Bytes a file really takes, holes not counted.
pub fn allocated_bytes(path: &Path) -> Result<u64, Error> {
    let metadata = fs::metadata(path).map_err(at("looking at", path))?;
    Ok(metadata.blocks() * 512)
}

/// Room of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub total_bytes: u64,
    /// What processes without privilege could still write.
    pub available_bytes: u64,
}

pub fn space(path: &Path) -> Result<Space, Error> {
    let found = statvfs(path).map_err(|errno| at("measuring", path)(errno.into()))?;
    let block = found.fragment_size();
    Ok(Space {
        total_bytes: found.blocks().saturating_mul(block),
        available_bytes: found.blocks_available().saturating_mul(block),
    })
}

/// Sets aside room that [`release_ballast`] gives back when the file system is full, so that journals and state
/// can still be committed.
pub fn ensure_ballast(path: &Path, bytes: u64) -> Result<(), Error> {
    if fs::metadata(path).is_ok_and(|found| found.len() == bytes) {
        return Ok(());
    }
    let pending = Pending::create(path)?;
    fallocate(&pending.file, FallocateFlags::empty(), 0, bytes as i64)
        .map_err(|errno| at("reserving", path)(errno.into()))?;
    pending.commit()
}

/// True if there was ballast to give back.
pub fn release_ballast(path: &Path) -> Result<bool, Error> {
    remove_if_there(path)
}

/// True if there was such a file.
pub fn remove_if_there(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true).map_err(at("removing", path)),
    }
}

/// Removes a directory with all that is in it, if it is there.
pub fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(at("removing", path)),
    }
}

/// Removes what a crash left in `dir`. Only safe before anything writes there.
pub fn remove_unfinished(dir: &Path) -> Result<(), Error> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(at("listing", dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(at("listing", dir))?;
        if entry.file_name().to_string_lossy().ends_with(UNFINISHED) {
            let path = entry.path();
            if path.is_dir() { remove_tree(&path)? } else { remove_if_there(&path).map(|_| ())? }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("listed");
        entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_write_replaces_the_whole_file_and_leaves_nothing_else() {
        let dir = directory();
        let path = dir.path().join("state");
        write_atomically(&path, b"a longer first text").expect("written");
        write_atomically(&path, b"second").expect("written");
        assert_eq!(fs::read(&path).expect("read"), b"second");
        assert_eq!(names(dir.path()), ["state"]);
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
    }

    fn check_copy(from: &Path, to: &Path) {
        let file = File::create(from).expect("made");
        file.set_len(64 * MIB).expect("sized");
        file.write_all_at(b"first", 0).expect("written");
        file.write_all_at(b"middle", 33 * MIB + 17).expect("written");
        file.sync_all().expect("synced");
        copy_sparse(from, to).expect("copied");
        assert_eq!(fs::metadata(to).expect("there").len(), 64 * MIB);
        assert!(allocated_bytes(to).expect("measured") <= MIB, "holes were filled");
        assert!(fs::read(from).expect("read") == fs::read(to).expect("read"), "copies differ");
    }

    #[test]
    fn a_copy_keeps_data_and_holes() {
        let dir = directory();
        check_copy(&dir.path().join("from"), &dir.path().join("to"));
    }

    #[test]
    fn a_copy_crosses_file_systems() {
        let (disk, memory) = (directory(), tempfile::tempdir_in("/dev/shm").expect("a directory"));
        let device = |dir: &tempfile::TempDir| fs::metadata(dir.path()).expect("there").dev();
        assert_ne!(
            device(&disk),
            device(&memory),
            "this test needs /tmp and /dev/shm to be two file systems"
        );
        check_copy(&disk.path().join("disk"), &memory.path().join("disk"));
        check_copy(&memory.path().join("back"), &disk.path().join("back"));
    }

    #[test]
    fn an_empty_disk_is_made_once_and_never_replaced() {
        let dir = directory();
        let disk = dir.path().join("disk");
        ensure_empty_disk(&dir.path().join("cache"), &disk, 64).expect("made");
        let superblock_magic = |path: &Path| {
            let mut magic = [0u8; 2];
            File::open(path).expect("opened").read_exact_at(&mut magic, 1024 + 56).expect("read");
            magic
        };
        assert_eq!(superblock_magic(&disk), [0x53, 0xef]);
        fs::write(&disk, b"a tenant's data").expect("written");
        ensure_empty_disk(&dir.path().join("cache"), &disk, 64).expect("found");
        assert_eq!(fs::read(&disk).expect("read"), b"a tenant's data");
        assert_eq!(names(&dir.path().join("cache")), ["ext4-64"]);
    }

    #[test]
    fn ballast_takes_room_and_gives_it_back() {
        let dir = directory();
        let path = dir.path().join("ballast");
        ensure_ballast(&path, 4 * MIB).expect("made");
        ensure_ballast(&path, 4 * MIB).expect("found");
        assert!(allocated_bytes(&path).expect("measured") >= 4 * MIB);
        assert!(release_ballast(&path).expect("released"));
        assert!(!release_ballast(&path).expect("nothing left"));
    }

    #[test]
    fn only_unfinished_files_are_removed() {
        let dir = directory();
        fs::write(dir.path().join("kept"), b"").expect("written");
        fs::write(dir.path().join(format!("disk.1-0{UNFINISHED}")), b"").expect("written");
        fs::create_dir(dir.path().join(format!("snapshot{UNFINISHED}"))).expect("made");
        remove_unfinished(dir.path()).expect("removed");
        assert_eq!(names(dir.path()), ["kept"]);
    }
}
