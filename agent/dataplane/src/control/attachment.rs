//! The identity that arrives together with the sockets of an execution, checked once and typed from then on.

use std::fmt;

use roost_domain::id::{ExecutionId, SandboxId};
use roost_proto::dataplane::{Attach, Origin};
use zeroize::Zeroizing;

use super::Refusal;

// A token is 256 bits in text; anything much longer is a mistake.
const TOKEN_BYTES_MAX: usize = 256;

/// Which execution the sockets belong to, and on whose behalf it runs.
#[derive(Debug, Clone)]
pub struct Attachment {
    pub execution: ExecutionId,
    /// None while the execution waits in a pool.
    pub sandbox: Option<SandboxId>,
    /// The first ancestor, under which names and placeholders stay valid across forks.
    pub lineage: Option<SandboxId>,
    pub generation: u64,
    pub origin: Origin,
    /// How to talk to the guest's init; none until it was claimed. Edge only.
    pub guest: Option<GuestAccess>,
}

/// What a claimed guest answers to.
#[derive(Debug, Clone)]
pub struct GuestAccess {
    pub token: GuestToken,
    pub protocol_generation: u32,
}

/// The bearer token of one guest's RPC. Shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct GuestToken(Zeroizing<String>);

impl GuestToken {
    /// Only visible ASCII, so that it is a header value as it stands.
    pub fn parse(text: String) -> Result<Self, Refusal> {
        let text = Zeroizing::new(text);
        let is_valid = !text.is_empty() && text.len() <= TOKEN_BYTES_MAX;
        if !is_valid || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Refusal::invalid("a guest token is 1 to 256 visible ASCII characters"));
        }
        Ok(Self(text))
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for GuestToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("GuestToken(…)")
    }
}

impl TryFrom<Attach> for Attachment {
    type Error = Refusal;

    fn try_from(message: Attach) -> Result<Self, Refusal> {
        let origin = message.origin();
        if origin == Origin::Unspecified {
            return Err(Refusal::invalid("an attach names its origin"));
        }
        let guest = match message.guest_token.is_empty() {
            true => None,
            false => Some(GuestAccess {
                token: GuestToken::parse(message.guest_token)?,
                protocol_generation: message.protocol_generation,
            }),
        };
        Ok(Self {
            execution: parse_execution(&message.execution)?,
            sandbox: parse_sandbox(&message.sandbox)?,
            lineage: parse_sandbox(&message.lineage)?,
            generation: message.attach_generation,
            origin,
            guest,
        })
    }
}

pub(super) fn parse_execution(text: &str) -> Result<ExecutionId, Refusal> {
    ExecutionId::parse(text).map_err(|error| Refusal::invalid(error.to_string()))
}

fn parse_sandbox(text: &str) -> Result<Option<SandboxId>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    SandboxId::parse(text).map(Some).map_err(|error| Refusal::invalid(error.to_string()))
}
