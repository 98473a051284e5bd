//! Directories: list, make, move, remove.

use std::fs::DirEntry;
use std::io;
use std::path::{Path, PathBuf};

use roost_proto::guest::{
    FileEntry, ListDirectoryReply, ListDirectoryRequest, MakeDirectoryRequest, MovePathRequest,
    RemovePathRequest, StatFileRequest,
};

use super::write::{make_directory, make_parents};
use super::{Error, entry, stat};
use crate::path::resolve;
use crate::user::Accounts;

pub const ENTRIES_MAX: usize = 10_000;
/// Keeps a listing of long names below the largest message.
const NAMES_BYTES_MAX: usize = 2 << 20;
const DEPTH_MAX: u32 = 64;

fn locate(path: &str) -> Result<(String, Accounts), Error> {
    let accounts = Accounts::read()?;
    Ok((resolve(path, &accounts.get_user("")?)?, accounts))
}

pub fn stat_path(request: &StatFileRequest) -> Result<FileEntry, Error> {
    let (path, accounts) = locate(&request.path)?;
    stat(&path, request.follow, &accounts)
}

/// Lists breadth first, so that a truncated answer has the upper levels; sorted by name within a directory.
pub fn list(request: &ListDirectoryRequest) -> Result<ListDirectoryReply, Error> {
    let (root, accounts) = locate(&request.path)?;
    let depth = request.depth.clamp(1, DEPTH_MAX);
    let mut reply = ListDirectoryReply::default();
    let mut names_bytes = 0;
    let mut level = vec![PathBuf::from(&root)];
    for at_depth in 0..depth {
        let mut below = Vec::new();
        for directory in level {
            let children = match sorted_children(&directory) {
                Ok(children) => children,
                // The directory that was asked for must be readable; one found on the way may be gone again.
                Err(source) if at_depth == 0 => return Err(Error::Io { path: root, source }),
                Err(_) => continue,
            };
            for child in children {
                let path = child.path();
                let Ok(metadata) = std::fs::symlink_metadata(&path) else {
                    continue;
                };
                names_bytes += path.as_os_str().len();
                if reply.entries.len() >= ENTRIES_MAX || names_bytes > NAMES_BYTES_MAX {
                    reply.truncated = true;
                    return Ok(reply);
                }
                reply.entries.push(entry(&path, &metadata, &accounts));
                if metadata.is_dir() {
                    below.push(path);
                }
            }
        }
        level = below;
    }
    Ok(reply)
}

fn sorted_children(directory: &Path) -> io::Result<Vec<DirEntry>> {
    // One more than can be answered is enough to see that there are too many.
    let mut children: Vec<DirEntry> =
        std::fs::read_dir(directory)?.take(ENTRIES_MAX + 1).collect::<io::Result<_>>()?;
    children.sort_by_key(DirEntry::file_name);
    Ok(children)
}

pub fn make(request: &MakeDirectoryRequest) -> Result<FileEntry, Error> {
    let accounts = Accounts::read()?;
    let user = accounts.get_user(&request.user)?;
    let path = resolve(&request.path, &user)?;
    let directory = Path::new(&path);
    if request.parents {
        if directory.is_dir() {
            return stat(&path, true, &accounts);
        }
        make_parents(directory.parent().unwrap_or(Path::new("/")), &user)?;
    }
    make_directory(directory, request.mode, &user)?;
    stat(&path, true, &accounts)
}

pub fn rename(request: &MovePathRequest) -> Result<FileEntry, Error> {
    let (from, accounts) = locate(&request.from)?;
    let (to, _) = locate(&request.to)?;
    let flags = if request.overwrite { RENAME_REPLACE } else { RENAME_KEEP };
    match nix::fcntl::renameat2(nix::fcntl::AT_FDCWD, from.as_str(), nix::fcntl::AT_FDCWD, to.as_str(), flags)
    {
        Ok(()) => stat(&to, false, &accounts),
        Err(nix::Error::EEXIST) => Err(Error::Exists(to)),
        Err(error) => Err(Error::Io { path: format!("{from} to {to}"), source: error.into() }),
    }
}

const RENAME_REPLACE: nix::fcntl::RenameFlags = nix::fcntl::RenameFlags::empty();
const RENAME_KEEP: nix::fcntl::RenameFlags = nix::fcntl::RenameFlags::RENAME_NOREPLACE;

/// Removes a path; a directory with something in it only if `recursive`.
pub fn remove(request: &RemovePathRequest) -> Result<(), Error> {
    let (path, _) = locate(&request.path)?;
    let metadata = std::fs::symlink_metadata(&path).map_err(Error::at(&path))?;
    let removed = match (metadata.is_dir(), request.recursive) {
        (false, _) => std::fs::remove_file(&path),
        (true, false) => std::fs::remove_dir(&path),
        (true, true) => std::fs::remove_dir_all(&path),
    };
    removed.map_err(Error::at(&path))
}
