//! From the kernel's first process to a guest that can be claimed.
//!
//! ```text
//! kernel file systems --> modules --> root (base + disk) --> run-time file systems --> network --> listening
//! ```
//! Any step that fails says so in one line on the console and ends the machine: a guest that is half up would only
//! be waited for. Must not return.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};
use roost_proto::guest::GUEST_RPC_PORT;
use tokio::net::TcpListener;

use crate::guest::{Effects, Guest, chain};
use crate::{identity, mount, net, reap, server, sys};

const MODULES: &str = "/modules";
const FILES_SOFT_MAX: u64 = 65_536;
const FILES_HARD_MAX: u64 = 1_048_576;
/// Threads that wait for disks.
const BLOCKING_THREADS_MAX: usize = 16;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot open the console")]
    Console(#[source] io::Error),
    #[error("cannot load module {0}")]
    Module(String, #[source] io::Error),
    #[error(transparent)]
    Mount(#[from] mount::Error),
    #[error(transparent)]
    Network(#[from] net::Error),
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error("cannot set resource limits")]
    Limits(#[source] nix::Error),
    #[error("cannot raise the priority")]
    Priority(#[source] io::Error),
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
    #[error("cannot be told of ended processes")]
    Reap(#[source] io::Error),
    #[error("stopped serving the host")]
    Serve(#[from] tonic::transport::Error),
    #[error("a task of init ended: {0}")]
    Ended(String),
}

/// Runs the guest until its machine ends.
pub fn run() -> ExitCode {
    let result = std::panic::catch_unwind(|| boot().and_then(|()| serve()));
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => eprintln!("roost-init: fatal: {}", chain(&error)),
        // The panic itself was printed by the hook.
        Err(_) => eprintln!("roost-init: fatal: init panicked"),
    }
    end_machine()
}

/// A restart, which every VMM is told to take for the end: not all machines can power themselves off.
fn end_machine() -> ! {
    nix::unistd::sync();
    // Unreachable as PID 1 with all capabilities; if it fails anyway there is nothing left to do.
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn boot() -> Result<(), Error> {
    mount::mount_kernel_file_systems()?;
    sys::ensure_standard_descriptors().map_err(Error::Console)?;
    load_modules()?;
    mount::enter_root()?;
    mount::mount_run_time_file_systems()?;
    identity::ensure_mounted()?;
    net::ensure_network()?;
    sys::raise_priority().map_err(Error::Priority)?;
    setrlimit(Resource::RLIMIT_NOFILE, FILES_SOFT_MAX, FILES_HARD_MAX).map_err(Error::Limits)
}

/// In the order of their file names, which the image gives them.
fn load_modules() -> Result<(), Error> {
    let failed = |path: &Path| {
        let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default().into_owned();
        move |error| Error::Module(name, error)
    };
    let directory = fs::read_dir(MODULES).map_err(failed(Path::new(MODULES)))?;
    let mut paths: Vec<_> = directory.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let file = fs::File::open(&path).map_err(failed(&path))?;
        match nix::kmod::finit_module(&file, c"", nix::kmod::ModuleInitFlags::empty()) {
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(error) => return Err(failed(&path)(error.into())),
        }
    }
    Ok(())
}

/// One thread: a guest has one or two processors, and they belong to the tenant.
fn serve() -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .map_err(Error::Runtime)?;
    runtime.block_on(async {
        let guest = Arc::new(Guest::new(Effects::Guest));
        let address = SocketAddr::from((net::GUEST, GUEST_RPC_PORT));
        let listener = TcpListener::bind(address).await.map_err(|error| Error::Listen(address, error))?;
        // As tasks of their own: a panic ends the task and is seen here, it does not unwind through init.
        let reaper = tokio::spawn(reap::run(guest.processes.clone()));
        tokio::spawn(crate::clock::follow_machine());
        let server = tokio::spawn(server::serve(listener, net::GATEWAY.into(), guest));
        tokio::select! {
            ended = reaper => match ended {
                Ok(Ok(())) => Err(Error::Ended("reaper".into())),
                Ok(Err(error)) => Err(Error::Reap(error)),
                Err(error) => Err(Error::Ended(error.to_string())),
            },
            ended = server => match ended {
                Ok(Ok(())) => Err(Error::Ended("server".into())),
                Ok(Err(error)) => Err(error.into()),
                Err(error) => Err(Error::Ended(error.to_string())),
            },
        }
    })
}
