//! The processes of the guest that we started, and the one place that waits for ended ones.
//!
//! Owns every wait: PID 1 inherits orphans, and a second waiter beside `waitid(ANY)` loses exit codes, so neither
//! `Child::wait` nor `tokio::process` may be used anywhere in this program. Starting, signalling and reaping happen
//! under one lock: a pid in the table is never somebody else's.
//!
//! ```text
//! start --> running --ended (reaped, exit published)--> past (the last 256)
//! ```

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::clock;
use crate::exec::journal::Journal;
use crate::sys::{self, Ended};

/// How many processes started by Exec may run at once.
pub const RUNNING_MAX: usize = 512;
/// How many ended processes are remembered.
pub const PAST_MAX: usize = 256;
/// How much output of ended detached processes is kept in all; the oldest goes first.
pub const PAST_OUTPUT_BYTES_MAX: usize = 16 << 20;

/// How a started process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit status, or 128 + the signal.
    pub code: i32,
    /// The signal that killed it, or 0.
    pub signal: u32,
    pub timed_out: bool,
    pub duration: Duration,
}

/// What is remembered of a started process.
#[derive(Debug, Clone)]
pub struct Process {
    pub pid: u32,
    pub name: String,
    pub command: String,
    pub started_us: i64,
    pub exit: Option<Exit>,
    /// The retained output of a detached process.
    pub journal: Option<Arc<Journal>>,
}

struct Running {
    process: Process,
    began: Instant,
    exit: watch::Sender<Option<Exit>>,
    timed_out: bool,
    /// Kill what is left of the group when its leader ends.
    end_group: bool,
}

#[derive(Default)]
struct Table {
    running: HashMap<u32, Running>,
    past: VecDeque<Process>,
}

#[derive(Default)]
pub struct Processes {
    table: Mutex<Table>,
}

impl std::fmt::Debug for Processes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Processes").field("running", &self.count()).finish_non_exhaustive()
    }
}

/// Where a process's exit is published.
pub type ExitReceiver = watch::Receiver<Option<Exit>>;

/// What a caller of `start` tells about the process.
#[derive(Debug)]
pub struct Label {
    pub name: String,
    pub command: String,
    pub journal: Option<Arc<Journal>>,
}

impl Processes {
    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic while holding the lock leaves the table as it was between two statements, which is still usable.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process by `spawn`, which returns its pid, and remembers it. `None` when too many are running.
    pub fn start<E>(
        &self,
        label: Label,
        spawn: impl FnOnce() -> Result<u32, E>,
    ) -> Result<Option<(u32, ExitReceiver)>, E> {
        let mut table = self.table();
        if table.running.len() >= RUNNING_MAX {
            return Ok(None);
        }
        let started_us = clock::now_us();
        let began = Instant::now();
        let pid = spawn()?;
        let (exit, receiver) = watch::channel(None);
        let Label { name, command, journal } = label;
        let process = Process { pid, name, command, started_us, exit: None, journal };
        table.past.retain(|past| past.pid != pid);
        table.running.insert(pid, Running { process, began, exit, timed_out: false, end_group: false });
        Ok(Some((pid, receiver)))
    }

    /// Signals a running process or its group; false when no process of this pid is running.
    pub fn signal(&self, pid: u32, signal: u32, group: bool) -> io::Result<bool> {
        let table = self.table();
        if !table.running.contains_key(&pid) {
            return Ok(false);
        }
        match sys::kill(pid, signal, group) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Kills a process and its group, also members that outlive the leader.
    pub fn end_group(&self, pid: u32) {
        if let Some(running) = self.table().running.get_mut(&pid) {
            running.end_group = true;
            let _ = sys::kill(pid, libc::SIGKILL.unsigned_abs(), true);
        }
    }

    /// Asks a group that passed its deadline to end; what is left of it dies with the leader.
    pub fn expire_group(&self, pid: u32) {
        if let Some(running) = self.table().running.get_mut(&pid) {
            running.end_group = true;
            running.timed_out = true;
            let _ = sys::kill(pid, libc::SIGTERM.unsigned_abs(), true);
        }
    }

    /// A process, running or past, and where its exit is or will be published.
    pub fn find(&self, pid: u32) -> Option<(Process, ExitReceiver)> {
        let table = self.table();
        if let Some(running) = table.running.get(&pid) {
            return Some((running.process.clone(), running.exit.subscribe()));
        }
        let past = table.past.iter().find(|past| past.pid == pid)?;
        Some((past.clone(), watch::channel(past.exit).1))
    }

    /// Ended processes first, oldest first.
    pub fn list(&self) -> Vec<Process> {
        let table = self.table();
        let mut running: Vec<Process> =
            table.running.values().map(|running| running.process.clone()).collect();
        running.sort_by_key(|process| process.started_us);
        table.past.iter().cloned().chain(running).collect()
    }

    pub fn count(&self) -> usize {
        self.table().running.len()
    }

    /// Reaps one ended child, ours or inherited; false when there is none.
    fn reap_one(&self) -> io::Result<bool> {
        let mut table = self.table();
        let Some((pid, ended)) = sys::find_ended_child()? else { return Ok(false) };
        let running = table.running.remove(&pid);
        if running.as_ref().is_some_and(|running| running.end_group) {
            // The zombie still holds the group's number, so this cannot meet a stranger.
            let _ = sys::kill(pid, libc::SIGKILL.unsigned_abs(), true);
        }
        sys::reap(pid);
        if let Some(running) = running {
            table.record_past(running, ended);
        }
        Ok(true)
    }
}

impl Table {
    fn record_past(&mut self, running: Running, ended: Ended) {
        let Running { mut process, began, exit: sender, timed_out, .. } = running;
        let (code, signal) = match ended {
            Ended::Exited(code) => (code, 0),
            Ended::Signalled(signal) => (128 + signal, signal.unsigned_abs()),
        };
        let exit = Exit { code, signal, timed_out, duration: began.elapsed() };
        process.exit = Some(exit);
        self.past.push_back(process);
        while self.past.len() > PAST_MAX {
            self.past.pop_front();
        }
        let mut kept: usize = self.past.iter().map(Process::output_bytes).sum();
        for past in &mut self.past {
            if kept <= PAST_OUTPUT_BYTES_MAX {
                break;
            }
            kept -= past.output_bytes();
            past.journal = None;
        }
        sender.send_replace(Some(exit));
    }
}

impl Process {
    fn output_bytes(&self) -> usize {
        self.journal.as_ref().map_or(0, |journal| journal.bytes())
    }
}

/// Reaps whenever a child ends, for ever.
pub async fn run(processes: Arc<Processes>) -> io::Result<()> {
    let mut ended = signal(SignalKind::child())?;
    loop {
        while processes.reap_one()? {
            // A guest that starts and ends processes as fast as it can must not keep the host from being served.
            tokio::task::coop::consume_budget().await;
        }
        ended.recv().await;
    }
}
