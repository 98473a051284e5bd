//! The agent's end of a control socket.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use roost_daemon::packet::PacketSocket;
use roost_domain::Ulid;
use roost_domain::id::{ExecutionId, SandboxId};
use roost_proto::dataplane::{
    Attach, Claim, FromDataplane, GENERATION, GuestIdentity, Hello, Holding, Origin, ServeGateway,
    ToDataplane, from_dataplane, to_dataplane,
};

pub(crate) type Reply = from_dataplane::Message;
pub(crate) type Message = to_dataplane::Message;

pub(crate) struct Agent {
    pub(crate) socket: PacketSocket<ToDataplane, FromDataplane>,
    next_id: u64,
    pub(crate) notices: Vec<Reply>,
}

impl Agent {
    /// Connects and greets; the answer as one, however many packets it came in.
    pub(crate) async fn connect(path: &Path) -> (Self, Holding) {
        let socket = PacketSocket::connect(path).await.unwrap();
        let mut agent = Self { socket, next_id: 0, notices: Vec::new() };
        let hello = Message::Hello(Hello { generation: GENERATION, host_id: String::new() });
        let id = agent.send(hello, &[]).await;
        let mut all = Holding { more: true, ..Holding::default() };
        while all.more {
            match agent.reply(id).await {
                Reply::Holding(part) => {
                    let before = std::mem::take(&mut all.executions);
                    all = part;
                    all.executions.splice(0..0, before);
                }
                other => panic!("{other:?}"),
            }
        }
        (agent, all)
    }

    pub(crate) async fn send(&mut self, message: Message, descriptors: &[OwnedFd]) -> u64 {
        self.next_id += 1;
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let message = ToDataplane { id: self.next_id, message: Some(message) };
        self.socket.send(&message, &borrowed).await.unwrap();
        self.next_id
    }

    /// The reply to a request; what came unasked before it is kept in `notices`.
    pub(crate) async fn reply(&mut self, id: u64) -> Reply {
        let wait = async {
            loop {
                let (reply, _) = self.socket.recv().await.unwrap().expect("an open control connection");
                let message = reply.message.unwrap();
                match reply.id {
                    0 => self.notices.push(message),
                    other => {
                        assert_eq!(other, id);
                        return message;
                    }
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("a reply")
    }

    pub(crate) async fn call(&mut self, message: Message, descriptors: Vec<OwnedFd>) -> Reply {
        let id = self.send(message, &descriptors).await;
        self.reply(id).await
    }

    pub(crate) async fn notice(&mut self) -> Reply {
        if !self.notices.is_empty() {
            return self.notices.remove(0);
        }
        let wait = async {
            let (reply, _) = self.socket.recv().await.unwrap().expect("an open control connection");
            assert_eq!(reply.id, 0, "{reply:?}");
            reply.message.unwrap()
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("a notice")
    }
}

pub(crate) fn execution() -> ExecutionId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    ExecutionId::from_ulid(Ulid::from_parts(1, NEXT.fetch_add(1, Ordering::Relaxed).into()))
}

pub(crate) fn sandbox() -> SandboxId {
    SandboxId::from_ulid(execution().ulid())
}

pub(crate) fn attach(execution: ExecutionId, sandbox: SandboxId, generation: u64) -> Message {
    Message::Attach(Attach {
        execution: execution.to_string(),
        sandbox: sandbox.to_string(),
        lineage: sandbox.to_string(),
        attach_generation: generation,
        origin: Origin::Tenant.into(),
        guest_token: String::new(),
        protocol_generation: 0,
    })
}

pub(crate) fn identity() -> GuestIdentity {
    GuestIdentity { epoch: 1, host_name: "sandbox".into(), ..GuestIdentity::default() }
}

pub(crate) fn claim(execution: ExecutionId, token: &str, deadline: Duration) -> Message {
    Message::Claim(Claim {
        execution: execution.to_string(),
        token: token.into(),
        identity: Some(identity()),
        deadline_ms: deadline.as_millis() as u64,
    })
}

pub(crate) fn serve_gateway(execution: ExecutionId) -> Message {
    Message::ServeGateway(ServeGateway { execution: execution.to_string() })
}
