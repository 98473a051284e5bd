//! Files of a sandbox: streamed in both directions, listed, watched.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use roost_api::Timestamp;
use roost_api::file::{Directory, FileChange, FileInfo, TreeNode};
use roost_proto::guest::file_chunk::Chunk;
use roost_proto::guest::file_entry::Kind;
use roost_proto::guest::write_file_input::Input;
use roost_proto::guest::{
    FileEntry, ListDirectoryRequest, ReadFileRequest, StatFileRequest, WatchEvent, WatchRequest,
    WriteFileHead, WriteFileInput, watch_event,
};

use super::{Guest, refuse};
use crate::app::Error;
use crate::app::guest::PathProblem;

/// What the guest protocol allows in one message.
const CHUNK_BYTES: usize = 64 * 1024;
/// The largest file one call writes.
pub const MAX_WRITE_BYTES: u64 = 64 * 1024 * 1024;
const MAX_PATH_BYTES: usize = 4096;
/// Relative paths start here.
const HOME: &str = "/workspace";

/// The path in the guest that a request means.
pub fn guest_path(path: &str) -> Result<String, Error> {
    let refused = |problem: &str| Error::Path {
        path: path.to_owned(),
        problem: problem.to_owned(),
        code: PathProblem::Refused,
    };
    if path.is_empty() {
        return Err(refused("a path is needed"));
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(Error::Path {
            path: String::new(),
            problem: format!("longer than {MAX_PATH_BYTES} bytes"),
            code: PathProblem::Refused,
        });
    }
    if path.contains('\0') {
        return Err(refused("a path cannot hold a zero byte"));
    }
    Ok(if path.starts_with('/') { path.to_owned() } else { format!("{HOME}/{path}") })
}

/// What to write where.
#[derive(Debug, Clone)]
pub struct NewFile {
    pub path: String,
    pub content: Bytes,
    pub mode: Option<u32>,
    pub user: Option<String>,
}

/// Writes a whole file; it appears under its name only when it is complete.
pub async fn write(guest: &Guest, file: NewFile) -> Result<FileInfo, Error> {
    let path = guest_path(&file.path)?;
    let head = WriteFileHead {
        path: path.clone(),
        user: file.user.unwrap_or_default(),
        mode: file.mode.unwrap_or(0),
        size_bytes: file.content.len() as u64,
        make_parents: true,
        modified_us: 0,
    };
    let content = file.content;
    let starts = (0..content.len()).step_by(CHUNK_BYTES);
    let chunks: Vec<Input> =
        starts.map(|at| Input::Data(content.slice(at..(at + CHUNK_BYTES).min(content.len())))).collect();
    let inputs =
        std::iter::once(Input::Head(head)).chain(chunks).map(|input| WriteFileInput { input: Some(input) });
    let answer = guest.client.clone().write_file(guest.request(tokio_stream::iter(inputs))).await;
    Ok(info(answer.map_err(|status| refuse(status, Some(&path)))?.into_inner()))
}

/// Opens a file; the stream is its bytes. Errors that come before the first byte come from this function.
pub async fn read(
    guest: &Guest,
    path: &str,
) -> Result<impl Stream<Item = Result<Bytes, tonic::Status>> + Send + 'static + use<>, Error> {
    let path = guest_path(path)?;
    let request = ReadFileRequest { path: path.clone(), offset: 0, limit_bytes: 0, user: String::new() };
    let answer = guest.client.clone().read_file(guest.request(request)).await;
    let mut chunks = answer.map_err(|status| refuse(status, Some(&path)))?.into_inner();
    // The head comes first, or the refusal does.
    let first = chunks.message().await.map_err(|status| refuse(status, Some(&path)))?;
    match first.and_then(|chunk| chunk.chunk) {
        Some(Chunk::Head(entry)) if entry.kind() == Kind::Directory => {
            Err(Error::Path { path, problem: "is a directory".to_owned(), code: PathProblem::Refused })
        }
        Some(Chunk::Head(_)) => Ok(chunks.filter_map(|chunk| async move {
            match chunk.map(|chunk| chunk.chunk) {
                Ok(Some(Chunk::Data(data))) => Some(Ok(data)),
                Ok(_) => None,
                Err(status) => Some(Err(status)),
            }
        })),
        _ => Err(Error::GuestSilent { source: None }),
    }
}

pub async fn stat(guest: &Guest, path: &str) -> Result<FileInfo, Error> {
    let path = guest_path(path)?;
    let request = StatFileRequest { path: path.clone(), follow: true };
    let answer = guest.client.clone().stat_file(guest.quick(request)).await;
    Ok(info(answer.map_err(|status| refuse(status, Some(&path)))?.into_inner()))
}

pub async fn list(guest: &Guest, path: Option<&str>, depth: u32) -> Result<Directory, Error> {
    let path = guest_path(path.unwrap_or(HOME))?;
    let request = ListDirectoryRequest { path: path.clone(), depth };
    let answer = guest.client.clone().list_directory(guest.quick(request)).await;
    let reply = answer.map_err(|status| refuse(status, Some(&path)))?.into_inner();
    Ok(Directory { path, entries: reply.entries.into_iter().map(info).collect(), truncated: reply.truncated })
}

/// A directory with what is below it, as one nested value.
pub async fn tree(guest: &Guest, path: Option<&str>, depth: u32) -> Result<TreeNode, Error> {
    let listing = list(guest, path, depth).await?;
    Ok(nest(&listing.path, listing.entries))
}

/// Changes below a directory until the caller goes away.
pub async fn watch(
    guest: &Guest,
    path: Option<&str>,
) -> Result<impl Stream<Item = FileChange> + Send + 'static + use<>, Error> {
    let path = guest_path(path.unwrap_or(HOME))?;
    let request = WatchRequest { path: path.clone(), recursive: true };
    let answer = guest.client.clone().watch(guest.request(request)).await;
    let events = answer.map_err(|status| refuse(status, Some(&path)))?.into_inner();
    Ok(events.filter_map(|event| async move { event.ok().and_then(change) }))
}

fn change(event: WatchEvent) -> Option<FileChange> {
    let name = match event.kind() {
        watch_event::Kind::Created => "created",
        watch_event::Kind::Modified => "modified",
        watch_event::Kind::Removed => "removed",
        watch_event::Kind::Moved => "moved",
        watch_event::Kind::Overflow => "overflow",
        watch_event::Kind::Unspecified | watch_event::Kind::Ready => return None,
    };
    let old_path = (!event.old_path.is_empty()).then_some(event.old_path);
    Some(FileChange { event: name.to_owned(), path: event.path, is_dir: event.is_directory, old_path })
}

fn info(entry: FileEntry) -> FileInfo {
    let kind = entry.kind();
    FileInfo {
        name: last_part(&entry.path).to_owned(),
        path: entry.path,
        kind: kind_name(kind).to_owned(),
        is_dir: kind == Kind::Directory,
        size: entry.size_bytes,
        mode: format!("{:04o}", entry.mode & 0o7777),
        owner: entry.owner,
        group: entry.group,
        modified_at: Timestamp::from_micros(entry.modified_us),
        link_target: (!entry.link_target.is_empty()).then_some(entry.link_target),
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "dir",
        Kind::Symlink => "symlink",
        Kind::Other | Kind::Unspecified => "other",
    }
}

fn last_part(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}

/// Puts entries below their parents. An entry whose parent is not in the list belongs to the root.
fn nest(root: &str, entries: Vec<FileInfo>) -> TreeNode {
    let mut below: BTreeMap<String, Vec<FileInfo>> = BTreeMap::new();
    for entry in entries {
        let parent = entry.path.trim_end_matches('/').rsplit_once('/').map_or("", |(parent, _)| parent);
        let parent = if parent.is_empty() { "/" } else { parent };
        below.entry(parent.to_owned()).or_default().push(entry);
    }
    let root = if root == "/" { root } else { root.trim_end_matches('/') };
    let children = children_of(root, &mut below);
    TreeNode {
        path: root.to_owned(),
        name: last_part(root).to_owned(),
        kind: "dir".to_owned(),
        size: None,
        children: Some(children),
    }
}

/// Recursion ends: every call takes its directory's entries out of the map.
fn children_of(path: &str, below: &mut BTreeMap<String, Vec<FileInfo>>) -> Vec<TreeNode> {
    let entries = below.remove(path).unwrap_or_default();
    let node = |entry: FileInfo, below: &mut _| TreeNode {
        children: entry.is_dir.then(|| children_of(&entry.path, below)),
        size: (!entry.is_dir).then_some(entry.size),
        path: entry.path,
        name: entry.name,
        kind: entry.kind,
    };
    entries.into_iter().map(|entry| node(entry, below)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: Kind) -> FileInfo {
        info(FileEntry {
            path: path.to_owned(),
            kind: kind.into(),
            size_bytes: 3,
            mode: 0o100644,
            ..Default::default()
        })
    }

    #[test]
    fn relative_paths_start_in_the_workspace() {
        assert_eq!(guest_path("a/b").unwrap(), "/workspace/a/b");
        assert_eq!(guest_path("/etc/hosts").unwrap(), "/etc/hosts");
        for bad in ["", "a\0b", &"x".repeat(MAX_PATH_BYTES + 1)] {
            assert!(matches!(guest_path(bad), Err(Error::Path { .. })));
        }
    }

    #[test]
    fn a_flat_listing_becomes_a_tree() {
        let entries = vec![
            entry("/w/a", Kind::Directory),
            entry("/w/a/b", Kind::Directory),
            entry("/w/a/b/c.txt", Kind::File),
            entry("/w/d.txt", Kind::File),
        ];
        let tree = nest("/w/", entries);
        assert_eq!((tree.path.as_str(), tree.name.as_str()), ("/w", "w"));
        let children = tree.children.unwrap();
        assert_eq!(children.len(), 2);
        let deep = &children[0].children.as_ref().unwrap()[0].children.as_ref().unwrap()[0];
        assert_eq!((deep.name.as_str(), deep.size), ("c.txt", Some(3)));
        assert_eq!(children[1].children.is_none(), children[1].kind == "file");
    }

    #[test]
    fn modes_are_shown_in_octal_without_the_file_type() {
        assert_eq!(entry("/x", Kind::File).mode, "0644");
    }
}
