//! QEMU's control protocol: one command at a time, each with a deadline, every line with a limit.
//!
//! A VMM is not trusted: it parses what its guest writes. So nothing it says is believed beyond what is read
//! here, no line grows without bound, and it may be silent at any time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// More than the console ring in base64.
const MAX_LINE_BYTES: usize = 256 * 1024;
/// QEMU greets at once, unless another client holds the only connection it serves.
pub const GREETING_DEADLINE: Duration = Duration::from_secs(10);
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(10);
/// Replies that may wait for a reader; only those of commands that ran out of time do.
const REPLY_QUEUE: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connecting to the control socket")]
    Connect(#[source] io::Error),
    #[error("no greeting within {0:?}")]
    Greeting(Duration),
    #[error("sending {command}")]
    Send { command: &'static str, source: io::Error },
    #[error("the control socket closed during {command}")]
    Closed { command: &'static str },
    #[error("no answer to {command} within {deadline:?}")]
    Deadline { command: &'static str, deadline: Duration },
    #[error("{command} was refused: {description}")]
    Refused { command: &'static str, description: String },
    #[error("the answer to {command} does not read as expected")]
    Answer { command: &'static str },
}

/// A message of QEMU: greeting, event or reply.
#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    id: Option<u64>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

/// Why the guest made its VMM end, if it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    ByGuest,
    GuestReset,
    ByHost,
}

/// A connection to one VMM. Dropping it closes it.
#[derive(Debug)]
pub struct Qmp {
    channel: tokio::sync::Mutex<Channel>,
}

/// What a connection has heard of its VMM's end. Keeps nothing open.
#[derive(Debug)]
pub struct Farewell {
    shutdown: Arc<Mutex<Option<Shutdown>>>,
    reader: JoinHandle<()>,
}

impl Farewell {
    /// What QEMU said, once it is gone: everything it sent is read first.
    pub async fn heard(self) -> Option<Shutdown> {
        // The reader ends with the connection. A panic of it is as good as an end.
        let _ = timeout(COMMAND_DEADLINE, self.reader).await;
        *self.shutdown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Channel {
    sender: StdUnixStream,
    replies: mpsc::Receiver<Message>,
    next_id: u64,
}

impl Qmp {
    /// Connects and negotiates.
    pub async fn connect(path: &Path) -> Result<(Self, Farewell), Error> {
        let stream = UnixStream::connect(path).await.map_err(Error::Connect)?;
        let reader = stream.into_std().map_err(Error::Connect)?;
        let sender = reader.try_clone().map_err(Error::Connect)?;
        let reader = UnixStream::from_std(reader).map_err(Error::Connect)?;
        let shutdown = Arc::new(Mutex::new(None));
        let (to_channel, mut replies) = mpsc::channel(REPLY_QUEUE);
        // Ends with the connection, which ends with the VMM or with this value's sender.
        let reader = tokio::spawn(read_messages(reader, to_channel, Arc::clone(&shutdown)));
        let greeting = timeout(GREETING_DEADLINE, replies.recv()).await;
        match greeting {
            Ok(Some(message)) if message.greeting.is_some() => {}
            Ok(Some(_)) => {
                return Err(Error::Answer { command: "the greeting" });
            }
            Ok(None) => {
                return Err(Error::Closed { command: "the greeting" });
            }
            Err(_) => {
                shut(&sender);
                return Err(Error::Greeting(GREETING_DEADLINE));
            }
        }
        let channel = tokio::sync::Mutex::new(Channel { sender, replies, next_id: 1 });
        let qmp = Self { channel };
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok((qmp, Farewell { shutdown, reader }))
    }

    /// Runs a command and returns what it returned.
    pub async fn execute(&self, command: &'static str, arguments: Value) -> Result<Value, Error> {
        self.run(command, arguments, None, COMMAND_DEADLINE).await
    }

    /// Runs a command that takes a descriptor along.
    pub async fn execute_with(
        &self,
        command: &'static str,
        arguments: Value,
        descriptor: BorrowedFd<'_>,
    ) -> Result<Value, Error> {
        self.run(command, arguments, Some(descriptor), COMMAND_DEADLINE).await
    }

    /// Text at `key` of what a command returns.
    pub async fn ask_text(&self, command: &'static str, key: &str) -> Result<String, Error> {
        let answer = self.execute(command, Value::Null).await?;
        answer.get(key).and_then(Value::as_str).map(str::to_owned).ok_or(Error::Answer { command })
    }

    async fn run(
        &self,
        command: &'static str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
        deadline: Duration,
    ) -> Result<Value, Error> {
        // The deadline counts from here: whoever holds the channel has one too.
        let work = async {
            let mut channel = self.channel.lock().await;
            let id = channel.send(command, arguments, descriptor)?;
            channel.reply(command, id).await
        };
        timeout(deadline, work).await.map_err(|_| Error::Deadline { command, deadline })?
    }
}

impl Channel {
    fn send(
        &mut self,
        command: &'static str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<u64, Error> {
        let id = self.next_id;
        self.next_id += 1;
        let mut message = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        let line = format!("{message}\n");
        let descriptors: Vec<_> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
        // A command is far smaller than the socket's buffer; one that does not fit means QEMU stopped reading.
        let sent = self.sender.send_with_fds(&[line.as_bytes()], &descriptors);
        match sent.map_err(|errno| io::Error::from_raw_os_error(errno.errno())) {
            Ok(length) if length == line.len() => Ok(id),
            Ok(_) => Err(Error::Send { command, source: io::ErrorKind::WriteZero.into() }),
            Err(source) if source.kind() == io::ErrorKind::BrokenPipe => Err(Error::Closed { command }),
            Err(source) => Err(Error::Send { command, source }),
        }
    }

    async fn reply(&mut self, command: &'static str, id: u64) -> Result<Value, Error> {
        loop {
            let message = self.replies.recv().await.ok_or(Error::Closed { command })?;
            if message.id != Some(id) {
                // The late reply of a command that ran out of time.
                continue;
            }
            return match (message.returned, message.error) {
                (Some(value), _) => Ok(value),
                (None, Some(refusal)) => Err(Error::Refused { command, description: refusal.desc }),
                (None, None) => Err(Error::Answer { command }),
            };
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // The reader task has a duplicate of the socket; this ends it too.
        shut(&self.sender);
    }
}

fn shut(sender: &StdUnixStream) {
    // Fails only if it is closed already.
    let _ = sender.shutdown(std::net::Shutdown::Both);
}

async fn read_messages(
    mut stream: UnixStream,
    replies: mpsc::Sender<Message>,
    shutdown: Arc<Mutex<Option<Shutdown>>>,
) {
    let mut buffer = Vec::with_capacity(4096);
    let mut searched = 0;
    loop {
        match stream.read_buf(&mut buffer).await {
            Ok(length) if length > 0 => {}
            _ => return,
        }
        while let Some(end) = buffer[searched..].iter().position(|byte| *byte == b'\n') {
            let rest = buffer.split_off(searched + end + 1);
            let line = std::mem::replace(&mut buffer, rest);
            searched = 0;
            let Ok(message) = serde_json::from_slice::<Message>(&line) else {
                return;
            };
            if let Some(event) = &message.event {
                if event == "SHUTDOWN" {
                    *shutdown.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason(&message.data));
                }
            } else if replies.send(message).await.is_err() {
                return;
            }
        }
        searched = buffer.len();
        if buffer.len() > MAX_LINE_BYTES {
            return;
        }
    }
}

fn reason(data: &Value) -> Shutdown {
    match data.get("reason").and_then(Value::as_str) {
        Some("guest-reset" | "guest-panic" | "subsystem-reset") => Shutdown::GuestReset,
        Some(reason) if reason.starts_with("guest") => Shutdown::ByGuest,
        _ => Shutdown::ByHost,
    }
}

#[cfg(test)]
mod tests;
