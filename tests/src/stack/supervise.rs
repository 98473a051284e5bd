//! One supervised process: started, logged, started again when it ends, stopped when asked.
//!
//! ```text
//! running --exit--> waiting RESTART_PAUSE --> running      (as `Restart=always` of the systemd units)
//!    |                 `--more than RESTARTS_MAX in RESTARTS_WINDOW--> given up
//!    `--stop()--> SIGTERM --exit--> stopped
//! ```

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::program;

const RESTART_PAUSE: Duration = Duration::from_millis(100);
const RESTARTS_MAX: usize = 5;
const RESTARTS_WINDOW: Duration = Duration::from_secs(10);
/// A process drains for 20 s at most; after this it hangs.
const STOP_DEADLINE: Duration = Duration::from_secs(25);

/// What to start.
#[derive(Debug, Clone)]
pub struct Program {
    pub name: &'static str,
    pub binary: PathBuf,
    /// Other builds of the binary: each start takes the next.
    pub others: Vec<PathBuf>,
    /// A program with its arguments that starts the binary in a place of its own, as the same process.
    pub wrapper: Vec<String>,
    pub arguments: Vec<String>,
    pub log: PathBuf,
}

impl Program {
    /// Which build the start of this number runs.
    fn build(&self, start: usize) -> &Path {
        match start.checked_rem(self.others.len() + 1) {
            Some(turn @ 1..) => &self.others[turn - 1],
            _ => &self.binary,
        }
    }
}

/// A process under supervision; dropping it stops it.
#[derive(Debug)]
pub struct Supervised {
    name: &'static str,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Of the running process; it is not reaped as long as this is set.
    pid: Option<Pid>,
    starts: usize,
    /// The running process was killed by [`Supervised::kill`], which is no failing of its own.
    killed: bool,
    stopping: bool,
    ended: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Supervised {
    pub fn start(program: Program) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let first = spawn(&program, 0)?;
        let name = program.name;
        let theirs = Arc::clone(&shared);
        shared.lock().pid = Some(pid_of(&first));
        shared.lock().starts = 1;
        let thread = std::thread::Builder::new()
            .name(format!("supervise {name}"))
            .spawn(move || supervise(&program, &theirs, first))?;
        Ok(Self { name, shared, thread: Some(thread) })
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn pid(&self) -> Option<Pid> {
        self.shared.lock().pid
    }

    /// How often it was started so far.
    pub fn starts(&self) -> usize {
        self.shared.lock().starts
    }

    /// Why it does not run any more, if it was given up.
    pub fn ended(&self) -> Option<String> {
        self.shared.lock().ended.clone()
    }

    /// Ends the process by a signal; the restart rule brings it back.
    pub fn kill(&self, signal: Signal) -> anyhow::Result<()> {
        let mut state = self.shared.lock();
        let pid = state.pid.with_context(|| format!("{} does not run", self.name))?;
        state.killed = true;
        kill(pid, signal).with_context(|| format!("ending {} by {signal}", self.name))
    }

    /// Ends the process the hard way, for good.
    pub fn end(&mut self) -> anyhow::Result<()> {
        self.stop_by(Signal::SIGKILL)
    }

    /// Asks it to end and waits; killing it is an error of the process.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.stop_by(Signal::SIGTERM)
    }

    fn stop_by(&mut self, signal: Signal) -> anyhow::Result<()> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let mut state = self.shared.lock();
        state.stopping = true;
        self.shared.changed.notify_all();
        if let Some(pid) = state.pid {
            let _ = kill(pid, signal);
        }
        let running = |state: &mut State| state.pid.is_some();
        let (state, waited) = self
            .shared
            .changed
            .wait_timeout_while(state, STOP_DEADLINE, running)
            .unwrap_or_else(PoisonError::into_inner);
        let hung = waited.timed_out();
        if let (true, Some(pid)) = (hung, state.pid) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        drop(state);
        let _ = thread.join();
        if hung {
            bail!("{} did not end {} s after SIGTERM", self.name, STOP_DEADLINE.as_secs());
        }
        Ok(())
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
    }
}

fn supervise(program: &Program, shared: &Shared, mut child: Child) {
    let mut restarts: Vec<Instant> = Vec::new();
    loop {
        // Seen ended but not yet reaped, its pid is nobody else's while `stop` may signal it.
        let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(pid_of(&child)), ended) == Err(Errno::EINTR) {}
        let mut state = shared.lock();
        state.pid = None;
        let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        shared.changed.notify_all();
        let paused = |state: &mut State| !state.stopping;
        let waited = shared.changed.wait_timeout_while(state, RESTART_PAUSE, paused);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.stopping {
            return;
        }
        restarts.retain(|at| at.elapsed() < RESTARTS_WINDOW);
        if !std::mem::take(&mut state.killed) {
            restarts.push(Instant::now());
        }
        note(program, &format!("supervisor: it ended with {status}, starting it again"));
        let again = if restarts.len() > RESTARTS_MAX {
            Err(anyhow::anyhow!(
                "it ended {} times in {} s, last with {status}",
                restarts.len(),
                RESTARTS_WINDOW.as_secs()
            ))
        } else {
            spawn(program, state.starts)
        };
        match again {
            Ok(next) => {
                child = next;
                state.pid = Some(pid_of(&child));
                state.starts += 1;
            }
            Err(error) => {
                state.ended = Some(format!("{error:#}"));
                return;
            }
        }
    }
}

fn spawn(program: &Program, start: usize) -> anyhow::Result<Child> {
    let log = open_log(&program.log)?;
    let binary = program.build(start);
    let mut command = match program.wrapper.split_first() {
        None => program::command(binary),
        Some((wrapper, arguments)) => {
            let mut command = program::command(wrapper);
            command.args(arguments).arg(binary);
            command
        }
    };
    command
        .args(&program.arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C is for whoever supervises; it stops the processes in order.
        .process_group(0);
    command.spawn().with_context(|| format!("cannot start {}", binary.display()))
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.with_context(|| format!("cannot write {}", path.display()))
}

fn note(program: &Program, text: &str) {
    if let Ok(mut log) = open_log(&program.log) {
        let _ = writeln!(log, "{text}");
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_are_taken_in_turns() {
        let program = Program {
            name: "x",
            binary: "/a/x".into(),
            others: vec!["/b/x".into()],
            wrapper: Vec::new(),
            arguments: Vec::new(),
            log: "/dev/null".into(),
        };
        let taken: Vec<_> = (0..4).map(|start| program.build(start).to_owned()).collect();
        assert_eq!(taken, ["/a/x", "/b/x", "/a/x", "/b/x"].map(PathBuf::from));
        let alone = Program { others: Vec::new(), ..program };
        assert_eq!((alone.build(0), alone.build(7)), (Path::new("/a/x"), Path::new("/a/x")));
    }
}
