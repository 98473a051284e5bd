//! Files of a sandbox: who may, and what a request means.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use roost_api::file::{
    Directory, FailedFile, FileChange, FileInfo, TreeNode, WriteFile, WriteFilesResult, WrittenFile,
};

use super::{guest, row};
use crate::app::guest::Guest;
use crate::app::guest::file::{self, MAX_WRITE_BYTES, NewFile};
use crate::app::{App, Caller, Error, Scope, text};

const MAX_FILES: usize = 1000;
const DEFAULT_TREE_DEPTH: u32 = 3;
const MAX_DEPTH: u32 = 32;

pub async fn write(
    app: &App,
    caller: &Caller,
    reference: &str,
    request: WriteFile,
) -> Result<FileInfo, Error> {
    let guest = open(app, caller, reference, Scope::SandboxesWrite).await?;
    file::write(&guest, decode(request)?).await
}

/// Writes one after the other; a file that fails does not stop the others.
pub async fn write_many(
    app: &App,
    caller: &Caller,
    reference: &str,
    requests: Vec<WriteFile>,
) -> Result<WriteFilesResult, Error> {
    if requests.len() > MAX_FILES {
        return Err(Error::invalid("files", format!("at most {MAX_FILES}")));
    }
    let guest = open(app, caller, reference, Scope::SandboxesWrite).await?;
    let mut result = WriteFilesResult { written: Vec::new(), failed: Vec::new() };
    for request in requests {
        let path = request.path.clone();
        let written = match decode(request) {
            Ok(new) => file::write(&guest, new).await,
            Err(error) => Err(error),
        };
        match written {
            Ok(info) => result.written.push(WrittenFile { path, size_bytes: info.size }),
            // The sandbox is gone: the rest would fail the same way.
            Err(error @ (Error::GuestSilent { .. } | Error::HostSilent { .. })) => return Err(error),
            Err(error) => result.failed.push(FailedFile { path, error: error.to_string() }),
        }
    }
    Ok(result)
}

fn decode(request: WriteFile) -> Result<NewFile, Error> {
    let content = STANDARD.decode(request.content_base64.as_bytes());
    let content = content.map_err(|_| Error::invalid("content_base64", "is not base64"))?;
    if content.len() as u64 > MAX_WRITE_BYTES {
        return Err(Error::FileTooLarge { limit_bytes: MAX_WRITE_BYTES });
    }
    let user =
        request.user.map(|user| text::check_guest_word("user", Some(user), text::GUEST_USER_BYTES_MAX));
    let user = user.transpose()?;
    Ok(NewFile { path: request.path, content: Bytes::from(content), mode: request.mode, user })
}

pub async fn read(
    app: &App,
    caller: &Caller,
    reference: &str,
    path: &str,
) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + 'static + use<>, Error> {
    let guest = open(app, caller, reference, Scope::SandboxesRead).await?;
    let chunks = file::read(&guest, path).await?;
    Ok(chunks.map_err(|status| Error::GuestSilent { source: Some(status.into()) }))
}

pub async fn stat(app: &App, caller: &Caller, reference: &str, path: &str) -> Result<FileInfo, Error> {
    file::stat(&open(app, caller, reference, Scope::SandboxesRead).await?, path).await
}

pub async fn list(
    app: &App,
    caller: &Caller,
    reference: &str,
    path: Option<&str>,
    depth: Option<u32>,
) -> Result<Directory, Error> {
    let guest = open(app, caller, reference, Scope::SandboxesRead).await?;
    file::list(&guest, path, check_depth(depth.unwrap_or(1))?).await
}

pub async fn tree(
    app: &App,
    caller: &Caller,
    reference: &str,
    path: Option<&str>,
    depth: Option<u32>,
) -> Result<TreeNode, Error> {
    let guest = open(app, caller, reference, Scope::SandboxesRead).await?;
    file::tree(&guest, path, check_depth(depth.unwrap_or(DEFAULT_TREE_DEPTH))?).await
}

pub async fn watch(
    app: &App,
    caller: &Caller,
    reference: &str,
    path: Option<&str>,
) -> Result<impl Stream<Item = FileChange> + Send + 'static + use<>, Error> {
    let guest = open(app, caller, reference, Scope::SandboxesRead).await?;
    file::watch(&guest, path).await
}

fn check_depth(depth: u32) -> Result<u32, Error> {
    if (1..=MAX_DEPTH).contains(&depth) {
        Ok(depth)
    } else {
        Err(Error::invalid("depth", format!("1 to {MAX_DEPTH}")))
    }
}

async fn open(app: &App, caller: &Caller, reference: &str, scope: Scope) -> Result<Guest, Error> {
    caller.require(scope)?;
    guest(app, caller, row(app, caller, reference).await?).await
}
