//! The agent's door: descriptors, identities and settings arrive here and nowhere else.
//!
//! Owns the listener, who may connect, the order of messages and their replies; what a message means is the
//! role's ([`Handler`]). One agent at a time: a new connection replaces one that hangs. Losing the agent loses
//! nothing, since everything that is held belongs to the handler. Must not interpret what a guest sent.
//!
//! ```text
//! listening --accept, uid right--> greeting --Hello/Holding--> serving --closed, malformed--> listening
//!                                                                `-- another accepted: this one ends
//! ```

mod attachment;
mod handler;
mod session;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use roost_daemon::packet::{PacketListener, PacketSocket};
use roost_daemon::shutdown::Shutdown;
use roost_daemon::telemetry::chain;
use roost_domain::sabotage::Defence;
use roost_proto::dataplane::{FromDataplane, ToDataplane, from_dataplane};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use attachment::{Attachment, GuestAccess, GuestToken};
pub use handler::{Code, Handler, Refusal, Role};

/// The data plane's end of a control connection.
pub type AgentSocket = PacketSocket<FromDataplane, ToDataplane>;
/// What the agent connects to.
pub type AgentListener = PacketListener<FromDataplane, ToDataplane>;

// Notices wait for the agent at most this many deep; later ones say the same again, so losing some is harmless.
const NOTICES_MAX: usize = 1024;
// How long a replaced session may take to finish the request in hand.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(5);
// A failing accept (no descriptors left) must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the role leaves what it wants to tell the agent unasked. Never blocks and never fails: what nobody
/// takes is dropped, so a notice must be one that will be repeated.
#[derive(Debug, Clone)]
pub struct Notices {
    sender: mpsc::Sender<from_dataplane::Message>,
}

/// The other end of [`Notices`], for [`serve`].
#[derive(Debug)]
pub struct NoticeQueue {
    receiver: mpsc::Receiver<from_dataplane::Message>,
}

/// Makes a queue for unsolicited messages.
pub fn notices() -> (Notices, NoticeQueue) {
    let (sender, receiver) = mpsc::channel(NOTICES_MAX);
    (Notices { sender }, NoticeQueue { receiver })
}

impl Notices {
    /// Offers a message to the agent, if one is connected.
    pub fn offer(&self, message: from_dataplane::Message) {
        let _ = self.sender.try_send(message);
    }
}

/// What tells the counters of this process from those of one before it, which counted from zero as well. Not 0.
pub fn process_run() -> u64 {
    static RUN: LazyLock<u64> =
        LazyLock::new(|| getrandom::u64().expect("the kernel's random source does not fail").max(1));
    *RUN
}

/// A session under way and how to talk to it.
struct Current {
    task: JoinHandle<()>,
    stop: CancellationToken,
    unsolicited: mpsc::Sender<from_dataplane::Message>,
}

/// Serves agents, one at a time, until the shutdown is requested. Only processes of `agent_uid` are let in.
pub async fn serve<H: Handler>(
    mut listener: AgentListener,
    agent_uid: u32,
    handler: Arc<H>,
    mut notices: NoticeQueue,
    shutdown: Shutdown,
) {
    let mut current: Option<Current> = None;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(socket) if is_agent(&socket, agent_uid) => {
                    end(current.take()).await;
                    current = Some(begin(socket, handler.clone()));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(error = chain(&error), "cannot accept a control connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(message) = notices.receiver.recv() => {
                if let Some(current) = &current {
                    let _ = current.unsolicited.try_send(message);
                }
            }
            () = shutdown.requested() => break,
        }
    }
    end(current).await;
}

fn is_agent(socket: &AgentSocket, agent_uid: u32) -> bool {
    match socket.peer_credentials() {
        Ok(peer) if peer.uid == agent_uid || Defence::ControlPeer.is_off() => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid, pid = peer.pid, "refused a control connection");
            false
        }
        Err(error) => {
            tracing::warn!(error = chain(&error), "refused a control connection");
            false
        }
    }
}

fn begin<H: Handler>(socket: AgentSocket, handler: Arc<H>) -> Current {
    let (unsolicited, queue) = mpsc::channel(NOTICES_MAX);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let task = tokio::spawn(async move {
        tracing::info!("agent connected");
        match session::run(socket, handler, queue, stopped).await {
            Ok(()) => tracing::info!("agent disconnected"),
            Err(error) => tracing::warn!(error = chain(&error), "closed the agent's connection"),
        }
    });
    Current { task, stop, unsolicited }
}

/// Ends a session between two requests; one that is stuck in a request is cut off.
async fn end(current: Option<Current>) {
    let Some(Current { mut task, stop, .. }) = current else {
        return;
    };
    stop.cancel();
    if tokio::time::timeout(REPLACE_TIMEOUT, &mut task).await.is_err() {
        task.abort();
    }
}
