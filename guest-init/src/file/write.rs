//! Takes a file in: into a temporary one beside it, which gets the name when it is whole.
//!
//! Owns the temporary file: whatever breaks off before the rename removes it again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::unistd::{Gid, Uid};
use roost_proto::guest::write_file_input::Input;
use roost_proto::guest::{FileEntry, WriteFileHead, WriteFileInput};
use tonic::{Status, Streaming};

use super::{Error, blocking, stat};
use crate::clock;
use crate::path::resolve;
use crate::user::{Accounts, User};

const DEFAULT_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;

static NEXT_TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// Receives a whole file.
pub async fn receive(mut input: Streaming<WriteFileInput>) -> Result<FileEntry, Status> {
    let Some(WriteFileInput { input: Some(Input::Head(head)) }) = input.message().await? else {
        return Err(Error::NoHead.into());
    };
    let mut writing = blocking(move || Writing::begin(head)).await?;
    loop {
        // An error here is the caller breaking off; the temporary file goes with `writing`.
        match input.message().await?.map(|message| message.input) {
            Some(Some(Input::Data(bytes))) => {
                writing = blocking(move || writing.append(&bytes)).await?;
            }
            Some(Some(Input::Head(_))) => return Err(Error::NoHead.into()),
            Some(None) => {}
            None => break,
        }
    }
    // A call that was cancelled looks like one that ended. Pending once lets the server see which it was: it drops
    // this future, and the temporary file with it, when the stream was reset.
    tokio::task::yield_now().await;
    Ok(blocking(move || writing.finish()).await?)
}

#[derive(Debug)]
struct Writing {
    file: File,
    temporary: Temporary,
    /// What the caller calls it, and what that is with links resolved.
    path: String,
    destination: PathBuf,
    declared: u64,
    received: u64,
    mode: u32,
    owner: (u32, u32),
    modified_us: i64,
}

impl Writing {
    fn begin(head: WriteFileHead) -> Result<Self, Error> {
        let accounts = Accounts::read()?;
        let user = accounts.get_user(&head.user)?;
        let path = resolve(&head.path, &user)?;
        // Writing through a link changes what it points to, as it does for everybody else.
        let destination = std::fs::canonicalize(&path).unwrap_or_else(|_| PathBuf::from(&path));
        let parent = destination.parent().unwrap_or(Path::new("/"));
        if head.make_parents {
            make_parents(parent, &user)?;
        }
        let (mode, owner) = match std::fs::metadata(&destination) {
            Ok(metadata) if metadata.is_file() => {
                (metadata.permissions().mode() & 0o7777, (metadata.uid(), metadata.gid()))
            }
            Ok(_) => return Err(Error::NotRegular(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (DEFAULT_MODE, (user.uid, user.gid)),
            Err(source) => return Err(Error::Io { path, source }),
        };
        let (file, temporary) = Temporary::create(parent).map_err(Error::at(&path))?;
        let mode = if head.mode == 0 { mode } else { head.mode & 0o7777 };
        Ok(Self {
            file,
            temporary,
            path,
            destination,
            declared: head.size_bytes,
            received: 0,
            mode,
            owner,
            modified_us: head.modified_us,
        })
    }

    fn append(mut self, bytes: &[u8]) -> Result<Self, Error> {
        self.received += bytes.len() as u64;
        if self.declared > 0 && self.received > self.declared {
            return Err(self.size_differs());
        }
        self.file.write_all(bytes).map_err(Error::at(&self.path))?;
        Ok(self)
    }

    fn finish(self) -> Result<FileEntry, Error> {
        if self.declared > 0 && self.received != self.declared {
            return Err(self.size_differs());
        }
        let apply = || {
            nix::unistd::fchown(
                &self.file,
                Some(Uid::from_raw(self.owner.0)),
                Some(Gid::from_raw(self.owner.1)),
            )?;
            self.file.set_permissions(std::fs::Permissions::from_mode(self.mode))?;
            if self.modified_us != 0 {
                self.file.set_modified(clock::from_us(self.modified_us))?;
            }
            self.temporary.rename_to(&self.destination)
        };
        apply().map_err(Error::at(&self.path))?;
        stat(&self.path, true, &Accounts::read()?)
    }

    fn size_differs(&self) -> Error {
        Error::SizeDiffers { path: self.path.clone(), declared: self.declared, received: self.received }
    }
}

/// A file without a lasting name, removed when dropped.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Temporary {
    fn create(directory: &Path) -> io::Result<(File, Self)> {
        let number = NEXT_TEMPORARY.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!(".roost-write-{}-{number}", clock::now_us()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok((file, Self(path)))
    }

    fn rename_to(&self, destination: &Path) -> io::Result<()> {
        match std::fs::rename(&self.0, destination) {
            // The file is mounted from elsewhere (like /etc/hosts) and cannot be replaced, only rewritten.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::fs::copy(&self.0, destination).map(drop)
            }
            other => other,
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename there is nothing of this name any more.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Creates missing directories and gives the ones it made to the user.
pub fn make_parents(directory: &Path, user: &User) -> Result<(), Error> {
    if directory.as_os_str().is_empty() || directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        make_parents(parent, user)?;
    }
    make_directory(directory, DIRECTORY_MODE, user)
}

pub fn make_directory(directory: &Path, mode: u32, user: &User) -> Result<(), Error> {
    let text = directory.to_string_lossy();
    std::fs::create_dir(directory).map_err(Error::at(&text))?;
    let mode = if mode == 0 { DIRECTORY_MODE } else { mode & 0o7777 };
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode)).map_err(Error::at(&text))?;
    std::os::unix::fs::chown(directory, Some(user.uid), Some(user.gid)).map_err(Error::at(&text))
}
