//! Processes by identity: found, watched, ended.
//!
//! A process is its pid *and* its start time, and is held by a pidfd, so a number that was given away again is
//! never taken for it. The same for a child of this agent and for one that an earlier agent started; only the
//! exit status is known of children alone. Starting one is `spawn.rs`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use roost_domain::sabotage::Defence;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step} of process {pid}")]
    Step { step: &'static str, pid: u32, source: io::Error },
    #[error("/proc/{pid}/stat does not read as expected")]
    Format { pid: u32 },
}

fn step(step: &'static str, pid: u32) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Step { step, pid, source }
}

/// Identity of a VMM's process, good until the host restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VmmProcess {
    pub pid: u32,
    /// Clock ticks since the host's boot.
    pub start_time: u64,
}

impl VmmProcess {
    /// Whoever has that number now. `None` if nobody does, or only what is left of one.
    pub fn of_pid(pid: u32) -> Result<Option<Self>, Error> {
        let path = format!("/proc/{pid}/stat");
        let text = match std::fs::read_to_string(path) {
            Err(error) if is_gone(&error) => return Ok(None),
            other => other.map_err(step("reading the state", pid))?,
        };
        // The name may hold spaces and brackets, so count from the last bracket: state is field 3, start 22.
        let mut fields = text.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default().split_whitespace();
        let state = fields.next().ok_or(Error::Format { pid })?;
        let start = fields.nth(18).and_then(|text| text.parse().ok()).ok_or(Error::Format { pid })?;
        Ok((!matches!(state, "Z" | "X")).then_some(Self { pid, start_time: start }))
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// How a process ended, as far as this agent can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// It was started by an earlier agent, so its status went elsewhere.
    Unknown,
}

/// A process held by descriptor. Dropping it ends nothing.
#[derive(Debug)]
pub struct Process {
    identity: VmmProcess,
    pidfd: OwnedFd,
}

impl Process {
    /// Takes hold of a child that was just started with a pidfd.
    pub(super) fn of_child(pid: u32, pidfd: OwnedFd) -> Result<Self, Error> {
        // A child that is already gone keeps its number until it is waited for, and has no start time to tell.
        let identity = VmmProcess::of_pid(pid)?.unwrap_or(VmmProcess { pid, start_time: 0 });
        Ok(Self { identity, pidfd })
    }

    /// Takes hold of exactly this process, if it still runs.
    pub fn open(identity: VmmProcess) -> Result<Option<Self>, Error> {
        let pidfd = match open_pidfd(identity.pid) {
            Err(error) if is_gone(&error) => return Ok(None),
            other => other.map_err(step("taking hold", identity.pid))?,
        };
        // After the descriptor is open: from now on the number cannot go to anybody else unnoticed.
        let same = VmmProcess::of_pid(identity.pid)? == Some(identity);
        Ok((same || Defence::SameProcess.is_off()).then_some(Self { identity, pidfd }))
    }

    /// Like [`Process::open`], and it must run that program, possibly an older file of the same name.
    pub fn adopt(identity: VmmProcess, program: &Path) -> Result<Option<Self>, Error> {
        let Some(process) = Self::open(identity)? else {
            return Ok(None);
        };
        let running = match std::fs::read_link(format!("/proc/{}/exe", identity.pid)) {
            Err(error) if is_gone(&error) => return Ok(None),
            other => other.map_err(step("reading the program", identity.pid))?,
        };
        let running = running.to_string_lossy();
        let running = running.strip_suffix(" (deleted)").unwrap_or(&running);
        Ok((Path::new(running) == program).then_some(process))
    }

    pub fn identity(&self) -> VmmProcess {
        self.identity
    }

    pub fn pid(&self) -> u32 {
        self.identity.pid
    }

    /// Sends SIGKILL. A process that is gone already is as good.
    pub fn kill(&self) -> Result<(), Error> {
        match send_kill(self.pidfd.as_fd()) {
            Err(error) if is_gone(&error) => Ok(()),
            other => other.map_err(step("killing", self.pid())),
        }
    }

    /// Waits for the end; a child is reaped by it. May be called by several at once and again.
    #[allow(unsafe_code)]
    pub async fn wait(&self) -> Result<Exit, Error> {
        let failed = |error: io::Error| step("watching", self.identity.pid)(error);
        // SAFETY: the descriptor is borrowed from `self`, which neither closes nor replaces it meanwhile.
        let watched = unsafe { AsyncFd::register_with_interest(self.pidfd.as_fd(), Interest::READABLE) };
        let watched = watched.map_err(|error| failed(error.into()))?;
        watched.readable().await.map_err(failed)?.retain_ready();
        self.reap()
    }

    /// Like [`Process::wait`], for threads of their own.
    pub(super) fn wait_blocking(&self) -> Result<Exit, Error> {
        let mut watched = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut watched, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(step("watching", self.pid())(errno.into())),
                Ok(_) => return self.reap(),
            }
        }
    }

    /// The exit of a process that has ended.
    fn reap(&self) -> Result<Exit, Error> {
        match waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Exit::Code(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Exit::Signal(signal as i32)),
            // Not our child, or reaped before.
            Ok(_) | Err(Errno::ECHILD) => Ok(Exit::Unknown),
            Err(errno) => Err(step("reaping", self.pid())(errno.into())),
        }
    }
}

#[allow(unsafe_code)]
fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two plain numbers and touches no memory of ours.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us (close-on-exec is implied), nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}

#[allow(unsafe_code)]
fn send_kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let nothing = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open for the duration of the call, and no siginfo is passed.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, nothing, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
