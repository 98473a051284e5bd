//! Network namespaces by name: made, entered, listed, removed.
//!
//! A namespace is made by a thread of its own (`unshare`) and kept by a bind mount below `/run/netns`, as
//! `ip netns` does it. Work inside happens on a thread that entered it and ends afterwards, never on a thread
//! of the async runtime. Owns no rule and no device: see `seal.rs` and `tap.rs`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::fstatfs;
use roost_domain::id::ExecutionId;

use super::names::Instance;

/// Where `ip netns` looks too.
pub const NETNS_DIR: &str = "/run/netns";
/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step} of network namespace {name}")]
    Step { step: &'static str, name: String, source: io::Error },
    #[error("preparing {NETNS_DIR}")]
    Directory(#[source] io::Error),
    #[error("starting a thread for network namespace {name}")]
    Thread { name: String, source: io::Error },
    #[error("work in network namespace {name} panicked")]
    Panicked { name: String },
}

/// An open network namespace. Keeps it alive, also after [`remove`].
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside the namespace and waits for it.
    ///
    /// Sockets belong to the namespace they were made in, so what `work` returns stays usable everywhere.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        std::thread::scope(|scope| {
            let inside = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
                Ok(work())
            });
            let thread = inside.map_err(|source| Error::Thread { name: self.name.clone(), source })?;
            match thread.join() {
                Ok(result) => result.map_err(step("entering", &self.name)),
                Err(_) => Err(Error::Panicked { name: self.name.clone() }),
            }
        })
    }
}

fn step(step: &'static str, name: &str) -> impl FnOnce(io::Error) -> Error {
    let name = name.to_owned();
    move |source| Error::Step { step, name, source }
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// Makes the namespace unless it is there. A file of that name left without its mount is replaced.
pub fn ensure(name: &str) -> Result<Netns, Error> {
    ensure_directory()?;
    if let Some(found) = find(name)? {
        return Ok(found);
    }
    let path = path_of(name);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o444)
        .open(&path)
        .map_err(step("naming", name))?;
    let target = path.clone();
    let made = std::thread::Builder::new().name("netns-new".into()).spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    });
    made.map_err(|source| Error::Thread { name: name.to_owned(), source })?
        .join()
        .map_err(|_| Error::Panicked { name: name.to_owned() })?
        .map_err(|errno| step("making", name)(errno.into()))?;
    find(name)?.ok_or_else(|| step("opening", name)(io::ErrorKind::NotFound.into()))
}

/// Opens the namespace, if it is there.
pub fn find(name: &str) -> Result<Option<Netns>, Error> {
    let file = match File::open(path_of(name)) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(step("opening", name)(source)),
    };
    let kind = fstatfs(&file).map_err(|errno| step("looking at", name)(errno.into()))?;
    Ok((kind.filesystem_type().0 as i64 == NSFS_MAGIC).then(|| Netns { name: name.to_owned(), file }))
}

/// Whether anything has that name, a namespace or what a crash left of one.
pub fn is_named(name: &str) -> bool {
    path_of(name).exists()
}

/// Takes the name away. The namespace itself goes with its last socket, device and process.
pub fn remove(name: &str) -> Result<(), Error> {
    let path = path_of(name);
    // EINVAL: the file is there without a mount; ENOENT: nothing is there.
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(step("unmounting", name)(errno.into())),
    }
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(step("removing the name", name)(source))
        }
        _ => Ok(()),
    }
}

/// Every namespace that carries a name of this instance.
pub fn list(instance: &Instance) -> Result<Vec<ExecutionId>, Error> {
    let entries = match fs::read_dir(NETNS_DIR) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Directory(source)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::Directory)?.file_name();
        found.extend(name.to_str().and_then(|name| instance.find_execution(name)));
    }
    Ok(found)
}

/// Makes `/run/netns` a mount of its own that propagates: a mount namespace copied from this one then loses a
/// namespace when we do, instead of keeping it alive. The lock is for other agents and `ip netns`.
fn ensure_directory() -> Result<(), Error> {
    let failed = |errno: Errno| Error::Directory(errno.into());
    fs::create_dir_all(NETNS_DIR).map_err(Error::Directory)?;
    let directory = File::open(NETNS_DIR).map_err(Error::Directory)?;
    let _locked = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, errno)| Error::Directory(errno.into()))?;
    let share = || {
        let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
        mount(None::<&str>, NETNS_DIR, None::<&str>, flags, None::<&str>)
    };
    match share() {
        // Not a mount yet.
        Err(Errno::EINVAL) => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(NETNS_DIR), NETNS_DIR, None::<&str>, flags, None::<&str>).map_err(failed)?;
            share().map_err(failed)
        }
        other => other.map_err(failed),
    }
}
