//! The real edge process with one attached execution, and callers of its gateway.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use roost_domain::id::{ExecutionId, SandboxId};
use roost_proto::guest::GUEST_RPC_PORT;
use roost_proto::host::gateway_client::GatewayClient;
use tonic::transport::{Channel, Endpoint};

use super::agent::{self, Agent, Reply};
use super::guest::FakeGuest;
use super::namespace::Namespace;
use super::process::Dataplane;

pub(crate) const TOKEN: &str = "a-token-of-32-characters-or-more";
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// The real process with one attached execution, not claimed.
pub(crate) struct Attached {
    pub(crate) process: Dataplane,
    pub(crate) agent: Agent,
    pub(crate) namespace: Namespace,
    pub(crate) execution: ExecutionId,
    pub(crate) sandbox: SandboxId,
}

impl Attached {
    pub(crate) async fn new() -> Self {
        let process = Dataplane::start("edge", "");
        let namespace = Namespace::new();
        let (mut agent, holding) = Agent::connect(&process.control).await;
        assert!(holding.executions.is_empty());
        assert_eq!(holding.role, "edge");
        let (execution, sandbox) = (agent::execution(), agent::sandbox());
        let reply = agent.call(agent::attach(execution, sandbox, 1), namespace.dial_sockets(8)).await;
        assert!(matches!(reply, Reply::Ack(_)), "{reply:?}");
        Self { process, agent, namespace, execution, sandbox }
    }

    pub(crate) async fn claim(&mut self) -> Reply {
        self.agent.call(agent::claim(self.execution, TOKEN, LONG), Vec::new()).await
    }

    /// With a guest that answers, claimed.
    pub(crate) async fn with_guest() -> (Self, FakeGuest) {
        let mut this = Self::new().await;
        let guest = FakeGuest::default();
        guest.serve(this.namespace.listen(GUEST_RPC_PORT));
        let reply = this.claim().await;
        assert!(matches!(reply, Reply::Claimed(_)), "{reply:?}");
        (this, guest)
    }

    pub(crate) async fn gateway(&mut self) -> GatewayClient<Channel> {
        self.gateway_of(self.execution).await
    }

    /// A gateway connection for any attached execution of the process.
    pub(crate) async fn gateway_of(&mut self, execution: ExecutionId) -> GatewayClient<Channel> {
        let (near, far) = StdUnixStream::pair().unwrap();
        let reply = self.agent.call(agent::serve_gateway(execution), vec![OwnedFd::from(far)]).await;
        assert!(matches!(reply, Reply::Ack(_)), "{reply:?}");
        near.set_nonblocking(true).unwrap();
        let mut near = Some(tokio::net::UnixStream::from_std(near).unwrap());
        let connector = tower::service_fn(move |_: http::Uri| {
            let near = near.take().map(TokioIo::new);
            async move { near.ok_or_else(|| std::io::Error::other("one connection only")) }
        });
        let channel = Endpoint::from_static("http://edge.invalid").connect_with_connector(connector).await;
        GatewayClient::new(channel.unwrap())
    }

    /// Accepts on the RPC port and hands every connection to `serve`.
    pub(crate) fn serve_raw<F>(&self, serve: impl Fn(tokio::net::TcpStream) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = self.namespace.listen(GUEST_RPC_PORT);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
    }

    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.child.id())).unwrap().count()
    }
}
