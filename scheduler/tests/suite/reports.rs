//! What hosts report: adopted when newer and theirs, ignored otherwise, acknowledged after the commit.

use std::time::Duration;

use roost_daemon::clock::Clock as _;
use roost_daemon::ids::fresh;
use roost_domain::id::ExecutionId;
use roost_proto::host as proto;
use roost_proto::host::fleet_client::FleetClient;
use roost_scheduler::store::quota::{self, Amount};
use roost_scheduler::store::sandbox::{self, Sandbox};
use roost_scheduler::store::{audit_log, event, execution, host};
use roost_scheduler::usage::{self, Grouping};
use tonic::transport::Channel;

use crate::rows;
use crate::world::{Host, World, info};

struct Scene {
    world: World,
    host: Host,
    client: FleetClient<Channel>,
    sandbox: Sandbox,
    execution: String,
    seq: u64,
}

impl Scene {
    /// A sandbox that was just placed on a host, counted and reserved as `app` does it.
    async fn new() -> Scene {
        let world = World::start().await;
        let host = world.join().await;
        let owner = rows::owner(&world.store).await;
        let mut row = rows::sandbox(&owner);
        row.host_id = Some(host.id.clone());
        row.external_user_id = Some("user_42".into());
        (row.memory_reserved_mib, row.disk_reserved_mib) = (row.memory_mib, row.disk_mib);
        let (placed, id) = (row.clone(), host.id.clone());
        let made = world.store.write(move |tx| {
            for subject in quota::subjects(&placed) {
                assert!(quota::reserve(tx, &subject, Amount::resting(&placed))?);
                assert!(quota::reserve(tx, &subject, Amount::running(&placed))?);
            }
            assert!(host::reserve(tx, &id, placed.memory_mib, placed.disk_mib)?);
            sandbox::insert(tx, &placed)
        });
        assert!(made.await.unwrap());
        let client = FleetClient::new(world.channel(Some(&host.agent)).await);
        Scene { world, host, client, sandbox: row, execution: fresh::<ExecutionId>().to_string(), seq: 0 }
    }

    fn status(&self, state: proto::State, generation: u64, changed_us: i64) -> proto::SandboxStatus {
        proto::SandboxStatus {
            sandbox: self.sandbox.id.clone(),
            state: state.into(),
            generation,
            placement_epoch: 1,
            execution: self.execution.clone(),
            changed_us: self.now_us() + changed_us,
            ..Default::default()
        }
    }

    fn local(&self, run: proto::Run, state: proto::State, base: u64, seq: u64) -> proto::SandboxStatus {
        proto::SandboxStatus {
            local_seq: seq,
            local_cause: "idle".into(),
            local_base_generation: base,
            local_run: run.into(),
            ..self.status(state, base, i64::try_from(seq).unwrap())
        }
    }

    fn now_us(&self) -> i64 {
        self.world.clock.now_us()
    }

    async fn upload(&mut self, rows: Vec<proto::outbox_row::Row>) -> u64 {
        let number = |(at, row)| proto::OutboxRow { seq: self.seq + at as u64 + 1, row: Some(row) };
        let rows: Vec<proto::OutboxRow> = rows.into_iter().enumerate().map(number).collect();
        self.seq += rows.len() as u64;
        let request = proto::UploadRequest { host_id: self.host.id.clone(), rows };
        let acked = self.client.upload(request).await.unwrap().into_inner().acked_seq;
        assert_eq!(acked, self.seq, "everything is acknowledged, adopted or not");
        acked
    }

    async fn report(&mut self, status: proto::SandboxStatus) {
        self.upload(vec![proto::outbox_row::Row::Status(status)]).await;
    }

    async fn row(&self) -> Sandbox {
        let id = self.sandbox.id.clone();
        self.world.store.read(move |tx| sandbox::find_any(tx, &id)).await.unwrap().unwrap()
    }

    async fn reserved(&self) -> (u64, u64) {
        let id = self.host.id.clone();
        let host = self.world.store.read(move |tx| host::find(tx, &id)).await.unwrap().unwrap();
        (host.memory_reserved_mib, host.disk_reserved_mib)
    }

    async fn used(&self) -> (i64, i64) {
        let subjects = quota::subjects(&self.sandbox);
        assert_eq!(subjects.len(), 4);
        let mut all = Vec::new();
        for subject in subjects {
            let used = self.world.store.read(move |tx| quota::find_use(tx, &subject)).await.unwrap().unwrap();
            all.push((used.sandboxes, used.concurrent));
        }
        assert!(all.iter().all(|used| *used == all[0]), "every subject counts the same: {all:?}");
        all[0]
    }

    async fn events(&self) -> Vec<String> {
        let (tenant, id) = (self.sandbox.tenant_id.clone(), self.sandbox.id.clone());
        let rows = self.world.store.read(move |tx| event::list_after(tx, &tenant, Some(&id), (0, ""), 100));
        rows.await.unwrap().into_iter().map(|event| event.kind).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_reports_are_adopted_and_older_ones_ignored() {
    let mut scene = Scene::new().await;
    let mut changes = scene.world.fleet.changes();
    changes.mark_unchanged();
    scene.report(scene.status(proto::State::Running, 1, 5)).await;
    tokio::time::timeout(Duration::from_secs(5), changes.changed()).await.unwrap().unwrap();
    scene.report(scene.status(proto::State::Creating, 1, 1)).await;
    let row = scene.row().await;
    assert_eq!((row.state.as_str(), row.observed_generation), ("running", 1));
    assert_eq!(row.execution_id.as_ref(), Some(&scene.execution));
    assert_eq!((row.started_us, row.ready_us), (Some(row.changed_us), Some(row.changed_us)));
    assert_eq!(scene.events().await, ["sandbox.running"], "once, however often it is told");
    scene.report(scene.status(proto::State::Running, 1, 5)).await;
    assert_eq!(scene.events().await, ["sandbox.running"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_pause_becomes_what_is_wanted_and_frees_memory_and_quota() {
    let mut scene = Scene::new().await;
    scene.report(scene.status(proto::State::Running, 1, 1)).await;
    let whole = (scene.sandbox.memory_mib, scene.sandbox.disk_mib);
    assert_eq!((scene.reserved().await, scene.used().await), (whole, (1, 1)));
    scene.report(scene.local(proto::Run::Paused, proto::State::Pausing, 1, 2)).await;
    let row = scene.row().await;
    assert_eq!((row.desired_run.as_str(), row.generation, row.adopted_seq), ("paused", 2, 2));
    assert_eq!(scene.used().await, (1, 0));
    scene.report(scene.local(proto::Run::Paused, proto::State::Paused, 1, 2)).await;
    scene.report(scene.status(proto::State::Paused, 2, 9)).await;
    let row = scene.row().await;
    assert_eq!((row.state.as_str(), row.generation, row.execution_id), ("paused", 2, None));
    assert_eq!(scene.reserved().await, (0, scene.sandbox.disk_mib));
    // It wakes by itself: the host decided, so it is counted whether it fits or not.
    let woken = proto::SandboxStatus {
        changed_us: scene.now_us() + 20,
        ..scene.local(proto::Run::Running, proto::State::Running, 2, 3)
    };
    scene.report(woken).await;
    assert_eq!((scene.reserved().await, scene.used().await), (whole, (1, 1)));
    assert_eq!(scene.events().await, ["sandbox.running", "sandbox.paused", "sandbox.resumed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_raced_with_a_local_transition_wins() {
    let mut scene = Scene::new().await;
    scene.report(scene.status(proto::State::Running, 1, 1)).await;
    let (id, now_us) = (scene.sandbox.id.clone(), scene.now_us());
    scene.world.store.write(move |tx| sandbox::set_desired(tx, &id, "stopped", now_us)).await.unwrap();
    scene.report(scene.local(proto::Run::Paused, proto::State::Paused, 1, 1)).await;
    let row = scene.row().await;
    assert_eq!((row.desired_run.as_str(), row.generation, row.adopted_seq), ("stopped", 2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn destroyed_is_the_end_and_frees_everything() {
    let mut scene = Scene::new().await;
    scene.report(scene.status(proto::State::Running, 1, 1)).await;
    let (id, now_us) = (scene.sandbox.id.clone(), scene.now_us());
    scene.world.store.write(move |tx| sandbox::set_desired(tx, &id, "destroyed", now_us)).await.unwrap();
    scene.report(scene.status(proto::State::Destroyed, 2, 2)).await;
    scene.report(scene.status(proto::State::Running, 3, 3)).await;
    let row = scene.row().await;
    assert_eq!((row.state.as_str(), row.destroyed_us.is_some()), ("destroyed", true));
    assert_eq!(scene.reserved().await, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_hosts_reports_and_deltas_count_for_nothing() {
    let mut scene = Scene::new().await;
    scene.report(scene.status(proto::State::Running, 1, 1)).await;
    let started = proto::ExecutionRow {
        execution: scene.execution.clone(),
        sandbox: scene.sandbox.id.clone(),
        placement_epoch: 1,
        started_us: scene.now_us(),
        ..Default::default()
    };
    let other = scene.world.join().await;
    let mut thief = FleetClient::new(scene.world.channel(Some(&other.agent)).await);
    let rows = [
        proto::outbox_row::Row::Status(scene.status(proto::State::Destroyed, 9, 9)),
        proto::outbox_row::Row::Execution(started.clone()),
        proto::outbox_row::Row::Usage(delta(&scene, 0, 0, 60)),
    ];
    let rows = rows.into_iter().zip(1..).map(|(row, seq)| proto::OutboxRow { seq, row: Some(row) }).collect();
    let request = proto::UploadRequest { host_id: other.id.clone(), rows };
    assert_eq!(thief.upload(request).await.unwrap().into_inner().acked_seq, 3);
    assert_eq!(scene.row().await.state, "running");
    let id = scene.execution.clone();
    assert!(scene.world.store.read(move |tx| execution::find(tx, &id)).await.unwrap().is_none());
    assert_eq!(report(&scene, Grouping::Sandbox).await.total.vcpu_alloc_us, 0);
    // The same delta from its own host, but of an execution that names another sandbox.
    scene.upload(vec![proto::outbox_row::Row::Execution(started)]).await;
    let foreign =
        proto::UsageDelta { sandbox: "sbx_01d39zy06fgsctvn4t2v9pkhfz".into(), ..delta(&scene, 0, 0, 60) };
    scene.upload(vec![proto::outbox_row::Row::Usage(foreign)]).await;
    assert_eq!(report(&scene, Grouping::Sandbox).await.total.vcpu_alloc_us, 0);
}

fn delta(scene: &Scene, seq: u64, from_s: i64, to_s: i64) -> proto::UsageDelta {
    let start_us = scene.sandbox.created_us.max(scene.now_us() - 300_000_000);
    let length = u64::try_from(to_s - from_s).unwrap() * 1_000_000;
    proto::UsageDelta {
        execution: scene.execution.clone(),
        seq,
        sandbox: scene.sandbox.id.clone(),
        from_us: start_us + from_s * 1_000_000,
        to_us: start_us + to_s * 1_000_000,
        wall_us: length,
        vcpu_alloc_us: length,
        mem_alloc_mib_us: 256 * length,
        cpu_used_us: length / 2,
        ..Default::default()
    }
}

async fn report(scene: &Scene, grouping: Grouping) -> usage::Report {
    let now_us = scene.now_us();
    let filter = roost_scheduler::store::usage::Filter {
        tenant_id: scene.sandbox.tenant_id.clone(),
        from_us: now_us - 86_400_000_000,
        to_us: now_us + 1,
        ..Default::default()
    };
    scene.world.store.read(move |tx| usage::report(tx, &filter, grouping, now_us)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executions_start_and_end_are_noted_as_they_come() {
    let mut scene = Scene::new().await;
    let row = |started_us, ended_us: i64, cause: &str| {
        proto::outbox_row::Row::Execution(proto::ExecutionRow {
            execution: scene.execution.clone(),
            sandbox: scene.sandbox.id.clone(),
            placement_epoch: 1,
            started_us,
            ended_us,
            end_cause: cause.into(),
        })
    };
    let rows = vec![row(0, 0, ""), row(7, 0, ""), row(8, 9, "paused"), row(8, 10, "crashed")];
    scene.upload(rows).await;
    let id = scene.execution.clone();
    let found = scene.world.store.read(move |tx| execution::find(tx, &id)).await.unwrap().unwrap();
    assert_eq!((found.started_us, found.ended_us, found.end_cause.as_str()), (7, Some(9), "paused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_measures_after_it_was_given_up_is_not_billed() {
    let mut scene = Scene::new().await;
    let next = scene.world.join().await;
    let started = proto::ExecutionRow {
        execution: scene.execution.clone(),
        sandbox: scene.sandbox.id.clone(),
        placement_epoch: 1,
        started_us: scene.now_us() - 300_000_000,
        ..Default::default()
    };
    scene.upload(vec![proto::outbox_row::Row::Execution(started)]).await;
    let (row, moved_us) = (scene.row().await, delta(&scene, 0, 0, 100).to_us);
    let to = next.id.clone();
    let moved = scene.world.store.write(move |tx| sandbox::set_placement(tx, &row, &to, moved_us)).await;
    assert!(moved.unwrap());
    // The first minute is before it and comes late, the second crosses it, the third is after it.
    let deltas = [(0, 0, 60), (1, 60, 120), (2, 120, 180)];
    let deltas =
        deltas.map(|(seq, from_s, to_s)| proto::outbox_row::Row::Usage(delta(&scene, seq, from_s, to_s)));
    scene.upload(deltas.to_vec()).await;
    scene.upload(deltas.to_vec()).await;
    assert_eq!(report(&scene, Grouping::Sandbox).await.total.vcpu_alloc_us, 60_000_000);
    // The next host's executions are the sandbox's own.
    let theirs = fresh::<ExecutionId>().to_string();
    let begun = proto::ExecutionRow {
        execution: theirs.clone(),
        sandbox: scene.sandbox.id.clone(),
        placement_epoch: 2,
        started_us: moved_us,
        ..Default::default()
    };
    let used = proto::UsageDelta { execution: theirs, ..delta(&scene, 0, 100, 160) };
    let rows = [proto::outbox_row::Row::Execution(begun), proto::outbox_row::Row::Usage(used)];
    let rows = rows.into_iter().zip(1..).map(|(row, seq)| proto::OutboxRow { seq, row: Some(row) });
    let request = proto::UploadRequest { host_id: next.id.clone(), rows: rows.collect() };
    FleetClient::new(scene.world.channel(Some(&next.agent)).await).upload(request).await.unwrap();
    assert_eq!(report(&scene, Grouping::Sandbox).await.total.vcpu_alloc_us, 120_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_sent_twice_and_out_of_order_counts_once() {
    let mut scene = Scene::new().await;
    let started = proto::ExecutionRow {
        execution: scene.execution.clone(),
        sandbox: scene.sandbox.id.clone(),
        placement_epoch: 1,
        started_us: scene.now_us() - 300_000_000,
        ..Default::default()
    };
    let action = proto::OperatorAction {
        sandbox: scene.sandbox.id.clone(),
        action: "exec".into(),
        actor: "root".into(),
        time_us: scene.now_us(),
        detail: "sh".into(),
    };
    let first = vec![
        proto::outbox_row::Row::Status(scene.status(proto::State::Creating, 1, 1)),
        proto::outbox_row::Row::Execution(started),
        proto::outbox_row::Row::Usage(delta(&scene, 0, 0, 60)),
        proto::outbox_row::Row::Operator(action),
    ];
    let second = vec![
        proto::outbox_row::Row::Status(scene.status(proto::State::Running, 1, 2)),
        proto::outbox_row::Row::Usage(delta(&scene, 1, 60, 120)),
    ];
    // The answer to the first is lost, so it comes again with what was added, and once more after that.
    scene.upload(first.clone()).await;
    scene.upload(first.iter().chain(&second).cloned().collect()).await;
    scene.upload(second.clone()).await;
    scene.upload(first.iter().rev().cloned().collect()).await;
    assert_eq!(scene.row().await.state, "running", "an older report changes nothing");
    assert_eq!(scene.events().await, ["sandbox.running"]);
    assert_eq!(report(&scene, Grouping::Sandbox).await.total.cpu_used_us, 60_000_000);
    let filter = audit_log::Filter {
        tenant_id: scene.sandbox.tenant_id.clone(),
        action: Some("operator.exec".into()),
        limit: 10,
        ..Default::default()
    };
    let audited = scene.world.store.read(move |tx| audit_log::list(tx, &filter)).await.unwrap();
    assert_eq!(audited.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_counts_once_reconciles_and_includes_what_runs() {
    let mut scene = Scene::new().await;
    let start_us = scene.now_us() - 300_000_000;
    let mut status = scene.status(proto::State::Running, 1, 1);
    status.changed_us = start_us;
    let started = proto::ExecutionRow {
        execution: scene.execution.clone(),
        sandbox: scene.sandbox.id.clone(),
        placement_epoch: 1,
        started_us: start_us,
        ..Default::default()
    };
    scene
        .upload(vec![proto::outbox_row::Row::Status(status), proto::outbox_row::Row::Execution(started)])
        .await;
    let deltas: Vec<_> = (0..4u64)
        .map(|seq| {
            let from_s = i64::try_from(seq).unwrap() * 60;
            proto::outbox_row::Row::Usage(delta(&scene, seq, from_s, from_s + 60))
        })
        .collect();
    scene.upload(deltas.clone()).await;
    scene.upload(deltas).await;
    for grouping in Grouping::ALL.map(|(_, grouping)| grouping) {
        let report = report(&scene, grouping).await;
        // 240 s are closed, the minute since is open and estimated by what is allocated.
        assert_eq!(report.total.sandbox_wall_us, 300_000_000, "{grouping:?}");
        assert_eq!(report.estimated_us, 60_000_000);
        assert_eq!(report.total.vcpu_alloc_us, 300_000_000);
        assert_eq!(report.total.cpu_used_us, 120_000_000, "what is measured is not estimated");
        assert_eq!(
            report.groups.iter().map(|group| group.sandbox_wall_us).sum::<i128>(),
            report.total.sandbox_wall_us
        );
    }
    let by_user = report(&scene, Grouping::ExternalUser).await;
    assert_eq!(by_user.groups[0].key.as_deref(), Some("user_42"));
    // A host that fell silent is not billed for ever.
    scene.world.clock.advance_us(3_600_000_000);
    let later = report(&scene, Grouping::Sandbox).await;
    assert_eq!((later.total.sandbox_wall_us, later.estimated_us), (240_000_000, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sync_brings_what_is_missing_or_older_and_names_what_is_unknown() {
    let mut scene = Scene::new().await;
    let sync = |sandboxes: Vec<proto::SandboxStatus>| proto::SyncRequest {
        host_id: scene.host.id.clone(),
        info: Some(info()),
        sandboxes,
        time_us: scene.now_us() + 7_000_000,
    };
    let reply = scene.client.clone().sync(sync(vec![])).await.unwrap().into_inner();
    let [ensure] = reply.ensure.as_slice() else { panic!("{:?}", reply.ensure) };
    let desired = ensure.desired.unwrap();
    assert_eq!((desired.run(), desired.generation, desired.placement_epoch), (proto::Run::Running, 1, 1));
    assert_eq!(ensure.spec.as_ref().unwrap().memory_mib, scene.sandbox.memory_mib);
    let id = scene.host.id.clone();
    let host = scene.world.store.read(move |tx| host::find(tx, &id)).await.unwrap().unwrap();
    assert_eq!(host.clock_skew_us, 7_000_000);
    let known = scene.status(proto::State::Running, 1, 1);
    let stranger = proto::SandboxStatus { sandbox: "sbx_01d39zy06fgsctvn4t2v9pkhfz".into(), ..known.clone() };
    let reply = scene.client.sync(sync(vec![known, stranger])).await.unwrap().into_inner();
    assert!(reply.ensure.is_empty(), "{:?}", reply.ensure);
    assert_eq!(reply.unknown_sandboxes, ["sbx_01d39zy06fgsctvn4t2v9pkhfz"]);
    assert_eq!(scene.row().await.state, "running", "a Sync reports as well");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_action_is_in_the_audit_log_once() {
    let mut scene = Scene::new().await;
    let action = proto::OperatorAction {
        sandbox: scene.sandbox.id.clone(),
        action: "exec".into(),
        actor: "root".into(),
        time_us: scene.now_us(),
        detail: "ls\n/".into(),
    };
    scene.upload(vec![proto::outbox_row::Row::Operator(action.clone())]).await;
    scene.upload(vec![proto::outbox_row::Row::Operator(action)]).await;
    let filter = roost_scheduler::store::audit_log::Filter {
        tenant_id: scene.sandbox.tenant_id.clone(),
        limit: 10,
        ..Default::default()
    };
    let rows =
        scene.world.store.read(move |tx| roost_scheduler::store::audit_log::list(tx, &filter)).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].action.as_str(), rows[0].actor.as_str()), ("operator.exec", "operator:root"));
    assert_eq!(rows[0].external_user_id.as_deref(), Some("user_42"), "from our own row");
    assert_eq!(rows[0].metadata["detail"], "ls?/");
}
