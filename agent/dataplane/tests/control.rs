//! The control socket of the real process: who is let in, and what a broken message costs.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
#![allow(clippy::disallowed_methods, reason = "the test starts a second process")]

mod support;

use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use roost_daemon::packet::{self, PacketSocket};
use roost_daemon::shutdown::Shutdown;
use roost_dataplane::control::{self, Attachment, Handler, Refusal, Role};
use roost_domain::id::ExecutionId;
use roost_proto::dataplane::{Attach, Detach, FromDataplane, GENERATION, Hello, ToDataplane, Traffic};
use support::agent::{self, Agent, Message, Reply};
use support::namespace::Namespace;
use support::process::{self, Dataplane};
use tokio_seqpacket::UnixSeqpacket;

type Socket = PacketSocket<ToDataplane, FromDataplane>;

/// Whether the process closes the connection, with or without a reset.
async fn is_closed(socket: &Socket) -> bool {
    let received = tokio::time::timeout(Duration::from_secs(10), socket.recv()).await.expect("an end");
    matches!(received, Ok(None) | Err(packet::Error::Receive(_)))
}

async fn send(socket: &Socket, message: Message) {
    // The process may have closed already, which is what is looked for.
    let _ = socket.send(&ToDataplane { id: 1, message: Some(message) }, &[]).await;
}

fn hello(generation: u32) -> Message {
    Message::Hello(Hello { generation, host_id: String::new() })
}

#[tokio::test]
async fn only_the_agents_uid_is_let_in() {
    let process = Dataplane::start("edge", "agent_uid = 12345\n");
    let socket = Socket::connect(&process.control).await.unwrap();
    send(&socket, hello(GENERATION)).await;
    assert!(is_closed(&socket).await);
}

#[tokio::test]
async fn what_breaks_the_contract_closes_the_connection_and_nothing_else() {
    let process = Dataplane::start("edge", "");
    let namespace = Namespace::new();
    let (execution, sandbox) = (agent::execution(), agent::sandbox());
    let (mut agent, _) = Agent::connect(&process.control).await;
    let reply = agent.call(agent::attach(execution, sandbox, 1), namespace.dial_sockets(8)).await;
    assert!(matches!(reply, Reply::Ack(_)), "{reply:?}");

    for first in [hello(GENERATION + 1), Message::Detach(Detach { execution: execution.to_string() })] {
        let socket = Socket::connect(&process.control).await.unwrap();
        send(&socket, first).await;
        assert!(is_closed(&socket).await);
    }
    for garbage in [vec![0xff; 16], vec![0; packet::MESSAGE_MAX_BYTES + 1]] {
        let raw = UnixSeqpacket::connect(&process.control).await.unwrap();
        raw.send(&garbage).await.unwrap();
        let mut answer = [0; 16];
        let end = tokio::time::timeout(Duration::from_secs(10), raw.recv(&mut answer)).await.expect("an end");
        assert!(end.is_err() || end.unwrap().bytes_read() == 0);
    }
    let (_, holding) = Agent::connect(&process.control).await;
    assert_eq!(holding.executions.len(), 1, "what is held is held");
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_one_by_one() {
    let process = Dataplane::start("edge", "");
    let namespace = Namespace::new();
    let (execution, sandbox) = (agent::execution(), agent::sandbox());
    let (mut agent, _) = Agent::connect(&process.control).await;
    let refused = |reply: Reply| match reply {
        Reply::Refused(refused) => refused.code,
        other => panic!("{other:?}"),
    };
    let attach = |change: fn(&mut Attach)| {
        let Message::Attach(mut attach) = agent::attach(execution, sandbox, 1) else { unreachable!() };
        change(&mut attach);
        Message::Attach(attach)
    };
    for wrong in [
        attach(|attach| attach.execution = "exe_../../etc".into()),
        attach(|attach| attach.sandbox = "everything".into()),
        attach(|attach| attach.origin = 0),
        attach(|attach| attach.guest_token = "not a\r\nheader".into()),
    ] {
        assert_eq!(refused(agent.call(wrong, namespace.dial_sockets(2)).await), "invalid");
    }
    assert_eq!(refused(agent.call(attach(|_| {}), Vec::new()).await), "invalid", "no sockets");
    assert_eq!(refused(agent.call(agent::serve_gateway(execution), Vec::new()).await), "invalid");
    let stream = vec![std::os::unix::net::UnixStream::pair().unwrap().0.into()];
    assert_eq!(refused(agent.call(agent::serve_gateway(execution), stream).await), "unknown_execution");
    // Repeatable: letting go of what is not held is no failure.
    let detach = Message::Detach(Detach { execution: execution.to_string() });
    assert!(matches!(agent.call(detach, Vec::new()).await, Reply::Ack(_)));
}

/// Holds more than one packet tells.
#[derive(Debug)]
struct Full(Vec<(ExecutionId, u64)>);

impl Handler for Full {
    const ROLE: Role = Role::Edge;

    fn held(&self) -> Vec<(ExecutionId, u64)> {
        self.0.clone()
    }

    async fn attach(&self, _: Attachment, _: Vec<OwnedFd>) -> Result<(), Refusal> {
        Ok(())
    }

    async fn detach(&self, _: ExecutionId) -> Option<Traffic> {
        None
    }
}

#[tokio::test]
async fn all_that_is_held_is_told_however_much_it_is() {
    let folder = tempfile::tempdir().unwrap();
    for count in [0, 1, 1000, 1001, 2500] {
        let path = folder.path().join(format!("{count}.sock"));
        let held: Vec<_> = (0..count).map(|_| (agent::execution(), u64::MAX)).collect();
        let listener = packet::listen(&path, 0o600).unwrap();
        let (_notices, queue) = control::notices();
        let uid = nix::unistd::geteuid().as_raw();
        let handler = Arc::new(Full(held.clone()));
        let served = tokio::spawn(control::serve(listener, uid, handler, queue, Shutdown::new()));
        let (mut agent, holding) = Agent::connect(&path).await;
        let told: Vec<_> = holding.executions.into_iter().map(|held| held.execution).collect();
        assert_eq!(told, held.iter().map(|(execution, _)| execution.to_string()).collect::<Vec<_>>());
        let detach = Message::Detach(Detach { execution: agent::execution().to_string() });
        assert!(matches!(agent.call(detach, Vec::new()).await, Reply::Ack(_)));
        served.abort();
    }
}

#[tokio::test]
async fn a_second_process_cannot_take_the_directories_of_the_first() {
    let process = Dataplane::start("edge", "");
    let config = process.directory().join("config.toml");
    let second = Command::new(process::binary()).args(["edge", "--config"]).arg(config).output();
    let second = second.unwrap();
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && text.contains("another process serves"), "{text}");
    Agent::connect(&process.control).await;
}
