//! The directories a process has to itself, made and handed over while it still may.
//!
//! Only a directory that is the role's own already, or one that root made and nobody uses, is taken: a mistyped
//! path must not give a system directory away. A lock keeps a second process of the role out.

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, chown, geteuid};

use crate::confine::Identity;

const OWN_MODE: u32 = 0o700;
const LOCK_FILE: &str = "lock";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("own directory {}: {step}", path.display())]
    Io { path: PathBuf, step: &'static str, source: io::Error },
    #[error("{} is not a directory of its own: it belongs to uid {owner} and is in use", path.display())]
    NotOwn { path: PathBuf, owner: u32 },
    #[error("{} is not a directory", path.display())]
    NotDirectory { path: PathBuf },
    #[error("another process serves {}", path.display())]
    Locked { path: PathBuf },
}

/// Makes sure that `path` is a directory of the role alone. Repeatable.
pub fn ensure_own(path: &Path, identity: Identity) -> Result<(), Error> {
    let error = |step| move |source| Error::Io { path: path.to_owned(), step, source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(error("make its parent"))?;
    }
    match DirBuilder::new().mode(OWN_MODE).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(error("make it")(e)),
        _ => {}
    }
    let metadata = std::fs::symlink_metadata(path).map_err(error("look at it"))?;
    if !metadata.is_dir() {
        return Err(Error::NotDirectory { path: path.to_owned() });
    }
    if metadata.uid() != identity.uid {
        let is_empty = std::fs::read_dir(path).map_err(error("list it"))?.next().is_none();
        if !geteuid().is_root() || metadata.uid() != 0 || !is_empty {
            return Err(Error::NotOwn { path: path.to_owned(), owner: metadata.uid() });
        }
        let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
        chown(path, Some(uid), Some(gid)).map_err(|errno| error("hand it over")(errno.into()))?;
    }
    std::fs::set_permissions(path, Permissions::from_mode(OWN_MODE)).map_err(error("set its mode"))
}

/// Locks the directory for as long as the file is held; run as the role itself.
pub fn lock(path: &Path) -> Result<File, Error> {
    let error = |step| move |source| Error::Io { path: path.to_owned(), step, source };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join(LOCK_FILE))
        .map_err(error("open its lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(error("lock it")(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Identity {
        Identity { uid: geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
    }

    #[test]
    fn an_own_directory_is_made_private_and_again_accepted() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/edge");
        for _ in 0..2 {
            ensure_own(&path, own()).unwrap();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, OWN_MODE);
        }
    }

    #[test]
    fn what_is_in_use_or_no_directory_is_not_taken() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("in-use");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("passwd"), "x").unwrap();
        let other = Identity { uid: 12345, gid: 12345 };
        assert!(matches!(ensure_own(&path, other), Err(Error::NotOwn { .. })));

        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(ensure_own(&link, own()), Err(Error::NotDirectory { .. })));
    }

    #[test]
    fn a_second_process_is_kept_out() {
        let directory = tempfile::tempdir().unwrap();
        let held = lock(directory.path()).unwrap();
        assert!(matches!(lock(directory.path()), Err(Error::Locked { .. })));
        drop(held);
        lock(directory.path()).unwrap();
    }
}
