//! Step faults: every step of every flow is repeated, failed, and cut between host effect and commit.
//!
//! Goal: whatever happens to whichever step, the sandbox ends where it was wanted (or rests with a reason), no host
//! object outlives its execution, and never more than one VM of it exists. Method: the real planner, steps and
//! store run against a host kept in memory; a cut is an effect that happened and a call that failed, since the
//! actor keeps nothing that a crash could lose.

use std::collections::BTreeSet;
use std::sync::Mutex;

use async_trait::async_trait;
use roost_domain::desired::{Desired, Offer, Run};
use roost_domain::id::{ExecutionId, SandboxId, SnapshotId};
use roost_domain::lifecycle::State;
use roost_domain::usage::Reading;

use super::actor::{Reaction, decide_reaction};
use super::plan::{self, Attachment, Observed, Plan, Step, Vmm};
use super::record::{EndCause, Execution, GuestToken, Origin, Sandbox, Spec};
use super::step;
use super::world::{Error, World};
use crate::host::process::VmmProcess;
use crate::store::{self, Store};

/// What happens to one host effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It fails before it did anything.
    Fail,
    /// It happens, and the agent dies before the commit.
    Cut,
    /// It happens twice.
    Repeat,
}

/// A host in memory.
#[derive(Debug, Default)]
struct Objects {
    now_us: i64,
    boot: u32,
    disks: BTreeSet<SandboxId>,
    networks: BTreeSet<ExecutionId>,
    vms: BTreeSet<ExecutionId>,
    ran: BTreeSet<ExecutionId>,
    exited: BTreeSet<ExecutionId>,
    egress: BTreeSet<ExecutionId>,
    edge: BTreeSet<ExecutionId>,
    snapshots: BTreeSet<SnapshotId>,
    guest: Option<(GuestToken, u64)>,
    vms_most: usize,
    effects: Vec<&'static str>,
    /// The n-th effect from now on meets the fault.
    fault: Option<(usize, Fault)>,
}

#[derive(Debug, Default)]
struct MemoryHost(Mutex<Objects>);

impl MemoryHost {
    fn with<T>(&self, look: impl FnOnce(&mut Objects) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    /// Carries out an effect under the planned fault.
    fn effect(
        &self,
        name: &'static str,
        act: impl Fn(&mut Objects) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.with(|host| {
            host.now_us += 1000;
            host.effects.push(name);
            let fault = match &mut host.fault {
                Some((0, fault)) => Some(*fault),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            };
            if fault.is_some() {
                host.fault = None;
            }
            let broken = || Error::Transient { what: "planned fault", source: "planned".into() };
            match fault {
                None => act(host)?,
                Some(Fault::Fail) => return Err(broken()),
                Some(Fault::Repeat) => {
                    act(host)?;
                    act(host)?;
                }
                Some(Fault::Cut) => {
                    act(host)?;
                    return Err(broken());
                }
            }
            host.vms_most = host.vms_most.max(host.vms.len());
            Ok(())
        })
    }
}

fn refuse(reason: &'static str) -> Error {
    Error::Permanent { what: "the memory host refuses", source: reason.into() }
}

#[async_trait]
impl World for MemoryHost {
    fn now_us(&self) -> i64 {
        self.with(|host| host.now_us)
    }

    fn boot_id(&self) -> String {
        self.with(|host| host.boot.to_string())
    }

    async fn find_image(&self, _: &str) -> Result<String, Error> {
        Ok("sha256:0".to_owned())
    }

    async fn observe(&self, sandbox: &Sandbox) -> Result<Observed, Error> {
        let Some(execution) = &sandbox.execution else {
            return Ok(Observed::default());
        };
        let id = execution.id;
        let held = |set: &BTreeSet<ExecutionId>| match set.contains(&id) {
            true => Attachment::Held,
            false => Attachment::Missing,
        };
        Ok(self.with(|host| Observed {
            vmm: match (host.vms.contains(&id), host.exited.contains(&id)) {
                (true, true) => Vmm::GuestExited,
                (true, false) => Vmm::Alive,
                _ => Vmm::Absent,
            },
            host_restarted: host.boot.to_string() != execution.boot_id,
            egress: held(&host.egress),
            edge: held(&host.edge),
            leftovers: host.networks.contains(&id),
        }))
    }

    async fn vmm_exited(&self, _: &Sandbox, _: &Execution) {}

    async fn ensure_disk(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let id = sandbox.id;
        self.effect("ensure_disk", |host| {
            host.disks.insert(id);
            Ok(())
        })
    }

    async fn ensure_network(&self, execution: &Execution) -> Result<(), Error> {
        let id = execution.id;
        self.effect("ensure_network", |host| {
            host.networks.insert(id);
            Ok(())
        })
    }

    async fn launch(&self, sandbox: &Sandbox, execution: &Execution) -> Result<VmmProcess, Error> {
        let (id, sandbox, restore) = (execution.id, sandbox.id, execution.restore);
        self.effect("launch", |host| {
            if !host.disks.contains(&sandbox) || !host.networks.contains(&id) {
                return Err(refuse("launched without disk or network"));
            }
            if restore.is_some_and(|snapshot| !host.snapshots.contains(&snapshot)) {
                return Err(Error::SnapshotRefused { source: "no such snapshot".into() });
            }
            if restore.is_none() {
                host.guest = None;
            }
            host.vms.insert(id);
            Ok(())
        })?;
        Ok(VmmProcess { pid: 4711, start_time: 1 })
    }

    async fn attach(&self, _: &Sandbox, execution: &Execution) -> Result<(), Error> {
        let id = execution.id;
        self.effect("attach", |host| {
            host.egress.insert(id);
            host.edge.insert(id);
            Ok(())
        })
    }

    async fn start(&self, _: &Sandbox, execution: &Execution) -> Result<i64, Error> {
        let execution = execution.clone();
        self.effect("start", move |host| {
            if !host.egress.contains(&execution.id) || !host.edge.contains(&execution.id) {
                return Err(refuse("a guest ran before its sockets were held"));
            }
            let wanted = (execution.token.clone(), execution.epoch);
            match (&host.guest, &execution.old_token) {
                // The identical repeat answers ok.
                (Some(guest), _) if *guest == wanted => {}
                (None, None) => {}
                (Some((token, epoch)), Some(old)) if token == old && *epoch < execution.epoch => {}
                _ => return Err(refuse("the guest knows another token or a later epoch")),
            }
            host.guest = Some(wanted);
            host.ran.insert(execution.id);
            Ok(())
        })?;
        Ok(1000)
    }

    async fn quiesce(&self, _: &Execution) -> Result<(), Error> {
        self.effect("quiesce", |_| Ok(()))
    }

    async fn save(&self, _: &Sandbox, execution: &Execution) -> Result<(), Error> {
        let snapshot = SnapshotId::from_ulid(execution.id.ulid());
        self.effect("save", |host| {
            host.snapshots.insert(snapshot);
            Ok(())
        })
    }

    async fn resume_in_place(&self, _: &Sandbox, _: &Execution) -> Result<(), Error> {
        self.effect("resume_in_place", |_| Ok(()))
    }

    async fn kill_vmm(&self, _: &Sandbox, execution: &Execution) -> Result<(), Error> {
        let id = execution.id;
        self.effect("kill_vmm", |host| {
            host.vms.remove(&id);
            Ok(())
        })
    }

    async fn detach(&self, execution: &Execution) -> Result<(), Error> {
        let id = execution.id;
        self.effect("detach", |host| {
            host.egress.remove(&id);
            host.edge.remove(&id);
            Ok(())
        })
    }

    async fn remove_host_objects(&self, execution: &Execution) -> Result<(), Error> {
        let id = execution.id;
        self.effect("remove_host_objects", |host| {
            if host.vms.contains(&id) {
                return Err(refuse("took the network from under a VM"));
            }
            host.networks.remove(&id);
            Ok(())
        })
    }

    async fn remove_disk(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let id = sandbox.id;
        self.effect("remove_disk", |host| {
            host.disks.remove(&id);
            host.snapshots.clear();
            Ok(())
        })
    }

    async fn remove_memory(&self, _: &Sandbox) -> Result<(), Error> {
        self.effect("remove_memory", |host| {
            host.snapshots.clear();
            Ok(())
        })
    }

    async fn remove_spent_snapshots(&self, sandbox: &Sandbox, _: &Execution) -> Result<(), Error> {
        let keep = sandbox.snapshot;
        self.effect("remove_spent_snapshots", |host| {
            host.snapshots.retain(|snapshot| Some(*snapshot) == keep);
            Ok(())
        })
    }

    async fn read_usage(&self, _: &Sandbox, _: &Execution) -> Result<Option<Reading>, Error> {
        let reading = |host: &mut Objects| Reading {
            at_us: host.now_us,
            boottime_us: host.now_us,
            ..Reading::default()
        };
        Ok(Some(self.with(reading)))
    }
}

const TURNS_MAX: usize = 200;

struct Rig {
    world: MemoryHost,
    store: Store,
    id: SandboxId,
    generation: u64,
    origin: Origin,
}

impl Rig {
    fn new() -> Self {
        let world = MemoryHost::default();
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
            match step::run(&planned, &sandbox, &self.world, &self.store, &settings).await {
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
                step::begin_end(sandbox, execution, cause, Some("planned".into()), &self.world, &self.store)
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
    assert_eq!(sandbox.boot_path, Some(super::record::BootPath::Cold));
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
    let sandbox = rig.sandbox().await;
    let permanent = step::Error::World(refuse("no"));
    let transient = step::Error::World(Error::Transient { what: "busy", source: "busy".into() });
    for (step, error, attempt, wanted) in [
        (Step::Launch, &permanent, 1, Reaction::End(EndCause::StartFailed)),
        (Step::Launch, &transient, 1, Reaction::TryAgain),
        (Step::Launch, &transient, 3, Reaction::End(EndCause::StartFailed)),
        (Step::BeginExecution, &permanent, 1, Reaction::Fail),
        (Step::Save, &permanent, 1, Reaction::KeepRunning),
        (Step::Quiesce, &transient, 1, Reaction::End(EndCause::Stopped)),
        (Step::KillVmm, &permanent, 99, Reaction::TryAgain),
        (Step::RemoveHostObjects, &permanent, 99, Reaction::TryAgain),
    ] {
        assert_eq!(decide_reaction(step, &sandbox, error, attempt), wanted, "{step:?} attempt {attempt}");
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
    let used = rig.store.write(|tx| store::usage::sum_by_sandbox(tx, None)).await.unwrap();
    assert!(used[0].wall_us > 0, "the operator still sees what it used");
}
