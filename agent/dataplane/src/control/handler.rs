//! What a role does with the agent's messages, and how it refuses one.

use std::fmt;
use std::future::Future;
use std::os::fd::OwnedFd;

use roost_domain::id::ExecutionId;
use roost_proto::dataplane::{Claim, Claimed, Configure, Personalise, Quiesce, Refused, Traffic};

use super::Attachment;

/// Which of the two processes this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Edge,
    Egress,
}

impl Role {
    /// The name in `Holding`, in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// Why a request is not done, in the words of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    UnknownExecution,
    StaleGeneration,
    Invalid,
    GuestTimeout,
    GuestRefused,
    Limit,
}

impl Code {
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownExecution => "unknown_execution",
            Self::StaleGeneration => "stale_generation",
            Self::Invalid => "invalid",
            Self::GuestTimeout => "guest_timeout",
            Self::GuestRefused => "guest_refused",
            Self::Limit => "limit",
        }
    }
}

/// The answer to a request that is not done. The message goes to the agent: no secrets, nothing a guest wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.name())]
pub struct Refusal {
    pub code: Code,
    pub message: String,
}

impl Refusal {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::Invalid, message)
    }

    pub fn unknown(execution: ExecutionId) -> Self {
        Self::new(Code::UnknownExecution, format!("{execution} is not attached"))
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { code: refusal.code.name().to_owned(), message: refusal.message }
    }
}

/// A role behind the control socket. Everything it holds survives the connection that brought it.
///
/// `attach`, `detach`, `more_sockets`, `serve_gateway` and `configure` are run one after the other in the order
/// they came and must be quick; `claim`, `personalise` and `quiesce` run beside each other and may be dropped at
/// any await when the agent goes away, which asks again.
pub trait Handler: Send + Sync + 'static {
    const ROLE: Role;

    /// The executions held and the generation of the attach of each.
    fn held(&self) -> Vec<(ExecutionId, u64)>;

    /// Takes an execution over. The same generation again answers ok without acting; an older one is refused.
    fn attach(
        &self,
        attachment: Attachment,
        descriptors: Vec<OwnedFd>,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Lets an execution go and closes everything of it; repeatable. Returns all that it has used, if it was there.
    fn detach(&self, execution: ExecutionId) -> impl Future<Output = Option<Traffic>> + Send;

    /// Replaces the settings the agent owns.
    fn configure(&self, _settings: Configure) -> impl Future<Output = Result<(), Refusal>> + Send {
        async { Err(not_served::<Self>("Configure")) }
    }

    fn more_sockets(
        &self,
        _execution: ExecutionId,
        _sockets: Vec<OwnedFd>,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        async { Err(not_served::<Self>("MoreSockets")) }
    }

    fn serve_gateway(
        &self,
        _execution: ExecutionId,
        _stream: OwnedFd,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        async { Err(not_served::<Self>("ServeGateway")) }
    }

    fn claim(
        &self,
        _execution: ExecutionId,
        _request: Claim,
    ) -> impl Future<Output = Result<Claimed, Refusal>> + Send {
        async { Err(not_served::<Self>("Claim")) }
    }

    fn personalise(
        &self,
        _execution: ExecutionId,
        _request: Personalise,
    ) -> impl Future<Output = Result<Claimed, Refusal>> + Send {
        async { Err(not_served::<Self>("Personalise")) }
    }

    fn quiesce(
        &self,
        _execution: ExecutionId,
        _request: Quiesce,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        async { Err(not_served::<Self>("Quiesce")) }
    }
}

fn not_served<H: Handler + ?Sized>(message: &str) -> Refusal {
    Refusal::invalid(format!("{} does not serve {message}", H::ROLE))
}
