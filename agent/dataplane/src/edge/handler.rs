//! The agent's messages as the edge understands them: guests come, are claimed, and go.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;

use roost_daemon::shutdown::Shutdown;
use roost_daemon::telemetry::chain;
use roost_domain::id::ExecutionId;
use roost_proto::dataplane::{Claim, Claimed, Configure, Personalise, Quiesce, Traffic};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use crate::control::{Attachment, Code, Handler, Refusal, Role};
use crate::guest::{GatewayService, Guest, Guests, Scope, serve_stream};

// Streams of the operator's CLI served at once.
const STREAMS_MAX: usize = 64;

/// The edge behind the control socket.
#[derive(Debug)]
pub struct EdgeHandler {
    guests: Arc<Guests>,
    streams: Arc<Semaphore>,
    shutdown: Shutdown,
}

impl EdgeHandler {
    pub fn new(guests: Arc<Guests>, shutdown: Shutdown) -> Self {
        Self { guests, streams: Arc::new(Semaphore::new(STREAMS_MAX)), shutdown }
    }

    fn guest(&self, execution: ExecutionId) -> Result<Arc<Guest>, Refusal> {
        self.guests.find(execution).ok_or_else(|| Refusal::unknown(execution))
    }
}

impl Handler for EdgeHandler {
    const ROLE: Role = Role::Edge;

    fn held(&self) -> Vec<(ExecutionId, u64)> {
        self.guests.held()
    }

    async fn attach(&self, attachment: Attachment, sockets: Vec<OwnedFd>) -> Result<(), Refusal> {
        self.guests.attach(attachment, sockets)
    }

    async fn detach(&self, execution: ExecutionId) -> Option<Traffic> {
        self.guests.detach(execution)
    }

    async fn more_sockets(&self, execution: ExecutionId, sockets: Vec<OwnedFd>) -> Result<(), Refusal> {
        self.guests.add_sockets(execution, sockets)
    }

    /// The settings the agent owns concern egress; the edge has none and accepts them.
    async fn configure(&self, _settings: Configure) -> Result<(), Refusal> {
        Ok(())
    }

    async fn serve_gateway(&self, execution: ExecutionId, stream: OwnedFd) -> Result<(), Refusal> {
        self.guest(execution)?;
        let permit = self.streams.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Refusal::new(Code::Limit, "too many gateway streams"))?;
        let stream = StdUnixStream::from(stream);
        let prepared = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
        let stream = prepared.map_err(|_| Refusal::invalid("not a connected unix stream"))?;
        let service = GatewayService::new(self.guests.clone(), Scope::Execution(execution));
        let stop = self.shutdown.token().clone();
        self.shutdown.spawn(async move {
            if let Err(error) = serve_stream(stream, service, stop).await {
                tracing::debug!(%execution, error = chain(&error), "gateway stream broke");
            }
            drop(permit);
        });
        Ok(())
    }

    async fn claim(&self, execution: ExecutionId, request: Claim) -> Result<Claimed, Refusal> {
        self.guest(execution)?.link.claim(request).await
    }

    async fn personalise(&self, execution: ExecutionId, request: Personalise) -> Result<Claimed, Refusal> {
        self.guest(execution)?.link.personalise(request).await
    }

    async fn quiesce(&self, execution: ExecutionId, request: Quiesce) -> Result<(), Refusal> {
        self.guest(execution)?.link.quiesce(request).await
    }
}
