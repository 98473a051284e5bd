//! Decides the one next step of a sandbox, from what is recorded and what is observed.
//!
//! Pure: no I/O, no clock, no memory of its own. A crash anywhere means that the same question is asked again,
//! so every answer must be safe to act on twice. A `Planned` step can be made nowhere else.

use roost_domain::desired::Run;
use roost_domain::lifecycle::State;

use super::record::{EndCause, Execution, Phase, Sandbox};

/// What the host shows of the current execution, asked anew for each decision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    pub vmm: Vmm,
    /// The host's boot differs from the one the execution was launched under.
    pub host_restarted: bool,
    pub egress: Attachment,
    pub edge: Attachment,
    /// The namespace, cgroup or run directory of the execution exists.
    pub leftovers: bool,
}

/// The VMM process of the current execution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Vmm {
    #[default]
    Absent,
    /// There and answering, or at least alive.
    Alive,
    /// The guest shut itself down; the process is gone or about to be.
    GuestExited,
}

/// Whether a data-plane process holds the current execution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Attachment {
    /// The process cannot be asked just now: it restarts, and keeps what the kernel holds for it.
    #[default]
    Unknown,
    /// It was waited for long enough: what can do without it goes on. Never observed; the actor's patience says so.
    Lost,
    Missing,
    Held,
}

impl Attachment {
    fn is_away(self) -> bool {
        matches!(self, Self::Unknown | Self::Lost)
    }
}

/// One idempotent thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Commit a new execution's row.
    BeginExecution,
    EnsureDisk,
    EnsureNetwork,
    Launch,
    Attach,
    /// Let the guest run and make it this sandbox's own; commits `running`.
    Start,
    /// Give a restarted data-plane process what it is missing.
    Reattach,
    /// Flush the guest, stop it, write its memory; commits the snapshot.
    Save,
    /// Flush the guest before it is stopped for good; commits that it ends.
    Quiesce,
    /// Commit that the execution is being taken down, and why.
    BeginEnd(EndCause),
    KillVmm,
    Detach,
    RemoveHostObjects,
    /// Take the last reading, close the row, commit the sandbox's resting state.
    CommitEnd(EndCause),
    RemoveDisk,
    /// Give up the memory of a paused sandbox; commits `stopped`.
    DropMemory,
    /// Commit a resting state that needs no host effect.
    Settle(State),
}

/// A step that this module has decided on.
#[derive(Debug, PartialEq, Eq)]
pub struct Planned(Step);

impl Planned {
    pub fn step(&self) -> Step {
        self.0
    }
}

/// The answer: act, or wait for something to change.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    Act(Planned),
    /// All is as wanted.
    Rest,
    /// Nothing can be done until a data-plane process is back, or was waited for long enough.
    AwaitDataplane,
}

fn act(step: Step) -> Plan {
    Plan::Act(Planned(step))
}

/// The one next step of `sandbox`.
pub fn plan(sandbox: &Sandbox, observed: &Observed) -> Plan {
    match &sandbox.execution {
        Some(execution) if execution.phase == Phase::Ending => plan_end(execution, observed),
        Some(execution) => plan_execution(sandbox, execution, observed),
        None => plan_without_execution(sandbox),
    }
}

fn plan_without_execution(sandbox: &Sandbox) -> Plan {
    match sandbox.target() {
        Run::Running => act(Step::BeginExecution),
        Run::Stopped if sandbox.state == State::Paused => act(Step::DropMemory),
        // A sandbox that never ran, or stopped, has no memory to keep: pausing it changes nothing.
        Run::Paused | Run::Stopped if sandbox.state.is_resting() => Plan::Rest,
        Run::Paused | Run::Stopped => act(Step::Settle(State::Stopped)),
        Run::Destroyed if sandbox.state == State::Destroyed => Plan::Rest,
        Run::Destroyed => act(Step::RemoveDisk),
    }
}

fn plan_execution(sandbox: &Sandbox, execution: &Execution, observed: &Observed) -> Plan {
    if execution.phase == Phase::Saved {
        return act(Step::BeginEnd(EndCause::Paused));
    }
    if let Some(cause) = find_loss(execution, observed) {
        return act(Step::BeginEnd(cause));
    }
    match sandbox.target() {
        Run::Running => plan_forward(execution, observed),
        Run::Destroyed => act(Step::BeginEnd(EndCause::Destroyed)),
        // It may have begun to run, but nobody was given it yet.
        Run::Stopped if execution.phase < Phase::Running && observed.edge == Attachment::Lost => {
            act(Step::BeginEnd(EndCause::Stopped))
        }
        // A start in progress is finished first: its guest may hold work that a pause must keep.
        Run::Paused | Run::Stopped if execution.phase < Phase::Running => plan_forward(execution, observed),
        // Only edge reaches the guest, which has to write out what it holds in memory.
        Run::Paused | Run::Stopped if observed.edge == Attachment::Unknown => Plan::AwaitDataplane,
        Run::Paused | Run::Stopped if observed.edge == Attachment::Missing => act(Step::Reattach),
        Run::Paused => act(Step::Save),
        Run::Stopped => act(Step::Quiesce),
    }
}

/// Why an execution that should have a VMM has none any more.
fn find_loss(execution: &Execution, observed: &Observed) -> Option<EndCause> {
    if execution.phase < Phase::Launched {
        return None;
    }
    match observed.vmm {
        Vmm::Alive => None,
        _ if observed.host_restarted => Some(EndCause::HostRestarted),
        Vmm::GuestExited => Some(EndCause::GuestExited),
        Vmm::Absent => Some(EndCause::VmmCrashed),
    }
}

fn plan_forward(execution: &Execution, observed: &Observed) -> Plan {
    match execution.phase {
        Phase::Recorded => act(Step::EnsureDisk),
        Phase::DiskReady => act(Step::EnsureNetwork),
        Phase::NetworkReady => act(Step::Launch),
        // A guest runs its first instruction only when both processes hold its sockets.
        Phase::Launched | Phase::Attached => match (observed.egress, observed.edge) {
            (egress, edge) if egress.is_away() || edge.is_away() => Plan::AwaitDataplane,
            (Attachment::Held, Attachment::Held) if execution.phase == Phase::Attached => act(Step::Start),
            // Also when both hold it already: only the commit may be missing.
            _ => act(Step::Attach),
        },
        // A running one is served by whichever process is there; one that comes back wakes whoever rests.
        Phase::Running => match (observed.egress, observed.edge) {
            (Attachment::Missing, _) | (_, Attachment::Missing) => act(Step::Reattach),
            _ => Plan::Rest,
        },
        // Decided before this is reached.
        Phase::Saved | Phase::Ending => Plan::Rest,
    }
}

fn plan_end(execution: &Execution, observed: &Observed) -> Plan {
    if observed.vmm != Vmm::Absent {
        return act(Step::KillVmm);
    }
    // A process that cannot be asked holds nothing that outlives it; it gets a fresh list when it is back.
    if observed.egress == Attachment::Held || observed.edge == Attachment::Held {
        return act(Step::Detach);
    }
    if observed.leftovers {
        return act(Step::RemoveHostObjects);
    }
    act(Step::CommitEnd(execution.end_cause.unwrap_or(EndCause::VmmCrashed)))
}
