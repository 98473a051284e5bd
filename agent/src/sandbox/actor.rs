//! The one task that changes one sandbox.
//!
//! Owns the loop read → observe → plan → one step → commit, and what a failed step leads to. Keeps nothing between
//! turns but the count of failures in a row and how long an end has been waiting, so that a crash anywhere means
//! running the same loop again.

use std::sync::Arc;
use std::time::Duration;

use roost_domain::desired::{Cause, Run};
use roost_domain::id::SandboxId;
use roost_domain::lifecycle::State;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{Instrument, error, info, info_span, warn};

use super::plan::{self, Attachment, Observed, Plan, Step};
use super::record::{EndCause, Phase, Sandbox};
use super::step;
use super::world::{self, World};
use crate::store::{self, Store};

/// How often a step of a start is tried before the start is given up.
pub const START_ATTEMPTS: u32 = 3;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A resting sandbox is looked at this often even if nothing stirs.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// One that waits for the data plane, whose patience ends without anything stirring.
const LOOK_FOR_DATAPLANE: Duration = Duration::from_secs(5);
/// How long a stop or a pause waits for edge: an upgrade takes a second or two, a person ten minutes.
const EDGE_PATIENCE: Duration = Duration::from_secs(30);
/// What `state_reason` says of a sandbox that was stopped without its guest having written out its caches.
pub(super) const NOT_FLUSHED: &str = "guest_not_flushed";

/// What an actor works with.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) world: Arc<dyn World>,
    pub(super) store: Store,
    pub(super) settings: step::Settings,
    pub(super) dataplane: watch::Receiver<u64>,
    /// Told after every commit; the scheduler session uploads then.
    pub(super) committed: Arc<Notify>,
}

/// Wakes the actor and tells of its commits.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    pub(super) poke: Arc<Notify>,
    pub(super) commits: watch::Receiver<u64>,
}

/// Starts the task of one sandbox; it ends when the sandbox is destroyed.
pub(super) fn start(id: SandboxId, context: Context, on_end: impl FnOnce() + Send + 'static) -> Handle {
    let poke = Arc::new(Notify::new());
    let (told, commits) = watch::channel(0);
    let handle = Handle { poke: Arc::clone(&poke), commits };
    let span = info_span!("sandbox", %id);
    tokio::spawn(
        async move {
            let mut actor = Actor { id, context, poke, told, failures: 0, ending_since: None };
            while !actor.turn().await {}
            on_end();
        }
        .instrument(span),
    );
    handle
}

struct Actor {
    id: SandboxId,
    context: Context,
    poke: Arc<Notify>,
    told: watch::Sender<u64>,
    /// Failures in a row of whatever step is planned.
    failures: u32,
    /// Since when a pause or stop has been under way and could not take the execution down.
    ending_since: Option<Instant>,
}

impl Actor {
    /// One turn of the loop. `true` when there is nothing left to own.
    async fn turn(&mut self) -> bool {
        let id = self.id;
        let sandbox = match self.context.store.write(move |tx| store::sandbox::find(tx, id)).await {
            Ok(Some(sandbox)) => sandbox,
            Ok(None) => return true,
            Err(error) => {
                error!(error = %roost_daemon::telemetry::chain(&error), "cannot read the sandbox");
                self.pause().await;
                return false;
            }
        };
        let observed = match self.context.world.observe(&sandbox).await {
            Ok(observed) => self.be_patient(&sandbox, observed),
            Err(error) => {
                warn!(error = %roost_daemon::telemetry::chain(&error), "cannot observe the sandbox");
                self.pause().await;
                return false;
            }
        };
        let planned = match plan::plan(&sandbox, &observed) {
            Plan::Rest if sandbox.state == State::Destroyed => return true,
            Plan::Rest => {
                self.rest(&sandbox, LOOK_AGAIN).await;
                return false;
            }
            Plan::AwaitDataplane => {
                self.rest(&sandbox, LOOK_FOR_DATAPLANE).await;
                return false;
            }
            Plan::Act(planned) => planned,
        };
        let Context { world, store, settings, .. } = &self.context;
        match step::run(&planned, &sandbox, world.as_ref(), store, settings).await {
            Ok(()) => {
                self.failures = 0;
                info!(step = ?planned.step(), "done");
                self.announce();
            }
            Err(error) => self.react(planned.step(), &sandbox, &error).await,
        }
        false
    }

    /// An edge that keeps coming and going is as little use as one that is away: the time counts from the wish.
    fn be_patient(&mut self, sandbox: &Sandbox, observed: Observed) -> Observed {
        if !is_to_end(sandbox) {
            self.ending_since = None;
            return observed;
        }
        let since = *self.ending_since.get_or_insert_with(Instant::now);
        let edge = if since.elapsed() < EDGE_PATIENCE { observed.edge } else { Attachment::Lost };
        Observed { edge, ..observed }
    }

    fn announce(&self) {
        self.told.send_modify(|count| *count += 1);
        self.context.committed.notify_one();
    }

    /// Waits for a wish, a data-plane process, or the end of the VMM.
    async fn rest(&mut self, sandbox: &Sandbox, look_again: Duration) {
        self.failures = 0;
        let exited = async {
            match &sandbox.execution {
                Some(execution) if execution.phase >= Phase::Launched => {
                    self.context.world.vmm_exited(sandbox, execution).await;
                }
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.poke.notified() => {}
            _ = self.context.dataplane.changed() => {}
            () = exited => {}
            () = tokio::time::sleep(look_again) => {}
        }
    }

    async fn pause(&mut self) {
        self.failures = self.failures.saturating_add(1);
        let backoff = BACKOFF_MIN.saturating_mul(1 << self.failures.min(12)).min(BACKOFF_MAX);
        tokio::select! {
            () = self.poke.notified() => {}
            () = tokio::time::sleep(backoff) => {}
        }
    }

    async fn react(&mut self, step: Step, sandbox: &Sandbox, error: &step::Error) {
        let chain = roost_daemon::telemetry::chain(error);
        match decide_reaction(step, sandbox, error, self.failures + 1) {
            Reaction::TryAgain => {
                warn!(?step, attempt = self.failures + 1, error = %chain, "step failed, trying again");
                self.pause().await;
            }
            Reaction::End(cause) => {
                warn!(?step, error = %chain, ?cause, "step failed for good");
                self.end(sandbox, cause, end_reason(cause, chain)).await;
            }
            Reaction::Fail => {
                warn!(?step, error = %chain, "the sandbox cannot start");
                self.hold(sandbox, State::Failed, Run::Stopped, Cause::StartFailed, chain).await;
            }
            Reaction::KeepRunning => {
                warn!(?step, error = %chain, "the guest's memory could not be saved, it goes on running");
                if let Some(execution) = &sandbox.execution
                    && let Err(error) = self.context.world.resume_in_place(sandbox, execution).await
                {
                    warn!(error = %roost_daemon::telemetry::chain(&error), "the guest cannot be resumed");
                }
                self.hold(sandbox, State::Running, Run::Running, Cause::SnapshotFailed, chain).await;
            }
        }
    }

    async fn end(&mut self, sandbox: &Sandbox, cause: EndCause, reason: String) {
        let Context { world, store, .. } = &self.context;
        let Some(execution) = &sandbox.execution else {
            return;
        };
        match step::begin_end(sandbox, execution, cause, Some(reason), world.as_ref(), store).await {
            Ok(()) => {
                self.failures = 0;
                self.announce();
            }
            Err(error) => {
                error!(error = %roost_daemon::telemetry::chain(&error), "cannot record the failure");
                self.pause().await;
            }
        }
    }

    /// Commits a transition this host makes by itself, which holds until the scheduler says otherwise.
    async fn hold(&mut self, sandbox: &Sandbox, state: State, run: Run, cause: Cause, reason: String) {
        let mut standing = sandbox.standing;
        // Refused when that is what is wanted anyway.
        let _ = standing.transition(run, cause);
        let (id, now_us) = (sandbox.id, self.context.world.now_us());
        let reason = format!("{cause}: {reason}");
        let committed = self.context.store.write(move |tx| {
            store::sandbox::record_state(tx, id, state, Some(&reason), now_us)?;
            store::sandbox::record_standing(tx, id, &standing)?;
            step::report(tx, &id)
        });
        match committed.await {
            Ok(()) => {
                self.failures = 0;
                self.announce();
            }
            Err(error) => {
                error!(error = %roost_daemon::telemetry::chain(&error), "cannot record the failure");
                self.pause().await;
            }
        }
    }
}

/// What a failed step leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    TryAgain,
    /// Take the execution down for this cause.
    End(EndCause),
    /// There is no execution yet: the sandbox rests as failed.
    Fail,
    /// A pause failed: the guest goes on, nothing is lost.
    KeepRunning,
}

/// There is an execution that is to be paused or stopped and is not being taken down yet: from then on what edge
/// holds counts, however long it took to get there.
fn is_to_end(sandbox: &Sandbox) -> bool {
    let is_up = sandbox.execution.as_ref().is_some_and(|execution| execution.phase < Phase::Ending);
    is_up && matches!(sandbox.target(), Run::Paused | Run::Stopped)
}

/// What people read about an end that a failed step led to.
pub(super) fn end_reason(cause: EndCause, chain: String) -> String {
    match cause {
        EndCause::Stopped => NOT_FLUSHED.to_owned(),
        _ => chain,
    }
}

/// Pure: the reaction to the `attempt`-th failure in a row of `step`.
pub fn decide_reaction(step: Step, sandbox: &Sandbox, error: &step::Error, attempt: u32) -> Reaction {
    let permanent = matches!(error, step::Error::World(world::Error::Permanent { .. }));
    let refused = matches!(error, step::Error::World(world::Error::SnapshotRefused { .. }));
    let given_up = permanent || refused || attempt >= START_ATTEMPTS;
    match step {
        _ if refused => Reaction::End(EndCause::RestoreFailed),
        Step::BeginExecution if given_up => Reaction::Fail,
        Step::EnsureDisk | Step::EnsureNetwork | Step::Launch | Step::Attach | Step::Start if given_up => {
            let restoring = sandbox.execution.as_ref().is_some_and(|execution| execution.restore.is_some());
            Reaction::End(if restoring { EndCause::RestoreFailed } else { EndCause::StartFailed })
        }
        Step::Save if given_up => Reaction::KeepRunning,
        // A guest that does not flush is stopped all the same: it was asked to.
        Step::Quiesce if given_up => Reaction::End(EndCause::Stopped),
        // Taking down never gives up: what is left would be nobody's.
        _ => Reaction::TryAgain,
    }
}
