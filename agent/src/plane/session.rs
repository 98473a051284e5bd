//! One connection to one data-plane process, for as long as the agent lives.
//!
//! Owns reconnecting, matching replies to requests, and the list of executions the process says it holds. While
//! there is no connection every request fails at once with `Away`.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use roost_daemon::packet::{self, PacketSocket};
use roost_domain::usage::Counted;
use roost_proto::dataplane::from_dataplane::Message as Answer;
use roost_proto::dataplane::to_dataplane::Message as Ask;
use roost_proto::dataplane::{FromDataplane, GENERATION, Hello, ToDataplane, Traffic as Used};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use super::{Request, Role, Traffic};

/// A process that does not answer a plain request for this long is treated as gone.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// Far more executions than a host has room for: a process that claims to hold more is not believed.
const HELD_MAX: usize = 1 << 16;
const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(2);

type Socket = PacketSocket<ToDataplane, FromDataplane>;

/// Why a request to the data plane had no good answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{role} is not connected: start it, or see its log")]
    Away { role: &'static str },
    #[error("{role} did not answer within {deadline_ms} ms")]
    Silent { role: &'static str, deadline_ms: u128 },
    #[error("{role} refused ({code}): {message}")]
    Refused { role: &'static str, code: String, message: String },
    #[error("{role} answered with another message than was asked for")]
    Unexpected { role: &'static str },
    #[error("{role} claims to hold more than {HELD_MAX} executions")]
    HoldsTooMany { role: &'static str },
    #[error("the connection to {role} failed")]
    Packet { role: &'static str, source: packet::Error },
    #[error("{role} runs as uid {found}, expected {expected}")]
    WrongPeer { role: &'static str, found: u32, expected: u32 },
}

impl Error {
    /// The process is not there, or went away while it was asked: another will be.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Packet { .. })
    }
}

#[derive(Debug)]
pub(super) struct Settings {
    pub(super) role: Role,
    pub(super) path: PathBuf,
    pub(super) uid: u32,
    pub(super) host_id: String,
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) changed: watch::Sender<u64>,
    pub(super) traffic: Traffic,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    next_id: AtomicU64,
    link: Mutex<Option<Link>>,
}

/// What there is only while the process is connected.
#[derive(Debug)]
struct Link {
    socket: Arc<Socket>,
    pending: HashMap<u64, oneshot::Sender<Answer>>,
    /// Executions the process holds, with the generation of their attach.
    held: HashMap<String, u64>,
}

/// A cheap handle to the session.
#[derive(Debug, Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

impl Session {
    pub(super) fn start(settings: Settings) -> Self {
        let inner = Arc::new(Inner { settings, next_id: AtomicU64::new(1), link: Mutex::new(None) });
        tokio::spawn(keep_connected(Arc::clone(&inner)));
        Self { inner }
    }

    fn role(&self) -> &'static str {
        self.inner.settings.role.text()
    }

    pub fn is_connected(&self) -> bool {
        self.inner.lock().is_some()
    }

    /// Whether the process holds `execution`; `None` while it cannot be asked.
    pub fn holds(&self, execution: &str) -> Option<bool> {
        self.inner.holds(execution)
    }

    /// Sends `ask` with its descriptors and waits for the answer.
    pub async fn request(
        &self,
        ask: Ask,
        descriptors: &[BorrowedFd<'_>],
        deadline: Duration,
    ) -> Result<Answer, Error> {
        let role = self.role();
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let effect = Effect::of(&ask);
        let socket = {
            let mut link = self.inner.lock();
            let link = link.as_mut().ok_or(Error::Away { role })?;
            link.pending.insert(id, reply);
            Arc::clone(&link.socket)
        };
        let message = ToDataplane { id, message: Some(ask) };
        if let Err(source) = socket.send(&message, descriptors).await {
            self.inner.forget_pending(id);
            return Err(Error::Packet { role, source });
        }
        let answer = timeout(deadline, answer).await;
        self.inner.forget_pending(id);
        match answer {
            Err(_) => Err(Error::Silent { role, deadline_ms: deadline.as_millis() }),
            Ok(Err(_)) => Err(Error::Away { role }),
            Ok(Ok(Answer::Refused(refused))) => {
                Err(Error::Refused { role, code: refused.code, message: refused.message })
            }
            Ok(Ok(answer)) => {
                self.inner.apply(effect);
                Ok(answer)
            }
        }
    }

    /// As [`Self::request`], for requests whose only good answer is an acknowledgement.
    pub async fn tell(
        &self,
        ask: Ask,
        descriptors: &[BorrowedFd<'_>],
        deadline: Duration,
    ) -> Result<(), Error> {
        match self.request(ask, descriptors, deadline).await? {
            Answer::Ack(_) => Ok(()),
            _ => Err(Error::Unexpected { role: self.role() }),
        }
    }
}

/// What an acknowledged request changes about the list of held executions.
enum Effect {
    None,
    Holds(String, u64),
    Lost(String),
}

impl Effect {
    fn of(ask: &Ask) -> Self {
        match ask {
            Ask::Attach(attach) => Self::Holds(attach.execution.clone(), attach.attach_generation),
            Ask::Detach(detach) => Self::Lost(detach.execution.clone()),
            _ => Self::None,
        }
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holds(&self, execution: &str) -> Option<bool> {
        self.lock().as_ref().map(|link| link.held.contains_key(execution))
    }

    fn forget_pending(&self, id: u64) {
        if let Some(link) = self.lock().as_mut() {
            link.pending.remove(&id);
        }
    }

    fn apply(&self, effect: Effect) {
        if let Some(link) = self.lock().as_mut() {
            match effect {
                Effect::None => {}
                Effect::Holds(execution, generation) => {
                    link.held.insert(execution, generation);
                }
                Effect::Lost(execution) => {
                    link.held.remove(&execution);
                }
            }
        }
    }

    fn count(&self, used: &Used) {
        let Used { run, from_guest_bytes, to_guest_bytes, .. } = *used;
        let counted = Counted { run, from_guest_bytes, to_guest_bytes };
        self.settings.traffic.record(&used.execution, self.settings.role, counted);
    }

    fn announce(&self) {
        self.settings.changed.send_modify(|count| *count += 1);
    }
}

async fn keep_connected(inner: Arc<Inner>) {
    let role = inner.settings.role.text();
    let mut pause = RECONNECT_MIN;
    let mut complained = false;
    loop {
        match connect(&inner).await {
            Ok((socket, held)) => {
                info!(role, held = held.len(), "data plane connected");
                (pause, complained) = (RECONNECT_MIN, false);
                let socket = Arc::new(socket);
                *inner.lock() = Some(Link { socket: Arc::clone(&socket), pending: HashMap::new(), held });
                inner.announce();
                let ended = receive(&inner, &socket).await;
                *inner.lock() = None;
                inner.announce();
                warn!(role, reason = %ended, "data plane disconnected");
            }
            // Once per outage: a data plane that starts after the agent is no news.
            Err(error) if !complained => {
                complained = true;
                info!(role, reason = %roost_daemon::telemetry::chain(&error), "waiting for the data plane");
            }
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RECONNECT_MAX);
    }
}

async fn connect(inner: &Inner) -> Result<(Socket, HashMap<String, u64>), Error> {
    let settings = &inner.settings;
    let role = settings.role.text();
    let packet = |source| Error::Packet { role, source };
    let socket = Socket::connect(&settings.path).await.map_err(packet)?;
    let peer = socket.peer_credentials().map_err(packet)?;
    // The credentials are those at the time of listen(): a process that binds before it drops root shows root.
    if peer.uid != settings.uid && peer.uid != 0 {
        return Err(Error::WrongPeer { role, found: peer.uid, expected: settings.uid });
    }
    let hello = Hello { generation: GENERATION, host_id: settings.host_id.clone() };
    socket.send(&ToDataplane { id: 0, message: Some(Ask::Hello(hello)) }, &[]).await.map_err(packet)?;
    // All of it within one deadline: a process that never comes to an end is as good as silent.
    let held = timeout(ANSWER_DEADLINE, collect_held(&socket, role)).await;
    let held = held.map_err(|_| Error::Silent { role, deadline_ms: ANSWER_DEADLINE.as_millis() })??;
    Ok((socket, held))
}

/// The answer to Hello, to its last packet.
async fn collect_held(socket: &Socket, role: &'static str) -> Result<HashMap<String, u64>, Error> {
    let mut collected = HashMap::new();
    loop {
        match socket.recv().await.map_err(|source| Error::Packet { role, source })? {
            None => return Err(Error::Away { role }),
            Some((FromDataplane { message: Some(Answer::Holding(holding)), .. }, _)) => {
                let held =
                    holding.executions.into_iter().map(|held| (held.execution, held.attach_generation));
                collected.extend(held);
                if collected.len() > HELD_MAX {
                    return Err(Error::HoldsTooMany { role });
                }
                if !holding.more {
                    return Ok(collected);
                }
            }
            // Its own messages may come first.
            Some((FromDataplane { id: 0, .. }, _)) => {}
            Some(_) => return Err(Error::Unexpected { role }),
        }
    }
}

/// Dispatches what arrives until the connection ends; says why it did.
async fn receive(inner: &Inner, socket: &Socket) -> String {
    loop {
        match socket.recv().await {
            Ok(None) => return "closed by the process".to_owned(),
            Err(error) => return roost_daemon::telemetry::chain(&error),
            Ok(Some((message, _))) => dispatch(inner, message),
        }
    }
}

fn dispatch(inner: &Inner, message: FromDataplane) {
    match message.message {
        Some(Answer::Traffic(used)) => inner.count(&used),
        Some(_) if message.id == 0 => {
            let request = Request { role: inner.settings.role, message };
            // A process that asks faster than it is served asks again later.
            if inner.settings.requests.try_send(request).is_err() {
                warn!(
                    role = inner.settings.role.text(),
                    "request of the data plane dropped: too many at once"
                );
            }
        }
        Some(answer) => {
            let waiting = inner.lock().as_mut().and_then(|link| link.pending.remove(&message.id));
            if let Some(waiting) = waiting {
                // Whoever asked may have given up meanwhile.
                let _ = waiting.send(answer);
            }
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roost_domain::usage::Network;
    use roost_proto::dataplane::{Ack, Detach, Held, Holding};

    type Process = PacketSocket<FromDataplane, ToDataplane>;

    async fn say(process: &Process, id: u64, message: Answer) {
        process.send(&FromDataplane { id, message: Some(message) }, &[]).await.unwrap();
    }

    fn used(execution: &str, bytes: u64) -> Answer {
        Answer::Traffic(Used {
            execution: execution.to_owned(),
            to_guest_bytes: bytes,
            from_guest_bytes: 2 * bytes,
            run: 7,
        })
    }

    fn holding(executions: impl IntoIterator<Item = String>, more: bool) -> Answer {
        let executions = executions.into_iter();
        let executions = executions.map(|execution| Held { execution, attach_generation: 1 }).collect();
        Answer::Holding(Holding { generation: GENERATION, role: "edge".into(), executions, more })
    }

    /// Holds `exe_a` until it is to let it go; tells what it used then, followed by what waited to be told.
    async fn hold_and_let_go(mut listener: packet::PacketListener<FromDataplane, ToDataplane>) {
        let process = listener.accept().await.unwrap();
        while let Some((request, _)) = process.recv().await.unwrap() {
            match request.message.unwrap() {
                Ask::Hello(_) => {
                    say(&process, request.id, holding(["exe_b".into()], true)).await;
                    say(&process, 0, used("exe_a", 1)).await;
                    say(&process, request.id, holding(["exe_a".into()], false)).await;
                }
                Ask::Detach(_) => {
                    say(&process, 0, used("exe_a", 70)).await;
                    say(&process, 0, used("exe_stranger", 5)).await;
                    say(&process, request.id, Answer::Ack(Ack {})).await;
                    say(&process, 0, used("exe_a", 60)).await;
                }
                // Whoever asks this has the answer to everything before it.
                Ask::Configure(_) => {
                    say(&process, 0, used("exe_a", 90)).await;
                    say(&process, request.id, Answer::Ack(Ack {})).await;
                }
                _ => say(&process, request.id, Answer::Ack(Ack {})).await,
            }
        }
    }

    #[tokio::test]
    async fn what_an_execution_used_is_known_when_it_was_let_go_and_nothing_of_others_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edge.sock");
        tokio::spawn(hold_and_let_go(packet::listen(&path, 0o600).unwrap()));
        let (requests, _received) = mpsc::channel(1);
        let (changed, mut changes) = watch::channel(0);
        let traffic = Traffic::default();
        traffic.open("exe_a", Network::default());
        let uid = nix::unistd::geteuid().as_raw();
        let session = Session::start(Settings {
            role: Role::Edge,
            path,
            uid,
            host_id: "host".into(),
            requests,
            changed,
            traffic: traffic.clone(),
        });
        while session.holds("exe_a") != Some(true) {
            timeout(ANSWER_DEADLINE, changes.changed()).await.unwrap().unwrap();
        }
        assert_eq!(session.holds("exe_b"), Some(true), "it came in a packet of its own");
        let detach = Ask::Detach(Detach { execution: "exe_a".into() });
        session.tell(detach, &[], ANSWER_DEADLINE).await.unwrap();
        let edge = Counted { run: 7, from_guest_bytes: 140, to_guest_bytes: 70 };
        let all = Network { egress_bytes: 140, ingress_bytes: 70, edge, ..Network::default() };
        assert_eq!(traffic.of("exe_a"), all);
        session.tell(Ask::MoreSockets(Default::default()), &[], ANSWER_DEADLINE).await.unwrap();
        assert_eq!(traffic.of("exe_a"), all, "what waited to be told is in it");
        traffic.forget("exe_a");
        session.tell(Ask::Configure(Default::default()), &[], ANSWER_DEADLINE).await.unwrap();
        assert_eq!(traffic.of("exe_a"), Network::default(), "it was let go");
        assert_eq!(traffic.of("exe_stranger"), Network::default());
    }

    #[tokio::test]
    async fn a_process_that_claims_to_hold_too_much_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edge.sock");
        let mut listener = packet::listen::<FromDataplane, ToDataplane>(&path, 0o600).unwrap();
        tokio::spawn(async move {
            let process = listener.accept().await.unwrap();
            for number in 0.. {
                let names = (0..1000).map(|index| format!("exe_{number}_{index}"));
                let message = FromDataplane { id: 1, message: Some(holding(names, true)) };
                if process.send(&message, &[]).await.is_err() {
                    return;
                }
            }
        });
        let socket = Socket::connect(&path).await.unwrap();
        let held = timeout(ANSWER_DEADLINE, collect_held(&socket, "edge")).await.unwrap();
        assert!(matches!(held, Err(Error::HoldsTooMany { role: "edge" })), "{held:?}");
    }
}
