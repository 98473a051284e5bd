//! Carries out one planned step: the host effect, then its commit.
//!
//! Owns the order "effect, then commit" and what each commit says. Decides nothing: `plan` did. Every commit that
//! others may see (state, usage) goes with its outbox row in one transaction.

use roost_domain::desired::{Cause, Run, Standing};
use roost_domain::id::{ExecutionId, SnapshotId};
use roost_domain::lifecycle::State;
use roost_domain::usage::{Allocation, Reading};

use super::plan::{Planned, Step};
use super::record::{BootPath, EndCause, Execution, Origin, Phase, Sandbox};
use super::world::{self, World};
use crate::store::{self, Store};

/// A step that did not come to its commit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the host refused")]
    World(#[from] world::Error),
    #[error("the commit failed")]
    Store(#[from] store::Error),
    #[error("the sandbox has no execution to act on")]
    NoExecution,
}

/// What steps need besides the sandbox.
#[derive(Debug, Clone)]
pub struct Settings {
    /// VMM user ids, first and last.
    pub vmm_uids: (u32, u32),
}

/// Runs `planned` against the host and commits its outcome.
pub async fn run(
    planned: &Planned,
    sandbox: &Sandbox,
    world: &dyn World,
    store: &Store,
    settings: &Settings,
) -> Result<(), Error> {
    let step = planned.step();
    match step {
        Step::BeginExecution => return begin_execution(sandbox, world, store, settings).await,
        Step::RemoveDisk => {
            world.remove_disk(sandbox).await?;
            return Ok(settle(sandbox, State::Destroyed, world, store).await?);
        }
        Step::DropMemory => {
            world.remove_memory(sandbox).await?;
            return Ok(drop_memory(sandbox, world, store).await?);
        }
        Step::Settle(state) => return Ok(settle(sandbox, state, world, store).await?),
        _ => {}
    }
    let execution = sandbox.execution.as_ref().ok_or(Error::NoExecution)?;
    match step {
        Step::EnsureDisk => {
            world.ensure_disk(sandbox).await?;
            commit_phase(execution, Phase::DiskReady, store).await
        }
        Step::EnsureNetwork => {
            world.ensure_network(execution).await?;
            commit_phase(execution, Phase::NetworkReady, store).await
        }
        Step::Launch => {
            let vmm = world.launch(sandbox, execution).await?;
            let id = execution.id;
            Ok(store.write(move |tx| store::execution::record_launched(tx, id, vmm)).await?)
        }
        Step::Attach => {
            world.attach(sandbox, execution).await?;
            let (sandbox, id) = (sandbox.id, execution.id);
            // The guest will write to its disk from here on, so its memory snapshot is spent.
            Ok(store.write(move |tx| store::execution::record_attached(tx, sandbox, id)).await?)
        }
        Step::Start => start(sandbox, execution, world, store).await,
        Step::Reattach => Ok(world.attach(sandbox, execution).await?),
        Step::Save => save(sandbox, execution, world, store).await,
        Step::Quiesce => {
            world.quiesce(execution).await?;
            begin_end(sandbox, execution, EndCause::Stopped, None, world, store).await
        }
        Step::BeginEnd(cause) => begin_end(sandbox, execution, cause, None, world, store).await,
        Step::KillVmm => Ok(world.kill_vmm(sandbox, execution).await?),
        Step::Detach => Ok(world.detach(execution).await?),
        Step::RemoveHostObjects => {
            // The cgroup holds the final counters: they are kept before it goes.
            commit_usage(sandbox, execution, world, store).await?;
            Ok(world.remove_host_objects(execution).await?)
        }
        Step::CommitEnd(cause) => commit_end(sandbox, execution, cause, world, store).await,
        Step::BeginExecution | Step::RemoveDisk | Step::DropMemory | Step::Settle(_) => Ok(()),
    }
}

async fn begin_execution(
    sandbox: &Sandbox,
    world: &dyn World,
    store: &Store,
    settings: &Settings,
) -> Result<(), Error> {
    let image = match &sandbox.image {
        Some(image) => image.clone(),
        None => world.find_image(&sandbox.spec.template).await?,
    };
    let draft = store::execution::Draft {
        id: roost_daemon::ids::fresh::<ExecutionId>(),
        sandbox: sandbox.id,
        image,
        restore: sandbox.snapshot,
        token: super::fresh_token(),
        old_token: sandbox.snapshot.and(sandbox.guest_token.clone()),
        epoch: sandbox.guest_epoch + 1,
        boot_id: world.boot_id(),
        created_us: world.now_us(),
        state: if sandbox.snapshot.is_some() { State::Resuming } else { State::Creating },
        vmm_uids: settings.vmm_uids,
    };
    let sandbox = sandbox.clone();
    Ok(store
        .write(move |tx| {
            let state = draft.state;
            let now_us = draft.created_us;
            let execution = store::execution::insert(tx, draft)?;
            store::sandbox::record_begun(tx, &sandbox, &execution, state, now_us)?;
            // The scheduler must know whose an execution is before anything arrives in its name.
            report_execution(tx, &sandbox, execution.id)?;
            report(tx, &sandbox.id)
        })
        .await?)
}

async fn start(
    sandbox: &Sandbox,
    execution: &Execution,
    world: &dyn World,
    store: &Store,
) -> Result<(), Error> {
    let boot_us = world.start(sandbox, execution).await?;
    let reading = world.read_usage(sandbox, execution).await?;
    let reading =
        reading.ok_or_else(|| world::Error::permanent("reading the first counters")("the cgroup is gone"))?;
    let path = if execution.restore.is_some() { BootPath::Snapshot } else { BootPath::Cold };
    let (sandbox, execution) = (sandbox.clone(), execution.clone());
    store
        .write(move |tx| {
            store::execution::record_running(tx, &execution, reading.at_us)?;
            store::sandbox::record_running(tx, &sandbox, &execution, path, boot_us, reading.at_us)?;
            store::usage::insert_baseline(tx, execution.id, &reading)?;
            report_execution(tx, &sandbox, execution.id)?;
            report(tx, &sandbox.id)
        })
        .await?;
    Ok(())
}

async fn save(
    sandbox: &Sandbox,
    execution: &Execution,
    world: &dyn World,
    store: &Store,
) -> Result<(), Error> {
    settle(sandbox, State::Pausing, world, store).await?;
    world.save(sandbox, execution).await?;
    let snapshot = SnapshotId::from_ulid(execution.id.ulid());
    let (sandbox, execution) = (sandbox.id, execution.id);
    Ok(store.write(move |tx| store::execution::record_saved(tx, sandbox, execution, snapshot)).await?)
}

async fn commit_phase(execution: &Execution, phase: Phase, store: &Store) -> Result<(), Error> {
    let id = execution.id;
    Ok(store.write(move |tx| store::execution::record_phase(tx, id, phase)).await?)
}

/// Commits that `execution` is being taken down; `reason` is for people.
pub(super) async fn begin_end(
    sandbox: &Sandbox,
    execution: &Execution,
    cause: EndCause,
    reason: Option<String>,
    world: &dyn World,
    store: &Store,
) -> Result<(), Error> {
    let state = match cause {
        EndCause::Paused => State::Pausing,
        EndCause::Destroyed => State::Destroying,
        _ => State::Stopping,
    };
    // While its VMM is there to be metered: afterwards only an agent that saw it go can tell when that was.
    if matches!(cause, EndCause::Paused | EndCause::Stopped | EndCause::Destroyed)
        && let Err(error) = commit_usage(sandbox, execution, world, store).await
    {
        tracing::warn!(error = %roost_daemon::telemetry::chain(&error), "no reading before the end");
    }
    let now_us = world.now_us();
    // What is said of a stop is how it went; other ends keep what was known before them.
    let reason = reason.or_else(|| sandbox.state_reason.clone().filter(|_| cause != EndCause::Stopped));
    let (sandbox, id) = (sandbox.id, execution.id);
    Ok(store
        .write(move |tx| {
            store::execution::record_ending(tx, id, cause)?;
            store::sandbox::record_state(tx, sandbox, state, reason.as_deref(), now_us)?;
            report(tx, &sandbox)
        })
        .await?)
}

/// Closes the meter of an execution as far as its counters reach; repeatable, a second call adds nothing new.
async fn commit_usage(
    sandbox: &Sandbox,
    execution: &Execution,
    world: &dyn World,
    store: &Store,
) -> Result<(), Error> {
    if execution.started_us.is_none() {
        return Ok(());
    }
    if let Some(reading) = world.read_usage(sandbox, execution).await? {
        record_reading(sandbox, execution, reading, store).await?;
    }
    Ok(())
}

/// Commits the delta between the last reading and `reading`, with its outbox row.
pub(crate) async fn record_reading(
    sandbox: &Sandbox,
    execution: &Execution,
    reading: Reading,
    store: &Store,
) -> Result<(), store::Error> {
    let allocation = Allocation { vcpus: sandbox.spec.vcpus, memory_mib: sandbox.spec.memory_mib };
    let origin = sandbox.origin;
    let (sandbox, execution) = (sandbox.id, execution.id);
    store
        .write(move |tx| {
            let deltas = store::usage::record_reading(tx, sandbox, execution, allocation, &reading)?;
            if origin == Origin::Tenant {
                for delta in deltas {
                    store::outbox::push_usage(tx, delta)?;
                }
            }
            Ok(())
        })
        .await
}

async fn commit_end(
    sandbox: &Sandbox,
    execution: &Execution,
    cause: EndCause,
    world: &dyn World,
    store: &Store,
) -> Result<(), Error> {
    let now_us = world.now_us();
    let outcome = Outcome::of(sandbox, cause);
    let keep_snapshot = cause == EndCause::Paused;
    let mut after = sandbox.clone();
    after.snapshot = sandbox.snapshot.filter(|_| keep_snapshot);
    world.remove_spent_snapshots(&after, execution).await?;
    let (sandbox, id) = (sandbox.clone(), execution.id);
    Ok(store
        .write(move |tx| {
            store::usage::close(tx, id)?;
            store::execution::record_ended(tx, id, cause, now_us)?;
            store::sandbox::record_ended(tx, &sandbox, &outcome, keep_snapshot, now_us)?;
            report_execution(tx, &sandbox, id)?;
            report(tx, &sandbox.id)
        })
        .await?)
}

/// What the end of an execution makes of its sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub state: State,
    pub reason: Option<String>,
    pub standing: Standing,
}

impl Outcome {
    /// Pure: the resting state after `cause`, and the transition this host makes by itself, if any.
    pub fn of(sandbox: &Sandbox, cause: EndCause) -> Self {
        let (state, reason, transition) = match cause {
            EndCause::Paused => (State::Paused, None, None),
            EndCause::Stopped => (State::Stopped, sandbox.state_reason.as_deref(), None),
            EndCause::Destroyed => (State::Destroying, None, None),
            EndCause::GuestExited => (State::Stopped, Some("guest_exited"), Some(Cause::GuestExited)),
            EndCause::VmmCrashed => (State::Stopped, Some("vmm_crashed"), Some(Cause::VmmCrashed)),
            EndCause::StartFailed => {
                let reason = sandbox.state_reason.as_deref().or(Some("start_failed"));
                (State::Failed, reason, Some(Cause::StartFailed))
            }
            // Both start again from disk by the next decision, since nothing holds them back.
            EndCause::HostRestarted => (State::Stopped, Some("host_restarted"), None),
            EndCause::RestoreFailed => (State::Stopped, Some("memory_snapshot_incompatible"), None),
        };
        let mut standing = sandbox.standing;
        if let Some(cause) = transition {
            // Refused when the sandbox is to be stopped or destroyed anyway: then there is nothing to hold.
            let _ = standing.transition(Run::Stopped, cause);
        }
        Self { state, reason: reason.map(str::to_owned), standing }
    }
}

async fn drop_memory(sandbox: &Sandbox, world: &dyn World, store: &Store) -> Result<(), store::Error> {
    let (id, now_us) = (sandbox.id, world.now_us());
    store
        .write(move |tx| {
            store::sandbox::record_memory_dropped(tx, id, now_us)?;
            report(tx, &id)
        })
        .await
}

async fn settle(
    sandbox: &Sandbox,
    state: State,
    world: &dyn World,
    store: &Store,
) -> Result<(), store::Error> {
    if sandbox.state == state {
        return Ok(());
    }
    let now_us = world.now_us();
    let (id, reason) = (sandbox.id, sandbox.state_reason.clone());
    store
        .write(move |tx| {
            store::sandbox::record_state(tx, id, state, reason.as_deref(), now_us)?;
            report(tx, &id)
        })
        .await
}

/// Queues what there is of an execution for the scheduler: begun, running, or over.
fn report_execution(
    tx: &rusqlite::Transaction<'_>,
    sandbox: &Sandbox,
    execution: ExecutionId,
) -> Result<(), store::Error> {
    match sandbox.origin {
        Origin::Tenant => store::outbox::push_execution(tx, execution),
        Origin::Local => Ok(()),
    }
}

/// Queues the sandbox's present status for the scheduler, in the transaction that changed it.
pub(crate) fn report(
    tx: &rusqlite::Transaction<'_>,
    id: &roost_domain::id::SandboxId,
) -> Result<(), store::Error> {
    store::outbox::push_status(tx, *id)
}
