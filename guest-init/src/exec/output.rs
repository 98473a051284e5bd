//! Moves bytes between a process's descriptors and whoever wants them.
//!
//! Owns the rule that a call ends with its process and loses nothing: until the process exits everything is read as
//! it comes; then what the pipe holds at that moment, and no more. Children in the background may keep the pipe
//! open: their later output is read and dropped, so that they neither block nor die of a closed pipe.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use roost_proto::guest::{ExecOutput, exec_output::Output};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, mpsc};
use tonic::Status;

use crate::exec::journal::{Journal, Source};
use crate::reap::ExitReceiver;
use crate::sys;

pub const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Pipes of ended processes that are still read because background children hold them.
const LINGERING_MAX: usize = 256;
/// Output that comes in small pieces faster than this is gathered for `GATHER` between reads: each piece alone would
/// cost a switch to us and back, and a message.
const BUSY: Duration = Duration::from_millis(10);
const GATHER: Duration = Duration::from_millis(2);
/// How long a terminal may take to hand over its last output after its process ended.
const TERMINAL_DRAIN: Duration = Duration::from_millis(250);

static LINGERING: Semaphore = Semaphore::const_new(LINGERING_MAX);

pub type OutputSender = mpsc::Sender<Result<ExecOutput, Status>>;

pub fn message(output: Output) -> ExecOutput {
    ExecOutput { output: Some(output) }
}

pub fn piece(source: Source, bytes: Bytes) -> ExecOutput {
    message(match source {
        Source::Stdout => Output::Stdout(bytes),
        Source::Stderr => Output::Stderr(bytes),
    })
}

/// Where output goes.
#[derive(Debug, Clone)]
pub enum Sink {
    /// To the caller, as fast as it reads.
    Call(OutputSender),
    /// Kept, never waiting for anybody.
    Journal(Arc<Journal>),
    Nobody,
}

impl Sink {
    async fn deliver(&self, source: Source, bytes: Bytes) {
        match self {
            // A caller that is gone is noticed by `run`, which ends the process.
            Self::Call(sender) => drop(sender.send(Ok(piece(source, bytes))).await),
            Self::Journal(journal) => journal.append(source, bytes),
            Self::Nobody => {}
        }
    }
}

/// One end of a pipe or terminal.
#[derive(Debug)]
pub struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        sys::watch_descriptor(fd).map(Self)
    }

    pub fn fd(&self) -> &OwnedFd {
        self.0.get_ref()
    }

    fn into_fd(self) -> OwnedFd {
        self.0.into_inner()
    }

    /// Reads what there is; `None` at the end.
    async fn read(&self, buffer: &mut BytesMut) -> Option<Bytes> {
        buffer.reserve(MESSAGE_BYTES_MAX);
        loop {
            let mut ready = self.0.readable().await.ok()?;
            match ready.try_io(|fd| sys::read_into(fd.get_ref(), buffer, MESSAGE_BYTES_MAX)) {
                // A terminal says EIO when the last process closed it.
                Ok(Ok(0) | Err(_)) => return None,
                Ok(Ok(_)) => return Some(buffer.split().freeze()),
                Err(_would_block) => {}
            }
        }
    }

    /// Writes all of it; false when nobody reads any more.
    pub async fn write(&self, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            let Ok(mut ready) = self.0.writable().await else {
                return false;
            };
            match ready.try_io(|fd| nix::unistd::write(fd.get_ref(), &bytes).map_err(io::Error::from)) {
                Ok(Ok(count)) => drop(bytes.split_to(count)),
                Ok(Err(_)) => return false,
                Err(_would_block) => {}
            }
        }
        true
    }
}

/// Reads `channel` into `sink` until its end, or until the process exited and what it left is read.
pub async fn pump(mut channel: Channel, source: Source, sink: Sink, mut exit: ExitReceiver, terminal: bool) {
    let mut buffer = BytesMut::new();
    let mut last: Option<Instant> = None;
    loop {
        let bytes = tokio::select! {
            biased;
            bytes = channel.read(&mut buffer) => bytes,
            _ = exit.wait_for(Option::is_some) => break,
        };
        let Some(bytes) = bytes else { return };
        let busy = bytes.len() < MESSAGE_BYTES_MAX && last.is_some_and(|last| last.elapsed() < BUSY);
        sink.deliver(source, bytes).await;
        if busy {
            // Out of the runtime's sight meanwhile: we run before the writer, so every piece would stop it.
            let fd = channel.into_fd();
            tokio::select! {
                _ = exit.wait_for(Option::is_some) => {}
                () = tokio::time::sleep(GATHER) => {}
            }
            let Ok(again) = Channel::new(fd) else { return };
            channel = again;
        }
        last = Some(Instant::now());
    }
    if terminal {
        // The end of the session hangs the terminal up, so its end comes by itself, but not in the same instant.
        let rest = async {
            while let Some(bytes) = channel.read(&mut buffer).await {
                sink.deliver(source, bytes).await;
            }
        };
        if tokio::time::timeout(TERMINAL_DRAIN, rest).await.is_ok() {
            return;
        }
    } else {
        drain_pipe(&channel, &mut buffer, source, &sink).await;
    }
    linger(channel, source);
}

/// Delivers what the pipe holds now, without waiting for more.
async fn drain_pipe(channel: &Channel, buffer: &mut BytesMut, source: Source, sink: &Sink) {
    let mut left = sys::get_readable_bytes(channel.fd()).unwrap_or(0);
    while left > 0 {
        buffer.reserve(MESSAGE_BYTES_MAX);
        match sys::read_into(channel.fd(), buffer, left.min(MESSAGE_BYTES_MAX)) {
            Ok(count) if count > 0 => {
                left -= count;
                sink.deliver(source, buffer.split().freeze()).await;
            }
            _ => return,
        }
    }
}

/// Goes on reading for children in the background. Beyond the limit the pipe is closed on them.
fn linger(channel: Channel, source: Source) {
    let Ok(permit) = LINGERING.try_acquire() else {
        return;
    };
    tokio::spawn(async move {
        let mut buffer = BytesMut::new();
        while let Some(bytes) = channel.read(&mut buffer).await {
            Sink::Nobody.deliver(source, bytes).await;
        }
        drop(permit);
    });
}
