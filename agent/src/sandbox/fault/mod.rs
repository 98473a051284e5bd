//! Step faults: every step of every flow is repeated, failed, and cut between host effect and commit.
//!
//! Goal: whatever happens to whichever step, the sandbox ends where it was wanted (or rests with a reason), no host
//! object outlives its execution, and never more than one VM of it exists. Method: the real planner, steps and
//! store run against a host kept in memory; a cut is an effect that happened and a call that failed, since the
//! actor keeps nothing that a crash could lose.

mod host;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use roost_domain::desired::{Desired, Offer, Run};
use roost_domain::id::SandboxId;
use roost_domain::lifecycle::State;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use self::host::{Fault, MemoryHost, refuse};
use super::actor::{self, NOT_FLUSHED, Reaction, decide_reaction, end_reason};
use super::plan::{self, Attachment, Plan, Step};
use super::record::{self, EndCause, Origin, Sandbox, Spec};
use super::step;
use super::world::{Error, World};
use crate::store::{self, Store};

const TURNS_MAX: usize = 200;

struct Rig {
    world: Arc<MemoryHost>,
    store: Store,
    id: SandboxId,
    generation: u64,
    origin: Origin,
}

impl Rig {
    fn new() -> Self {
        let world = Arc::new(MemoryHost::default());
        world.with(|host| host.now_us = 1_800_000_000_000_000);
        Self {
            world,
            store: Store::in_memory(),
            id: roost_daemon::ids::fresh(),
            generation: 0,
            origin: Origin::Tenant,
        }
    }

    async fn want(&mut self, run: Run) {
        self.generation += 1;
        let desired = Desired { run, generation: self.generation, placement_epoch: 1 };
        let draft = store::sandbox::Draft {
            id: self.id,
            origin: self.origin,
            spec: Spec {
                template: "t".into(),
                vcpus: 1,
                memory_mib: 256,
                disk_mib: 64,
                host_name: "h".into(),
                environment: Default::default(),
            },
            lineage: self.id,
            offer: Offer { desired, adopted_seq: 0 },
            now_us: self.world.now_us(),
        };
        let id = self.id;
        self.store
            .write(move |tx| {
                store::sandbox::ensure(tx, &draft)?;
                store::sandbox::receive(tx, id, draft.offer)?;
                Ok(())
            })
            .await
            .unwrap();
    }

    async fn sandbox(&self) -> Sandbox {
        let id = self.id;
        self.store.write(move |tx| store::sandbox::get(tx, id)).await.unwrap()
    }

    /// Runs the loop until nothing is left to do, as the actor would; panics if it never settles.
    async fn settle(&self) -> Sandbox {
        let settings = step::Settings { vmm_uids: (100, 110) };
        let mut failures = 0;
        for _ in 0..TURNS_MAX {
            let sandbox = self.sandbox().await;
            let observed = self.world.observe(&sandbox).await.unwrap();
            let planned = match plan::plan(&sandbox, &observed) {
                Plan::Act(planned) => planned,
                Plan::Rest | Plan::AwaitDataplane => return sandbox,
            };
            match step::run(&planned, &sandbox, self.world.as_ref(), &self.store, &settings).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    self.react(planned.step(), &sandbox, &error, failures).await;
                }
            }
            let after = self.sandbox().await;
            assert!(
                sandbox.state.may_become(after.state),
                "{} became {} by {:?}",
                sandbox.state,
                after.state,
                planned.step()
            );
        }
        panic!("not settled after {TURNS_MAX} turns: {:?}", self.sandbox().await);
    }

    async fn react(&self, step: Step, sandbox: &Sandbox, error: &step::Error, failures: u32) {
        match decide_reaction(step, sandbox, error, failures) {
            Reaction::TryAgain => {}
            Reaction::End(cause) => {
                let execution = sandbox.execution.as_ref().unwrap();
                let reason = Some(end_reason(cause, "planned".into()));
                step::begin_end(sandbox, execution, cause, reason, self.world.as_ref(), &self.store)
                    .await
                    .unwrap();
            }
            other => panic!("one fault must not lead to {other:?} at {step:?}"),
        }
    }

    /// What must hold whenever a sandbox rests.
    async fn check_rest(&self, wanted: State) {
        let sandbox = self.sandbox().await;
        assert_eq!(sandbox.state, wanted, "{:?}", sandbox.state_reason);
        self.world.with(|host| {
            assert!(host.vms_most <= 1, "two VMs of one sandbox");
            let current: BTreeSet<_> = sandbox.execution.iter().map(|execution| execution.id).collect();
            assert_eq!(host.vms, current);
            assert_eq!(host.networks, current);
            assert_eq!(host.egress, current);
            assert_eq!(host.edge, current);
            let snapshots: BTreeSet<_> = sandbox.snapshot.into_iter().collect();
            assert!(host.snapshots.is_superset(&snapshots), "the snapshot the row names is not there");
            if wanted == State::Stopped {
                assert!(host.snapshots.is_empty(), "memory of a sandbox that has none");
            }
            if wanted == State::Destroyed {
                assert!(host.disks.is_empty() && host.snapshots.is_empty());
            }
        });
    }
}

/// The flow every fault is tried on: each wish with the state it must end in.
const FLOW: [(Run, State); 9] = [
    (Run::Running, State::Running),
    (Run::Paused, State::Paused),
    (Run::Running, State::Running),
    (Run::Stopped, State::Stopped),
    (Run::Running, State::Running),
    (Run::Paused, State::Paused),
    (Run::Stopped, State::Stopped),
    (Run::Running, State::Running),
    (Run::Destroyed, State::Destroyed),
];

#[tokio::test]
async fn every_step_of_the_flow_survives_every_fault() {
    let mut rig = Rig::new();
    for (run, state) in FLOW {
        rig.want(run).await;
        rig.settle().await;
        rig.check_rest(state).await;
    }
    let effects = rig.world.with(|host| host.effects.clone());
    for needed in
        ["launch", "attach", "start", "save", "quiesce", "kill_vmm", "detach", "remove_disk", "remove_memory"]
    {
        assert!(effects.contains(&needed), "the flow never comes to {needed}");
    }
    for fault in [Fault::Fail, Fault::Cut, Fault::Repeat] {
        for index in 0..effects.len() {
            let mut rig = Rig::new();
            rig.world.with(|host| host.fault = Some((index, fault)));
            for (run, state) in FLOW {
                rig.want(run).await;
                rig.settle().await;
                rig.check_rest(state).await;
            }
            assert!(rig.world.with(|host| host.fault.is_none()), "{fault:?} at {index} was never met");
        }
    }
}

#[tokio::test]
async fn a_guest_that_powers_off_rests_stopped_until_somebody_asks() {
    let mut rig = Rig::new();
    rig.want(Run::Running).await;
    let execution = rig.settle().await.execution.unwrap().id;
    rig.world.with(|host| host.exited.insert(execution));
    let sandbox = rig.settle().await;
    rig.check_rest(State::Stopped).await;
    assert_eq!(sandbox.state_reason.as_deref(), Some("guest_exited"));
    assert_eq!(sandbox.target(), Run::Stopped);
    rig.want(Run::Running).await;
    rig.settle().await;
    rig.check_rest(State::Running).await;
}

/// Edge being replaced is no reason to lose what a guest has not written out yet.
#[tokio::test]
async fn a_stop_waits_for_edge_so_that_the_guest_is_flushed() {
    for (run, state) in [(Run::Stopped, State::Stopped), (Run::Paused, State::Paused)] {
        for away in [Attachment::Unknown, Attachment::Missing] {
            let mut rig = Rig::new();
            rig.want(Run::Running).await;
            let execution = rig.settle().await.execution.unwrap().id;
            rig.want(run).await;
            match away {
                Attachment::Missing => rig.world.with(|host| assert!(host.edge.remove(&execution))),
                away => {
                    rig.world.with(|host| host.edge_away = Some(away));
                    assert_eq!(rig.settle().await.state, State::Running, "it waits");
                    rig.world.with(|host| host.edge_away = None);
                }
            }
            let sandbox = rig.settle().await;
            rig.check_rest(state).await;
            assert_eq!(sandbox.state_reason, None);
            let flush = if run == Run::Paused { "save" } else { "quiesce" };
            assert!(rig.world.with(|host| host.effects.contains(&flush)), "{run:?} {away:?}");
        }
    }
}

#[tokio::test]
async fn a_stop_without_edge_for_long_goes_on_and_says_so() {
    let mut rig = Rig::new();
    rig.want(Run::Running).await;
    rig.settle().await;
    rig.world.with(|host| host.edge_away = Some(Attachment::Lost));
    assert_eq!(rig.settle().await.state, State::Running, "a running one needs nobody's patience");
    rig.want(Run::Stopped).await;
    let sandbox = rig.settle().await;
    assert_eq!((sandbox.state, sandbox.state_reason.as_deref()), (State::Stopped, Some(NOT_FLUSHED)));
    rig.world.with(|host| host.edge_away = None);
    rig.want(Run::Running).await;
    assert_eq!(rig.settle().await.state_reason.as_deref(), Some(NOT_FLUSHED), "it explains what is missing");
    rig.want(Run::Stopped).await;
    assert_eq!(rig.settle().await.state_reason, None, "the next stop is told anew");
}

/// Each time it is there for a moment, which is no reason to begin to wait anew.
#[tokio::test(start_paused = true)]
async fn an_edge_that_keeps_dying_keeps_no_sandbox_running() {
    let (_sender, dataplane) = watch::channel(0);
    for (run, state) in [(Run::Stopped, State::Stopped), (Run::Paused, State::Paused)] {
        let mut rig = Rig::new();
        rig.want(Run::Running).await;
        rig.settle().await;
        rig.world.with(|host| {
            host.edge_dies = true;
            host.egress.clear();
        });
        rig.want(run).await;
        let context = actor::Context {
            world: rig.world.clone(),
            store: rig.store.clone(),
            settings: step::Settings { vmm_uids: (100, 110) },
            dataplane: dataplane.clone(),
            committed: Arc::new(Notify::new()),
        };
        let begun = Instant::now();
        let mut handle = actor::start(rig.id, context, || ());
        while rig.sandbox().await.state != state {
            timeout(Duration::from_secs(300), handle.commits.changed()).await.expect("an end").unwrap();
        }
        let took = begun.elapsed();
        assert!((30..90).contains(&took.as_secs()), "{run:?} after {took:?}");
        rig.world.with(|host| assert!(host.edge.is_empty(), "back again, it still holds what is gone"));
    }
}

#[tokio::test]
async fn a_stop_of_a_start_that_edge_never_comes_to_goes_on() {
    let mut rig = Rig::new();
    rig.world.with(|host| host.edge_away = Some(Attachment::Unknown));
    rig.want(Run::Running).await;
    assert_eq!(rig.settle().await.state, State::Creating);
    rig.want(Run::Stopped).await;
    assert_eq!(rig.settle().await.state, State::Creating, "it is waited for");
    rig.world.with(|host| host.edge_away = Some(Attachment::Lost));
    rig.settle().await;
    rig.check_rest(State::Stopped).await;
}

#[tokio::test]
async fn a_lost_memory_snapshot_boots_from_disk_and_says_so() {
    let mut rig = Rig::new();
    rig.want(Run::Running).await;
    rig.settle().await;
    rig.want(Run::Paused).await;
    rig.settle().await;
    rig.world.with(|host| host.snapshots.clear());
    rig.want(Run::Running).await;
    let sandbox = rig.settle().await;
    rig.check_rest(State::Running).await;
    assert_eq!(sandbox.state_reason.as_deref(), Some("memory_snapshot_incompatible"));
    assert_eq!(sandbox.boot_path, Some(record::BootPath::Cold));
}

#[tokio::test]
async fn a_restarted_host_starts_its_sandboxes_again_from_disk() {
    let mut rig = Rig::new();
    rig.want(Run::Running).await;
    let before = rig.settle().await.execution.unwrap().id;
    rig.world.with(|host| {
        host.boot += 1;
        host.vms.clear();
        host.networks.clear();
        host.egress.clear();
        host.edge.clear();
    });
    let sandbox = rig.settle().await;
    rig.check_rest(State::Running).await;
    assert_ne!(sandbox.execution.unwrap().id, before, "an execution is never reused");
    assert_eq!(sandbox.state_reason.as_deref(), Some("host_restarted"));
}

#[tokio::test]
async fn a_step_refused_for_good_ends_the_start_and_a_failed_pause_keeps_the_guest() {
    let mut rig = Rig::new();
    rig.want(Run::Running).await;
    let wanted = rig.sandbox().await;
    rig.want(Run::Stopped).await;
    let unwanted = rig.sandbox().await;
    let permanent = step::Error::World(refuse("no"));
    let transient = step::Error::World(Error::Transient { what: "busy", source: "busy".into() });
    for (sandbox, step, error, attempt, expected) in [
        (&wanted, Step::Launch, &permanent, 1, Reaction::End(EndCause::StartFailed)),
        (&wanted, Step::Launch, &transient, 1, Reaction::TryAgain),
        (&wanted, Step::Launch, &transient, 3, Reaction::End(EndCause::StartFailed)),
        (&wanted, Step::BeginExecution, &permanent, 1, Reaction::Fail),
        (&wanted, Step::Save, &permanent, 1, Reaction::KeepRunning),
        (&wanted, Step::Reattach, &transient, 99, Reaction::TryAgain),
        (&unwanted, Step::Quiesce, &transient, 1, Reaction::TryAgain),
        (&unwanted, Step::Quiesce, &transient, 3, Reaction::End(EndCause::Stopped)),
        (&unwanted, Step::Quiesce, &permanent, 1, Reaction::End(EndCause::Stopped)),
        (&wanted, Step::KillVmm, &permanent, 99, Reaction::TryAgain),
        (&wanted, Step::RemoveHostObjects, &permanent, 99, Reaction::TryAgain),
    ] {
        assert_eq!(decide_reaction(step, sandbox, error, attempt), expected, "{step:?} attempt {attempt}");
    }
}

#[tokio::test]
async fn the_scheduler_hears_of_an_execution_before_anything_in_its_name() {
    use roost_proto::host::outbox_row::Row;
    let mut rig = Rig::new();
    for (run, _) in FLOW {
        rig.want(run).await;
        rig.settle().await;
        rig.world.with(|host| host.now_us += 5_000_000);
    }
    let rows = rig.store.write(store::outbox::list_batch).await.unwrap();
    let (mut known, mut ended, mut billed_us) = (BTreeSet::new(), BTreeSet::new(), 0);
    for row in rows {
        match row.row.unwrap() {
            Row::Execution(row) => {
                known.insert(row.execution.clone());
                if row.ended_us > 0 {
                    ended.insert(row.execution);
                }
            }
            Row::Usage(delta) => {
                assert!(known.contains(&delta.execution), "usage of an execution nobody heard of");
                billed_us += delta.wall_us;
            }
            Row::Status(status) if !status.execution.is_empty() => assert!(known.contains(&status.execution)),
            Row::Status(_) | Row::Operator(_) => {}
        }
    }
    assert_eq!((known.len(), ended.len()), (4, 4));
    // Four times five seconds of running, and a little for the steps.
    assert!((20_000_000..20_100_000).contains(&billed_us), "{billed_us}");
}

/// The agent that dies between the end of a VMM and the last reading is the only one who knew when that was.
#[tokio::test]
async fn what_ran_is_metered_whoever_dies_at_its_end() {
    for run in [Run::Paused, Run::Stopped, Run::Destroyed] {
        let mut rig = Rig::new();
        rig.want(Run::Running).await;
        rig.settle().await;
        rig.world.with(|host| host.now_us += 5_000_000);
        rig.want(run).await;
        let kill = if run == Run::Destroyed { 0 } else { 1 };
        rig.world.with(|host| host.fault = Some((kill, Fault::Cut)));
        rig.settle().await;
        let effects = rig.world.with(|host| host.effects.clone());
        assert_eq!(effects.iter().filter(|effect| **effect == "kill_vmm").count(), 1, "{effects:?}");
        assert!(rig.world.with(|host| host.fault.is_none() && host.ends.is_empty()), "the cut was elsewhere");
        let used = rig.store.write(|tx| store::usage::sum_by_sandbox(tx, None, "", 9)).await.unwrap();
        assert!((5_000_000..5_100_000).contains(&used[0].wall_us), "{run:?}: {} µs", used[0].wall_us);
    }
}

#[tokio::test]
async fn a_local_sandbox_is_never_reported() {
    let mut rig = Rig::new();
    rig.origin = Origin::Local;
    for (run, _) in FLOW {
        rig.want(run).await;
        rig.settle().await;
        rig.world.with(|host| host.now_us += 5_000_000);
    }
    assert_eq!(rig.store.write(store::outbox::count).await.unwrap(), 0);
    let used = rig.store.write(|tx| store::usage::sum_by_sandbox(tx, None, "", 9)).await.unwrap();
    assert!(used[0].wall_us > 0, "the operator still sees what it used");
}
