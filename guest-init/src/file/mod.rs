//! Files of the guest, for callers outside of it.
//!
//! Owns what one file looks like to a caller (`FileEntry`) and how failures of the file system are told.
//! Everything runs as root: inside a guest there is nobody to protect from its owner, and what is created is
//! given to the user. Must not block the runtime: callers use `blocking`.

pub mod list;
pub mod read;
pub mod write;

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use roost_proto::guest::FileEntry;
use roost_proto::guest::file_entry::Kind;
use tonic::Status;

use crate::user::{self, Accounts};
use crate::{clock, path};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{source}: {path}")]
    Io { path: String, source: io::Error },
    #[error("not a regular file: {0}")]
    NotRegular(String),
    #[error("exists already: {0}")]
    Exists(String),
    #[error("{declared} bytes were announced and {received} came: {path}")]
    SizeDiffers { path: String, declared: u64, received: u64 },
    #[error("{0}")]
    Path(#[from] path::Error),
    #[error("{0}")]
    User(#[from] user::Error),
    #[error("the caller broke off")]
    BrokenOff,
    #[error("the first message must be the head, and only the first")]
    NoHead,
    #[error("a file operation failed unexpectedly")]
    Panicked,
}

impl Error {
    pub fn at(path: &str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        use io::ErrorKind as Kind;
        let text = error.to_string();
        let Error::Io { source, .. } = &error else {
            return match error {
                Error::NotRegular(_) => Self::failed_precondition(text),
                Error::Exists(_) => Self::already_exists(text),
                Error::BrokenOff => Self::cancelled(text),
                Error::Panicked | Error::User(user::Error::Read { .. }) => Self::internal(text),
                _ => Self::invalid_argument(text),
            };
        };
        match source.kind() {
            Kind::NotFound => Self::not_found(text),
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => Self::permission_denied(text),
            Kind::AlreadyExists => Self::already_exists(text),
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => Self::resource_exhausted(text),
            Kind::InvalidInput | Kind::InvalidFilename => Self::invalid_argument(text),
            Kind::NotADirectory | Kind::IsADirectory | Kind::DirectoryNotEmpty | Kind::ResourceBusy => {
                Self::failed_precondition(text)
            }
            _ => Self::internal(text),
        }
    }
}

/// Runs a piece of file work where it may wait for the disk.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Panicked))
}

/// The entry of a path, of what a symbolic link points to if `follow`.
pub fn stat(path: &str, follow: bool, accounts: &Accounts) -> Result<FileEntry, Error> {
    let metadata = if follow { std::fs::metadata(path) } else { std::fs::symlink_metadata(path) };
    Ok(entry(Path::new(path), &metadata.map_err(Error::at(path))?, accounts))
}

pub fn entry(path: &Path, metadata: &Metadata, accounts: &Accounts) -> FileEntry {
    let file_type = metadata.file_type();
    let kind = if file_type.is_file() {
        Kind::File
    } else if file_type.is_dir() {
        Kind::Directory
    } else if file_type.is_symlink() {
        Kind::Symlink
    } else {
        Kind::Other
    };
    let link_target = match kind {
        Kind::Symlink => {
            std::fs::read_link(path).map(|to| to.to_string_lossy().into_owned()).unwrap_or_default()
        }
        _ => String::new(),
    };
    FileEntry {
        path: path.to_string_lossy().into_owned(),
        kind: kind.into(),
        size_bytes: metadata.len(),
        mode: metadata.permissions().mode() & 0o7777,
        owner: accounts.user_name(metadata.uid()),
        group: accounts.group_name(metadata.gid()),
        modified_us: metadata.modified().map(clock::to_us).unwrap_or_default(),
        link_target,
    }
}
