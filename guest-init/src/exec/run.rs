//! Accompanies a started process: input in, output out, deadline, and its end.
//!
//! ```text
//! started --exit--> drained --> exited sent
//!    |  deadline: SIGTERM to the group, SIGKILL 5 s later, exited with `timed_out`
//!    |  caller gone: SIGKILL to the group, unless detached
//! ```
//! Must not wait for the process itself: `reap` publishes the exit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use roost_proto::guest::exec_input::Input;
use roost_proto::guest::exec_output::Output;
use roost_proto::guest::{ExecExited, ExecInput, ExecOutput, ExecStart, ExecStarted};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::exec::journal::{Journal, Source};
use crate::exec::output::{Channel, OutputSender, Sink, message, piece, pump};
use crate::exec::spawn::{self, Step};
use crate::exec::{Error, Pipes, clamp, prepare};
use crate::reap::{Exit, ExitReceiver, Label, Processes};
use crate::sys;
use crate::user::Accounts;

/// Messages waiting for a caller that reads slowly; the process blocks behind them.
const QUEUE_MESSAGES: usize = 8;
const KILL_AFTER: Duration = Duration::from_secs(5);
const END_OF_TRANSMISSION: &[u8] = b"\x04";

type OutputReceiver = mpsc::Receiver<Result<ExecOutput, Status>>;

pub fn exited(exit: Exit) -> ExecExited {
    ExecExited {
        exit_code: exit.code,
        signal: exit.signal,
        timed_out: exit.timed_out,
        duration_us: i64::try_from(exit.duration.as_micros()).unwrap_or(i64::MAX),
    }
}

/// Starts a process and returns the stream of its output.
pub async fn start(
    processes: &Arc<Processes>,
    defaults: &BTreeMap<String, String>,
    start: ExecStart,
    input: Streaming<ExecInput>,
) -> Result<OutputReceiver, Error> {
    let accounts = Accounts::read()?;
    let prepared = prepare(&start, defaults, &accounts)?;
    let journal = start.detach.then(|| Arc::new(Journal::default()));
    let label = Label { name: start.name.clone(), command: prepared.command, journal: journal.clone() };
    let (sender, receiver) = mpsc::channel(QUEUE_MESSAGES);
    let program = prepared.program;
    let (pid, exit) = match processes.start(label, || spawn::spawn(&program)) {
        Ok(Some(started)) => started,
        Ok(None) => return Err(Error::TooManyProcesses),
        Err(error) => return not_started(error, &start, sender).map(|()| receiver),
    };
    // Our copies of the child's ends: the pipes must end with the process, not with us.
    drop(program);
    let sink = journal.clone().map_or_else(|| Sink::Call(sender.clone()), Sink::Journal);
    let process = Accompanied { processes: processes.clone(), pid, exit };
    let tasks = process.attach(prepared.pipes, sink, input).map_err(Error::Descriptors);
    let tasks = match tasks {
        Ok(tasks) => tasks,
        Err(error) => {
            processes.end_group(pid);
            return Err(error);
        }
    };
    // The queue is empty and the receiver is in our hands.
    let _ = sender.try_send(Ok(message(Output::Started(ExecStarted { pid }))));
    let deadline = (start.deadline_ms > 0).then(|| Duration::from_millis(start.deadline_ms));
    if let Some(journal) = journal {
        tokio::spawn(follow(journal.clone(), 0, true, process.exit.clone(), sender));
        tokio::spawn(process.watch_over(deadline, None, tasks, Some(journal)));
    } else {
        tokio::spawn(process.watch_over(deadline, Some(sender), tasks, None));
    }
    Ok(receiver)
}

/// What a shell would answer when a program cannot be executed; anything else is the caller's or our mistake.
fn not_started(error: spawn::Error, start: &ExecStart, sender: OutputSender) -> Result<(), Error> {
    let code = match (error.step, error.source.raw_os_error()) {
        (Step::WorkingDirectory, _) => {
            return Err(Error::WorkingDirectory {
                path: start.working_directory.clone(),
                source: error.source,
            });
        }
        (Step::Exec, Some(libc::ENOENT)) => 127,
        (Step::Exec, Some(libc::EACCES | libc::ENOEXEC | libc::EISDIR)) => 126,
        _ => return Err(Error::Spawn(error)),
    };
    let name = start.argv.first().map_or("shell", String::as_str);
    let text = format!("{name}: {}\n", if code == 127 { "not found" } else { "cannot be executed" });
    let exit = ExecExited { exit_code: code, ..ExecExited::default() };
    for output in [
        message(Output::Started(ExecStarted { pid: 0 })),
        piece(Source::Stderr, text.into()),
        message(Output::Exited(exit)),
    ] {
        // The queue holds all three.
        let _ = sender.try_send(Ok(output));
    }
    Ok(())
}

struct Accompanied {
    processes: Arc<Processes>,
    pid: u32,
    exit: ExitReceiver,
}

/// The tasks that move a process's bytes.
struct Tasks {
    pumps: Vec<tokio::task::JoinHandle<()>>,
    feed: tokio::task::AbortHandle,
}

impl Accompanied {
    fn attach(&self, pipes: Pipes, sink: Sink, input: Streaming<ExecInput>) -> std::io::Result<Tasks> {
        let mut channels = vec![(Channel::new(pipes.stdout)?, Source::Stdout)];
        if let Some(stderr) = pipes.stderr {
            channels.push((Channel::new(stderr)?, Source::Stderr));
        }
        let stdin = pipes.stdin.map(Channel::new).transpose()?;
        let feed = feed(self.processes.clone(), self.pid, input, stdin, pipes.terminal);
        let feed = tokio::spawn(feed).abort_handle();
        let pumps = channels
            .into_iter()
            .map(|(channel, source)| {
                tokio::spawn(pump(channel, source, sink.clone(), self.exit.clone(), pipes.terminal))
            })
            .collect();
        Ok(Tasks { pumps, feed })
    }

    /// Until the process ended and all of its output is delivered.
    async fn watch_over(
        mut self,
        deadline: Option<Duration>,
        caller: Option<OutputSender>,
        tasks: Tasks,
        journal: Option<Arc<Journal>>,
    ) {
        let exit = self.wait(deadline, caller.as_ref()).await;
        for pump in tasks.pumps {
            // A pump that panicked has said so on the console; the exit still goes out.
            let _ = pump.await;
        }
        tasks.feed.abort();
        if let Some(journal) = journal {
            journal.close();
        }
        if let (Some(caller), Some(exit)) = (caller, exit) {
            let _ = caller.send(Ok(message(Output::Exited(exited(exit))))).await;
        }
    }

    async fn wait(&mut self, deadline: Option<Duration>, caller: Option<&OutputSender>) -> Option<Exit> {
        let gone = async {
            match caller {
                Some(caller) => caller.closed().await,
                None => std::future::pending().await,
            }
        };
        let expiry = async {
            let Some(deadline) = deadline else {
                return std::future::pending().await;
            };
            tokio::time::sleep(deadline).await;
            self.processes.expire_group(self.pid);
            tokio::time::sleep(KILL_AFTER).await;
        };
        let mut exit = self.exit.clone();
        tokio::select! {
            biased;
            _ = exit.wait_for(Option::is_some) => {}
            () = gone => self.processes.end_group(self.pid),
            () = expiry => self.processes.end_group(self.pid),
        }
        exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit)
    }
}

/// Streams what a detached process wrote from `position` on, then its end; without `wanted` only what there is.
pub async fn follow(
    journal: Arc<Journal>,
    mut position: u64,
    wanted: bool,
    mut exit: ExitReceiver,
    sender: OutputSender,
) {
    loop {
        while let Some((source, bytes, next)) = journal.read(position) {
            position = next;
            if sender.send(Ok(piece(source, bytes))).await.is_err() {
                return;
            }
        }
        if !wanted {
            break;
        }
        let more = tokio::select! {
            more = journal.wait_past(position) => more,
            () = sender.closed() => return,
        };
        if !more {
            break;
        }
    }
    let exit = if wanted {
        exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit)
    } else {
        *exit.borrow()
    };
    if let Some(exit) = exit {
        let _ = sender.send(Ok(message(Output::Exited(exited(exit))))).await;
    }
}

/// Carries the caller's messages to the process until it closes its side.
async fn feed(
    processes: Arc<Processes>,
    pid: u32,
    mut input: Streaming<ExecInput>,
    mut stdin: Option<Channel>,
    terminal: bool,
) {
    while let Ok(Some(message)) = input.message().await {
        match message.input {
            Some(Input::Stdin(bytes)) => {
                if let Some(channel) = &stdin
                    && !channel.write(bytes).await
                {
                    stdin = None;
                }
            }
            Some(Input::StdinClose(_)) => close(&mut stdin, terminal).await,
            Some(Input::Resize(size)) if terminal => {
                if let Some(channel) = &stdin {
                    let _ =
                        sys::set_terminal_size(channel.fd(), clamp(size.columns, 80), clamp(size.rows, 24));
                }
            }
            Some(Input::Signal(signal)) => {
                // A process that ended meanwhile needs no signal.
                let _ = processes.signal(pid, signal, true);
            }
            Some(Input::Start(_) | Input::Resize(_)) | None => {}
        }
    }
    if !terminal {
        stdin = None;
    }
    // A terminal has no half close: its master stays open until the process ends and this task is ended.
    if stdin.is_some() {
        std::future::pending::<()>().await;
    }
}

async fn close(stdin: &mut Option<Channel>, terminal: bool) {
    if !terminal {
        *stdin = None;
    } else if let Some(channel) = stdin {
        channel.write(END_OF_TRANSMISSION.into()).await;
    }
}
