//! A host that calls one, then the other, and both: nothing is lost, counted twice or fenced.

use std::time::{Duration, Instant};

use roost_daemon::ids::fresh;
use roost_domain::id::{EventId, ExecutionId};
use roost_proto::host as proto;
use roost_proto::host::fleet_client::FleetClient;
use roost_proto::host::lease_client::LeaseClient;
use roost_proto::host::outbox_row::Row;
use roost_proto::host::route_change::Change;
use roost_proto::host::route_client::RouteClient;
use roost_scheduler::audit::Audit;
use roost_scheduler::store::egress_event::Filter;
use roost_scheduler::store::{Settings, params};
use serde_json::json;
use tonic::transport::Channel;

use super::{BOUND, PATIENCE, Pair, with_pair};
use crate::host::Mood;

/// How often each of a host's two sessions sends the same thing.
const REPEATS: usize = 4;
const OUTBOUND: usize = 8;

impl Pair {
    async fn session(&self, place: usize) -> FleetClient<Channel> {
        FleetClient::new(self.channel(place, &self.a.host.agent).await)
    }

    fn upload(&self, rows: &[Row]) -> proto::UploadRequest {
        let rows = rows.iter().zip(1..).map(|(row, seq)| proto::OutboxRow { seq, row: Some(row.clone()) });
        proto::UploadRequest { host_id: self.a.host.id.clone(), rows: rows.collect() }
    }

    async fn sync(&self, sandboxes: Vec<proto::SandboxStatus>) -> proto::SyncRequest {
        let host = &self.a.host;
        let (host_id, info) = (host.id.clone(), Some(host.info(&self.a.app.store).await));
        proto::SyncRequest { host_id, info, sandboxes, time_us: self.host_us() }
    }

    /// What the host would have in its outbox after it paused a sandbox by itself: 120 s of use, an operator's visit.
    async fn outbox(&self, id: &str) -> Vec<Row> {
        let row = self.row(id).await;
        let (execution, start_us) = (row.execution_id.unwrap(), self.host_us() - 300_000_000);
        let started = proto::ExecutionRow {
            execution: execution.clone(),
            sandbox: id.to_owned(),
            placement_epoch: 1,
            started_us: start_us,
            ..Default::default()
        };
        let delta = |seq: u64| {
            let from_us = start_us + i64::try_from(seq).unwrap() * 60_000_000;
            Row::Usage(proto::UsageDelta {
                execution: execution.clone(),
                seq,
                sandbox: id.to_owned(),
                from_us,
                to_us: from_us + 60_000_000,
                wall_us: 60_000_000,
                cpu_used_us: 30_000_000,
                ..Default::default()
            })
        };
        let visited = proto::OperatorAction {
            sandbox: id.to_owned(),
            action: "exec".into(),
            actor: "root".into(),
            time_us: self.host_us(),
            detail: "sh".into(),
        };
        let paused = proto::SandboxStatus {
            sandbox: id.to_owned(),
            state: proto::State::Paused.into(),
            generation: row.generation,
            placement_epoch: 1,
            execution: String::new(),
            changed_us: row.changed_us + 1_000_000,
            local_seq: 1,
            local_cause: "idle".into(),
            local_base_generation: row.generation,
            local_run: proto::Run::Paused.into(),
            ..Default::default()
        };
        vec![Row::Execution(started), delta(0), delta(1), Row::Operator(visited), Row::Status(paused)]
    }

    /// A handle on the egress audit such as each scheduler opens for itself.
    async fn audit(&self) -> Audit {
        let Settings::Postgres { url, connections } = self.settings.clone() else { panic!("not PostgreSQL") };
        let opening = tokio::task::spawn_blocking(move || Audit::in_database(url, connections));
        opening.await.unwrap().unwrap()
    }

    async fn cpu_used_us(&self) -> i64 {
        let sql = "SELECT CAST(COALESCE(SUM(cpu_used_us), 0) AS BIGINT) AS n FROM usage_rollup";
        self.b.app.store.read(move |tx| tx.query_one("n", sql, params![])?.int("n")).await.unwrap()
    }
}

#[test]
fn reports_through_both_count_once() {
    with_pair(|pair| async move { report_to_both(&pair).await });
}

async fn report_to_both(pair: &Pair) {
    let id = pair.a.sandbox_id().await;
    let first = pair.held();
    let rows = pair.outbox(&id).await;
    // The session with A is half-open: what was sent over it may still arrive, before, among and after B's.
    let mut calls = Vec::new();
    for _ in 0..REPEATS {
        for place in [0, 1] {
            let (mut session, request) = (pair.session(place).await, pair.upload(&rows));
            calls.push(tokio::spawn(async move { session.upload(request).await }));
        }
    }
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().into_inner().acked_seq, rows.len() as u64);
    }
    let row = pair.until_row(&id, "told", |row| row.observed_generation == 2).await;
    assert_eq!((row.desired_run.as_str(), row.state.as_str(), row.generation), ("paused", "paused", 2));
    assert_eq!(pair.events(&id).await, ["sandbox.created", "sandbox.running", "sandbox.paused"]);
    assert_eq!(pair.counted().await, (1, 0, 0, 512));
    assert_eq!(pair.a.audited("operator.exec").await.len(), 1);
    assert_eq!(pair.cpu_used_us().await, 60_000_000);

    // The tenant resumes through B, and only then A hears what the host said long before.
    pair.b.post(&format!("/sandboxes/{id}/resume"), json!({})).await.expect(200);
    let resumed = pair.row(&id).await;
    assert_eq!((resumed.state.as_str(), resumed.observed_generation), ("running", 3));
    let mut old = pair.session(0).await;
    old.upload(pair.upload(&rows)).await.unwrap();
    let reply = old.sync(pair.sync(first).await).await.unwrap().into_inner();
    let told: Vec<u64> = reply.ensure.iter().map(|wish| wish.desired.as_ref().unwrap().generation).collect();
    assert_eq!((told, reply.unknown_sandboxes), (vec![3], vec![]), "A knows what B decided");
    let after = pair.row(&id).await;
    assert_eq!((after.desired_run.as_str(), after.state.as_str()), ("running", "running"));
    assert_eq!((after.generation, after.execution_id), (3, resumed.execution_id));
    assert_eq!(pair.events(&id).await.len(), 4);
    assert_eq!((pair.counted().await, pair.cpu_used_us().await), ((1, 1, 256, 512), 60_000_000));
    // Neither session is fenced by the other: a host is known by its certificate, not by a connection.
    for mut session in [old, pair.session(1).await] {
        let reply = session.sync(pair.sync(pair.held()).await).await.unwrap().into_inner();
        assert_eq!((reply.ensure.len(), reply.unknown_sandboxes.len()), (0, 0));
    }
}

#[test]
fn outbound_calls_shipped_to_both_are_one_row_each() {
    with_pair(|pair| async move { ship_to_both(&pair).await });
}

async fn ship_to_both(pair: &Pair) {
    let audits = [pair.audit().await, pair.audit().await];
    let (sandbox, now_us) = (pair.a.sandbox_id().await, pair.host_us());
    let (mut intents, mut completions) = (String::new(), String::new());
    for _ in 0..OUTBOUND {
        let event_id = fresh::<EventId>().to_string();
        let intent = json!({
            "record": "intent", "event_id": event_id, "time_us": now_us, "sandbox": sandbox,
            "execution": "exe_01d39zy06fgsctvn4t2v9pkhfz", "scheme": "https", "host": "api.openai.com",
            "port": 443, "method": "GET", "path": "/v1/models", "secrets": [],
        });
        let completion = json!({
            "record": "completion", "event_id": event_id, "time_us": now_us + 5, "action": "allow",
            "status_code": 401, "duration_us": 5000, "bytes_in": 10, "bytes_out": 20,
        });
        intents += &format!("{intent}\n");
        completions += &format!("{completion}\n");
    }
    // A piece whose acknowledgement was lost goes to the other one, and the pieces of a segment to different ones.
    let (whole, ends) = (format!("{intents}{completions}"), completions);
    let mut calls = Vec::new();
    for (at, records) in [&ends, &whole, &whole, &ends, &whole, &whole].into_iter().cloned().enumerate() {
        let (audit, world) = (audits[at % 2].clone(), if at % 2 == 0 { &pair.a } else { &pair.b });
        let (app, host_id) = (world.app.clone(), world.host.id.clone());
        calls.push(tokio::spawn(async move {
            audit.ingest(&app.store, &host_id, records.as_bytes(), app.now_us()).await
        }));
    }
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().dropped, 0);
    }
    let filter = Filter { tenant_id: pair.a.tenant.clone(), limit: 100, ..Filter::default() };
    let rows = audits[1].list(filter).await.unwrap();
    assert_eq!(rows.len(), OUTBOUND);
    assert!(rows.iter().all(|row| row.status_code == Some(401) && row.bytes_in == Some(10)), "{rows:?}");
}

/// Whoever decides pushes to the host itself, whichever scheduler the host calls. Where that fails, the host hears of
/// it from the one it calls, at its next Sync: at most 30 s later.
#[test]
fn a_wish_that_could_not_be_pushed_comes_with_the_next_sync_from_either() {
    with_pair(|pair| async move { sync_brings_it(&pair).await });
}

async fn sync_brings_it(pair: &Pair) {
    let id = pair.a.sandbox_id().await;
    let request = pair.sync(pair.held()).await;
    let mut session = pair.session(1).await;
    let nowhere = "UPDATE host SET ensure_address = '127.0.0.1:1'";
    pair.a.app.store.write(move |tx| tx.execute(nowhere, params![])).await.unwrap();
    let (a, path) = (pair.a.clone(), format!("/sandboxes/{id}/pause"));
    let call = tokio::spawn(async move { a.post(&path, json!({})).await });
    pair.until_row(&id, "decided", |row| row.generation == 2).await;
    let begun = Instant::now();
    let wishes = session.sync(request).await.unwrap().into_inner().ensure;
    assert_eq!(wishes.len(), 1);
    let status = pair.a.host.carry_out(&wishes[0]);
    session.upload(pair.upload(&[Row::Status(status)])).await.unwrap();
    // A, which waits for it, sees what B was told.
    let answer = tokio::time::timeout(PATIENCE, call).await.unwrap().unwrap().expect(200);
    assert_eq!(answer.data()["state"], "paused");
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
}

#[test]
fn what_the_other_scheduler_was_told_ends_a_wait() {
    with_pair(|pair| async move {
        pair.a.host.set_mood(Mood::Slow);
        let a = pair.a.clone();
        let body = json!({ "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 512 });
        let call = tokio::spawn(async move { a.post("/sandboxes?wait=20", body).await });
        let deadline = Instant::now() + PATIENCE;
        while pair.held().is_empty() {
            assert!(Instant::now() < deadline, "the host was not told");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let begun = pair.held().remove(0);
        pair.until_row(&begun.sandbox, "begun", |row| row.observed_generation == 1).await;
        let running = proto::SandboxStatus {
            state: proto::State::Running.into(),
            execution: fresh::<ExecutionId>().to_string(),
            changed_us: begun.changed_us + 1,
            ..begun
        };
        let told = Instant::now();
        pair.session(1).await.upload(pair.upload(&[Row::Status(running)])).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, call).await.unwrap().unwrap().expect(201);
        assert_eq!(answer.data()["state"], "running");
        assert!(told.elapsed() < BOUND, "{:?}", told.elapsed());
    });
}

#[test]
fn watchers_at_one_hear_within_the_bound_what_the_other_decided() {
    with_pair(|pair| async move {
        hear(&pair, 1).await;
        hear(&pair, 0).await;
    });
}

/// Data-plane processes watch the scheduler at `place`; the tenant calls the other one.
async fn hear(pair: &Pair, place: usize) {
    let caller = if place == 1 { &pair.a } else { &pair.b };
    let sandbox = caller.sandbox_id().await;
    let execution = pair.row(&sandbox).await.execution_id.unwrap();
    let previews = format!("/sandboxes/{sandbox}/previews");
    let made = caller.post(&previews, json!({ "port": 3000 })).await.expect(201).data();
    let host =
        made["url"].as_str().unwrap().strip_prefix("https://").unwrap().trim_end_matches('/').to_owned();
    let mut edge = RouteClient::new(pair.channel(place, &pair.a.host.edge).await);
    let mut routes =
        edge.watch(proto::WatchRoutesRequest { hosts: vec![host.clone()] }).await.unwrap().into_inner();
    loop {
        match next(routes.message()).await.change.unwrap() {
            Change::Heartbeat(_) => break,
            Change::Route(route) => assert_eq!(route.execution, execution),
            Change::Keys(_) => {}
            Change::RemovedHost(host) => panic!("{host} is there"),
        }
    }
    let mut egress = LeaseClient::new(pair.channel(place, &pair.a.host.egress).await);
    let mut leases = egress.watch(proto::WatchLeasesRequest {}).await.unwrap().into_inner();
    assert!(next(leases.message()).await.heartbeat);

    let name = format!("KEY_{place}");
    let body =
        json!({ "name": name, "value": "sk-sesame-0123456789", "scope": "tenant", "expose_as_env": name });
    caller.post("/egress/secrets", body).await.expect(201);
    let begun = Instant::now();
    while !next(leases.message()).await.executions.contains(&execution) {}
    assert!(begun.elapsed() < BOUND, "leases: {:?}", begun.elapsed());
    caller.delete(&format!("{previews}/{}", made["id"].as_str().unwrap())).await.expect(204);
    let begun = Instant::now();
    while !matches!(next(routes.message()).await.change.unwrap(), Change::RemovedHost(gone) if gone == host) {
    }
    assert!(begun.elapsed() < BOUND, "routes: {:?}", begun.elapsed());
}

async fn next<T>(message: impl Future<Output = Result<Option<T>, tonic::Status>>) -> T {
    tokio::time::timeout(PATIENCE, message).await.expect("a message in time").unwrap().unwrap()
}
