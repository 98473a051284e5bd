//! Reports changes below a path, by inotify.
//!
//! Owns the watches of one call and the table from watch to path. A directory that appears is watched at once and
//! what it already contains is reported, so nothing created in between is missed; beyond the limits the caller is
//! told by OVERFLOW to look for itself.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::inotify::{AddWatchFlags as Flags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use roost_proto::guest::watch_event::Kind;
use roost_proto::guest::{WatchEvent, WatchRequest};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, mpsc};
use tonic::Status;

use crate::file::{Error, blocking};
use crate::path::resolve;
use crate::sys;
use crate::user::Accounts;

/// Calls that watch at the same time.
const CALLS_MAX: usize = 32;
/// Directories of one call.
const DIRECTORIES_MAX: usize = 4_096;
const QUEUE_EVENTS: usize = 256;

static CALLS: Semaphore = Semaphore::const_new(CALLS_MAX);

/// Starts watching; READY is the first event, after which no change is missed.
pub async fn start(request: WatchRequest) -> Result<mpsc::Receiver<Result<WatchEvent, Status>>, Status> {
    let Ok(permit) = CALLS.try_acquire() else {
        return Err(Status::resource_exhausted(format!("{CALLS_MAX} watches are open already")));
    };
    let (inotify, watches, overflow) = blocking(move || open(&request)).await?;
    let ready = sys::watch_descriptor(inotify.as_fd().try_clone_to_owned()?)?;
    let (sender, receiver) = mpsc::channel(QUEUE_EVENTS);
    // The queue is empty and the receiver is in our hands.
    let _ = sender.try_send(Ok(event(Kind::Ready, &watches.root, false)));
    if overflow {
        let _ = sender.try_send(Ok(event(Kind::Overflow, &watches.root, false)));
    }
    tokio::spawn(async move {
        tokio::select! {
            () = report(&ready, inotify, watches, &sender) => {}
            () = sender.closed() => {}
        }
        drop(permit);
    });
    Ok(receiver)
}

fn open(request: &WatchRequest) -> Result<(Arc<Inotify>, Watches, bool), Error> {
    let path = resolve(&request.path, &Accounts::read()?.get_user("")?)?;
    let at_path = |error: nix::Error| Error::Io { path: path.clone(), source: error.into() };
    let inotify = Arc::new(Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(at_path)?);
    let mut watches =
        Watches { root: PathBuf::from(&path), recursive: request.recursive, paths: HashMap::new() };
    let watch = inotify.add_watch(watches.root.as_path(), mask()).map_err(at_path)?;
    watches.paths.insert(watch, watches.root.clone());
    let mut found = Vec::new();
    let root = watches.root.clone();
    let complete = !watches.recursive || watches.descend(&inotify, &root, &mut found);
    Ok((inotify, watches, !complete))
}

fn mask() -> Flags {
    Flags::IN_CREATE
        | Flags::IN_MODIFY
        | Flags::IN_ATTRIB
        | Flags::IN_DELETE
        | Flags::IN_DELETE_SELF
        | Flags::IN_MOVED_FROM
        | Flags::IN_MOVED_TO
        | Flags::IN_MOVE_SELF
}

fn event(kind: Kind, path: &Path, is_directory: bool) -> WatchEvent {
    WatchEvent {
        kind: kind.into(),
        path: path.to_string_lossy().into_owned(),
        is_directory,
        old_path: String::new(),
    }
}

#[derive(Debug)]
struct Watches {
    root: PathBuf,
    recursive: bool,
    paths: HashMap<WatchDescriptor, PathBuf>,
}

async fn report(
    ready: &AsyncFd<OwnedFd>,
    inotify: Arc<Inotify>,
    mut watches: Watches,
    sender: &mpsc::Sender<Result<WatchEvent, Status>>,
) {
    loop {
        let Ok(mut ready) = ready.readable().await else {
            return;
        };
        let read = ready.try_io(|_| inotify.read_events().map_err(io::Error::from));
        let events = match read {
            Ok(Ok(events)) => events,
            Ok(Err(error)) => return drop(sender.send(Err(Status::internal(error.to_string()))).await),
            Err(_would_block) => continue,
        };
        let handle = inotify.clone();
        // New directories are looked through, which may wait for the disk.
        let translated = blocking(move || {
            let translated = watches.translate(&handle, events);
            Ok((watches, translated))
        });
        let Ok((next, translated)) = translated.await else {
            return;
        };
        watches = next;
        for event in translated {
            if sender.send(Ok(event)).await.is_err() {
                return;
            }
        }
    }
}

impl Watches {
    /// Watches everything below a directory and lists it; false when there is too much of it.
    fn descend(&mut self, inotify: &Inotify, directory: &Path, found: &mut Vec<(PathBuf, bool)>) -> bool {
        let mut waiting = VecDeque::from([directory.to_path_buf()]);
        let mut complete = true;
        while let Some(directory) = waiting.pop_front() {
            // It may be gone again, or the kernel's own limit may be reached: the caller is told of the latter.
            for child in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = child.path();
                let is_directory = child.file_type().is_ok_and(|kind| kind.is_dir());
                if is_directory && self.paths.len() < DIRECTORIES_MAX && self.add(inotify, &path) {
                    waiting.push_back(path.clone());
                } else if is_directory && path.exists() {
                    complete = false;
                }
                if found.len() < DIRECTORIES_MAX {
                    found.push((path, is_directory));
                } else {
                    complete = false;
                }
            }
        }
        complete
    }

    fn add(&mut self, inotify: &Inotify, path: &Path) -> bool {
        let added = inotify.add_watch(path, mask() | Flags::IN_ONLYDIR | Flags::IN_DONT_FOLLOW);
        added.map(|watch| self.paths.insert(watch, path.to_path_buf())).is_ok()
    }

    fn translate(&mut self, inotify: &Inotify, events: Vec<InotifyEvent>) -> Vec<WatchEvent> {
        let mut translated: Vec<WatchEvent> = Vec::with_capacity(events.len());
        let mut moving: Option<(u32, PathBuf, bool)> = None;
        for raw in events {
            let is_directory = raw.mask.contains(Flags::IN_ISDIR);
            // Both halves of a move come one after the other; a half alone crossed the border of what is watched.
            if let Some((cookie, from, directory)) = moving.take() {
                if raw.mask.contains(Flags::IN_MOVED_TO) && raw.cookie == cookie {
                    if let Some(path) = self.path_of(&raw) {
                        self.renamed(&from, &path);
                        let old_path = from.to_string_lossy().into_owned();
                        translated.push(WatchEvent { old_path, ..event(Kind::Moved, &path, is_directory) });
                    }
                    continue;
                }
                self.forget_below(inotify, &from);
                translated.push(event(Kind::Removed, &from, directory));
            }
            if raw.mask.contains(Flags::IN_Q_OVERFLOW) {
                translated.push(event(Kind::Overflow, &self.root, false));
                continue;
            }
            if raw.mask.contains(Flags::IN_IGNORED) {
                self.paths.remove(&raw.wd);
                continue;
            }
            let Some(path) = self.path_of(&raw) else { continue };
            if raw.mask.contains(Flags::IN_MOVED_FROM) {
                moving = Some((raw.cookie, path, is_directory));
            } else if let Some(kind) = self.kind_of(&raw, &path) {
                let same = translated.last().is_some_and(|last| {
                    last.kind() == Kind::Modified && kind == Kind::Modified && Path::new(&last.path) == path
                });
                if !same {
                    translated.push(event(kind, &path, is_directory));
                }
                if kind == Kind::Created && is_directory && self.recursive {
                    self.follow_new_directory(inotify, &path, &mut translated);
                }
            }
        }
        if let Some((_, from, directory)) = moving {
            self.forget_below(inotify, &from);
            translated.push(event(Kind::Removed, &from, directory));
        }
        translated
    }

    fn path_of(&self, raw: &InotifyEvent) -> Option<PathBuf> {
        let directory = self.paths.get(&raw.wd)?;
        Some(raw.name.as_deref().map_or_else(|| directory.clone(), |name: &OsStr| directory.join(name)))
    }

    fn kind_of(&self, raw: &InotifyEvent, path: &Path) -> Option<Kind> {
        if raw.mask.intersects(Flags::IN_CREATE | Flags::IN_MOVED_TO) {
            Some(Kind::Created)
        } else if raw.mask.contains(Flags::IN_DELETE) {
            Some(Kind::Removed)
        } else if raw.mask.intersects(Flags::IN_DELETE_SELF | Flags::IN_MOVE_SELF) {
            // Told by the directory above already, unless there is none that is watched.
            (path == self.root).then_some(Kind::Removed)
        } else if raw.mask.intersects(Flags::IN_MODIFY | Flags::IN_ATTRIB) {
            Some(Kind::Modified)
        } else {
            None
        }
    }

    fn follow_new_directory(&mut self, inotify: &Inotify, path: &Path, translated: &mut Vec<WatchEvent>) {
        let mut found = Vec::new();
        let mut complete = self.paths.len() < DIRECTORIES_MAX && self.add(inotify, path);
        complete &= self.descend(inotify, path, &mut found);
        translated.extend(found.iter().map(|(path, is_directory)| event(Kind::Created, path, *is_directory)));
        if !complete && path.exists() {
            translated.push(event(Kind::Overflow, path, true));
        }
    }

    /// The kernel's watches follow a moved directory; their names must too.
    fn renamed(&mut self, from: &Path, to: &Path) {
        for path in self.paths.values_mut() {
            if let Ok(rest) = path.strip_prefix(from) {
                *path = if rest.as_os_str().is_empty() { to.to_path_buf() } else { to.join(rest) };
            }
        }
    }

    /// A directory that left what is watched is not watched any longer.
    fn forget_below(&mut self, inotify: &Inotify, from: &Path) {
        self.paths.retain(|watch, path| {
            let keep = !path.starts_with(from) || *path == self.root;
            if !keep {
                let _ = inotify.rm_watch(*watch);
            }
            keep
        });
    }
}
