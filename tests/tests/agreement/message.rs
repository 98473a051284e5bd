//! What can happen, and what is under way: the contract's own messages.

use roost_domain::desired::Run;
use roost_proto::host::{EnsureRequest, OutboxRow, SandboxStatus};

#[derive(Debug, Clone, Copy)]
pub enum Event {
    /// A tenant's call.
    Call(Run),
    /// A host decides by itself.
    Local(usize, Run),
    /// A host does what it works towards.
    Act(usize),
    /// A host sends what it has and will hear what it lacks.
    Sync(usize),
    /// The same with nothing lost, and the host acts on it.
    Exchange(usize),
    /// A host sends its outbox.
    Upload(usize),
    /// The present host gives the sandbox up, then the other one gets it.
    Move,
    BackUpScheduler,
    RestoreScheduler,
    BackUpHost(usize),
    RestoreHost(usize),
    /// One of the messages under way arrives; it may arrive again.
    Deliver(usize),
    Lose(usize),
}

/// Each names the host it comes from or goes to.
#[derive(Debug, Clone)]
pub enum Message {
    Statuses(usize, Vec<SandboxStatus>),
    Rows(usize, Vec<OutboxRow>),
    Acked(usize, u64),
    Wish(usize, Box<EnsureRequest>),
}
