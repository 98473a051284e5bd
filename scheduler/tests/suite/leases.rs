//! Leases, routes and the egress audit over mutual TLS, as the data plane uses them.

use std::time::{Duration, Instant};

use roost_daemon::clock::Clock as _;
use roost_daemon::ids::fresh;
use roost_domain::audit::{Action, Completion, Intent, Record, Scheme, SecretUse};
use roost_domain::id::{EventId, PreviewId};
use roost_proto::host as proto;
use roost_proto::host::audit_client::AuditClient;
use roost_proto::host::lease_client::LeaseClient;
use roost_proto::host::route_change::Change as RouteChange;
use roost_proto::host::route_client::RouteClient;
use roost_scheduler::audit::Audit;
use roost_scheduler::secret::{Change, NewSecret, Plaintext, Scope};
use roost_scheduler::store::egress_event::Filter;
use roost_scheduler::store::preview::{self, Preview};
use roost_scheduler::store::sandbox::{self, Sandbox};
use roost_scheduler::store::setting::{self, Setting};
use roost_scheduler::store::{Settings, Store, host, quota, secret};
use tonic::Code;

use crate::engines::{on_both_settings, runtime};
use crate::rows::{self, Owner};
use crate::world::{DEADLINE, Host, World};

const VALUE: &str = "sk-live-0123456789abcdef";
/// The stated bound on "immediately".
const BOUND: Duration = Duration::from_secs(2);

struct Scene {
    world: World,
    host: Host,
    owner: Owner,
    sandbox: Sandbox,
    placeholder: String,
    secret_id: String,
}

impl Scene {
    async fn new() -> Scene {
        let world = World::start().await;
        Scene::in_world(world).await
    }

    async fn in_world(world: World) -> Scene {
        let host = world.join().await;
        let owner = rows::owner(&world.store).await;
        let now_us = world.clock.now_us();
        let sandbox = rows::running_sandbox(&world.store, &owner, &host.id, |row| {
            row.external_user_id = Some("user_42".into());
            row.preview_domain = "roost.localhost".into();
            row.slug = "brand".into();
            row.updated_us = now_us;
        })
        .await;
        let new = NewSecret {
            tenant_id: owner.tenant.clone(),
            name: "openai".into(),
            value: Plaintext::from(VALUE),
            scope: Scope::Tenant,
            expose_as_env: Some("OPENAI_API_KEY".into()),
            kind: "api_key".into(),
            allowed_hosts: None,
            slots: None,
            provider: None,
            expires_us: None,
            metadata: Default::default(),
            sandbox_id: None,
            actor: "a".into(),
        };
        let vault = world.vault.clone();
        let stored = world.store.decide(move |tx| vault.set(tx, &new)).await.unwrap();
        let placeholder = world.vault.environment(&sandbox).await.unwrap().remove("OPENAI_API_KEY").unwrap();
        Scene { world, host, owner, sandbox, placeholder, secret_id: stored.secret.id }
    }

    fn question(&self) -> proto::ResolveRequest {
        proto::ResolveRequest {
            execution: self.sandbox.execution_id.clone().unwrap(),
            sandbox: self.sandbox.id.clone(),
            placeholders: vec![self.placeholder.clone(), "sk-proj-nothing".into()],
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_current_execution_on_its_own_host_gets_a_lease() {
    use proto::resolution::Outcome;
    let scene = Scene::new().await;
    let mut egress = LeaseClient::new(scene.world.channel(Some(&scene.host.egress)).await);
    let reply = egress.resolve(scene.question()).await.unwrap().into_inner();
    let Some(Outcome::Credential(credential)) = &reply.resolutions[0].outcome else { panic!("{reply:?}") };
    assert_eq!(credential.value, VALUE.as_bytes());
    assert_eq!((credential.scope.as_str(), credential.unbound), ("tenant", false));
    assert_eq!(credential.allowed_hosts, ["api.openai.com"]);
    assert_eq!(credential.expires_us, scene.world.clock.now_us() + 30_000_000);
    assert!(matches!(reply.resolutions[1].outcome, Some(Outcome::Foreign(_))));
    let other = scene.world.join().await;
    let mut elsewhere = LeaseClient::new(scene.world.channel(Some(&other.egress)).await);
    let status = elsewhere.resolve(scene.question()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "another host");
    let old =
        proto::ResolveRequest { execution: "exe_01d39zy06fgsctvn4t2v9pkhfz".into(), ..scene.question() };
    assert_eq!(egress.resolve(old).await.unwrap_err().code(), Code::FailedPrecondition, "another execution");
    let (id, skew) = (scene.host.id.clone(), 31_000_000);
    let skewed = move |tx: &mut roost_scheduler::store::Tx<'_>| {
        let row = host::find(tx, &id)?.unwrap();
        host::record_info(tx, &host::Host { clock_skew_us: skew, ..row })
    };
    scene.world.store.write(skewed).await.unwrap();
    let status = egress.resolve(scene.question()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "a clock that is off");
    assert!(status.message().contains("clock"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_secret_is_told_within_the_bound() {
    let scene = Scene::new().await;
    let mut egress = LeaseClient::new(scene.world.channel(Some(&scene.host.egress)).await);
    let mut watch = egress.watch(proto::WatchLeasesRequest {}).await.unwrap().into_inner();
    let first = tokio::time::timeout(DEADLINE, watch.message()).await.unwrap().unwrap().unwrap();
    assert!(first.heartbeat);
    scene.world.clock.advance_us(1_000_000);
    let change = Change { enabled: Some(false), ..Change::default() };
    let (vault, tenant, id) =
        (scene.world.vault.clone(), scene.owner.tenant.clone(), scene.secret_id.clone());
    // Written past this scheduler's own notice, as another scheduler would.
    scene.world.store.decide(move |tx| vault.change(tx, &tenant, &id, &change)).await.unwrap();
    let begun = Instant::now();
    let told = loop {
        let change = tokio::time::timeout(DEADLINE, watch.message()).await.unwrap().unwrap().unwrap();
        if !change.heartbeat {
            break change;
        }
    };
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    assert_eq!(told.executions, [scene.sandbox.execution_id.clone().unwrap()]);
    assert!(told.secret_ids.is_empty(), "all of them: another secret may win now");
    let reply = egress.resolve(scene.question()).await.unwrap().into_inner();
    assert!(matches!(reply.resolutions[0].outcome, Some(proto::resolution::Outcome::None(_))), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tenants_switch_is_told_too() {
    let scene = Scene::new().await;
    let mut egress = LeaseClient::new(scene.world.channel(Some(&scene.host.egress)).await);
    let mut watch = egress.watch(proto::WatchLeasesRequest {}).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().unwrap().heartbeat);
    let row = Setting {
        tenant_id: scene.owner.tenant.clone(),
        name: roost_scheduler::secret::SWITCH_SETTING.into(),
        value: serde_json::json!(false),
        actor: "a".into(),
        updated_us: scene.world.clock.now_us(),
    };
    scene.world.store.write(move |tx| setting::set(tx, &row)).await.unwrap();
    scene.world.fleet.note_change();
    let told = tokio::time::timeout(BOUND, watch.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(told.executions, [scene.sandbox.execution_id.clone().unwrap()]);
}

async fn publish(scene: &Scene, visibility: &str) -> Preview {
    let row = Preview {
        id: fresh::<PreviewId>().to_string(),
        tenant_id: scene.owner.tenant.clone(),
        sandbox_id: scene.sandbox.id.clone(),
        port: 3000,
        key: "abc12345".into(),
        name: String::new(),
        visibility: visibility.into(),
        share_generation: 1,
        actor: "a".into(),
        created_us: scene.world.clock.now_us(),
        updated_us: scene.world.clock.now_us(),
        deleted_us: None,
    };
    let inserted = row.clone();
    assert!(scene.world.store.write(move |tx| preview::insert(tx, &inserted)).await.unwrap());
    row
}

#[tokio::test(flavor = "multi_thread")]
async fn both_forms_of_a_preview_host_lead_to_it_and_nothing_else_does() {
    use proto::lookup_reply::Outcome;
    let scene = Scene::new().await;
    let row = publish(&scene, "private").await;
    let mut edge = RouteClient::new(scene.world.channel(Some(&scene.host.edge)).await);
    for host in ["3000-brand.sandbox.roost.localhost", "abc12345.preview.roost.localhost"] {
        let reply = edge
            .lookup(proto::LookupRequest { host: host.into(), resume: false })
            .await
            .unwrap()
            .into_inner();
        let Some(Outcome::Route(route)) = reply.outcome else { panic!("{host}: {reply:?}") };
        assert_eq!(
            (route.preview_id.as_str(), route.port, route.visibility.as_str()),
            (row.id.as_str(), 3000, "private")
        );
        assert_eq!(route.sandbox, scene.sandbox.id);
        assert_eq!(
            (route.state.as_str(), &route.execution),
            ("running", scene.sandbox.execution_id.as_ref().unwrap())
        );
        assert_eq!(route.owner_host_id, scene.host.id);
        assert_eq!(route.frame_ancestors, ["https://*.miosa.app"]);
        assert_eq!(route.expires_us, scene.world.clock.now_us() + 30_000_000);
    }
    for host in [
        "3001-brand.sandbox.roost.localhost",
        "3000-other.sandbox.roost.localhost",
        "3000-brand.sandbox.evil.localhost",
        "abc12345.preview.evil.localhost",
        "abc12346.preview.roost.localhost",
        "roost.localhost",
        "",
    ] {
        let reply = edge
            .lookup(proto::LookupRequest { host: host.into(), resume: false })
            .await
            .unwrap()
            .into_inner();
        assert!(matches!(reply.outcome, Some(Outcome::Absent(true))), "{host}: {reply:?}");
    }
}

/// The same sandbox, paused as its host reports it.
async fn pause(scene: &Scene, auto_resume: bool) {
    let (id, host, now_us) = (scene.sandbox.id.clone(), scene.host.id.clone(), scene.world.clock.now_us());
    let placed = scene.sandbox.clone();
    let paused = scene.world.store.write(move |tx| {
        let changes = sandbox::Changes { auto_resume: Some(auto_resume), ..Default::default() };
        sandbox::update(tx, &placed.tenant_id, &id, &changes, now_us)?;
        for subject in quota::subjects(&placed) {
            assert!(quota::reserve(tx, &subject, quota::Amount::resting(&placed))?);
        }
        let generation = sandbox::set_desired(tx, &id, "paused", now_us)?.unwrap();
        let seen = sandbox::Observed {
            id: id.clone(),
            host_id: host.clone(),
            placement_epoch: 1,
            state: "paused".into(),
            state_reason: String::new(),
            generation,
            local_seq: 0,
            local_cause: String::new(),
            execution_id: None,
            changed_us: now_us,
            boot_path: String::new(),
            boot_us: None,
            started_us: None,
            ready_us: None,
            destroyed_us: None,
        };
        sandbox::record_observed(tx, &seen, now_us)
    });
    assert!(paused.await.unwrap());
}

async fn visit(scene: &Scene, resume: bool) -> proto::RouteEntry {
    let mut edge = RouteClient::new(scene.world.channel(Some(&scene.host.edge)).await);
    let request = proto::LookupRequest { host: "3000-brand.sandbox.roost.localhost".into(), resume };
    match edge.lookup(request).await.unwrap().into_inner().outcome {
        Some(proto::lookup_reply::Outcome::Route(route)) => route,
        other => panic!("{other:?}"),
    }
}

async fn wanted(scene: &Scene) -> (String, u64) {
    let id = scene.sandbox.id.clone();
    let row = scene.world.store.read(move |tx| sandbox::find_any(tx, &id)).await.unwrap().unwrap();
    (row.desired_run, row.generation)
}

async fn concurrent(scene: &Scene) -> i64 {
    let subject = quota::subjects(&scene.sandbox).remove(0);
    scene.world.store.read(move |tx| quota::find_use(tx, &subject)).await.unwrap().unwrap().concurrent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_visitor_wakes_a_sandbox_once_if_it_may_wake() {
    let scene = Scene::new().await;
    publish(&scene, "public").await;
    pause(&scene, true).await;
    assert_eq!(visit(&scene, false).await.state, "paused", "looking does not wake");
    assert_eq!(wanted(&scene).await, ("paused".into(), 2));
    let (one, other) = tokio::join!(visit(&scene, true), visit(&scene, true));
    assert_eq!((one.state.as_str(), other.state.as_str()), ("resuming", "resuming"));
    assert_eq!(wanted(&scene).await, ("running".into(), 3));
    assert_eq!(concurrent(&scene).await, 1);
    let id = scene.host.id.clone();
    let host = scene.world.store.read(move |tx| host::find(tx, &id)).await.unwrap().unwrap();
    assert_eq!(host.memory_reserved_mib, scene.sandbox.memory_mib);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_may_not_wake_or_has_no_quota_stays_asleep() {
    let scene = Scene::new().await;
    publish(&scene, "public").await;
    pause(&scene, false).await;
    assert_eq!(visit(&scene, true).await.state, "paused");
    assert_eq!((wanted(&scene).await.0.as_str(), concurrent(&scene).await), ("paused", 0));
    let scene = Scene::new().await;
    publish(&scene, "public").await;
    pause(&scene, true).await;
    // The last of the subjects refuses; what the others had already counted is taken back.
    let limit = quota::Quota {
        tenant_id: scene.owner.tenant.clone(),
        subject: "external_user".into(),
        subject_id: "user_42".into(),
        max_sandboxes: None,
        max_concurrent: Some(0),
        max_vcpus: None,
        max_memory_mib: None,
        max_disk_mib: None,
        max_credit_cents: None,
        updated_us: 0,
    };
    scene.world.store.write(move |tx| quota::set(tx, &limit)).await.unwrap();
    assert_eq!(visit(&scene, true).await.state, "paused");
    assert_eq!((wanted(&scene).await, concurrent(&scene).await), (("paused".into(), 2), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watching_edge_hears_of_keys_revocation_pause_and_removal() {
    let scene = Scene::new().await;
    let row = publish(&scene, "private").await;
    let host = "3000-brand.sandbox.roost.localhost".to_owned();
    let mut edge = RouteClient::new(scene.world.channel(Some(&scene.host.edge)).await);
    let watch = proto::WatchRoutesRequest { hosts: vec![host.clone()] };
    let mut watch = edge.watch(watch).await.unwrap().into_inner();
    let mut next = async || loop {
        let change = tokio::time::timeout(DEADLINE, watch.message()).await.unwrap().unwrap().unwrap();
        match change.change.unwrap() {
            RouteChange::Heartbeat(_) => {}
            other => return other,
        }
    };
    let RouteChange::Keys(keys) = next().await else { panic!("keys come first") };
    assert_eq!((keys.keys.len(), keys.keys[0].public_key.len()), (1, 32));
    assert_eq!((keys.issuer.as_str(), keys.token_prefix.as_str()), ("roost", "miosa"));
    let RouteChange::Route(route) = next().await else { panic!("then the route") };
    assert_eq!(route.share_generation, 1);
    let step = |us| scene.world.clock.advance_us(us);
    step(1_000_000);
    let (id, now_us) = (row.id.clone(), scene.world.clock.now_us());
    scene.world.store.write(move |tx| preview::revoke_shares(tx, &id, now_us)).await.unwrap();
    let begun = Instant::now();
    let RouteChange::Route(route) = next().await else { panic!("the generation") };
    assert_eq!(route.share_generation, 2);
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    step(1_000_000);
    pause(&scene, true).await;
    scene.world.fleet.note_change();
    let RouteChange::Route(route) = next().await else { panic!("the pause") };
    assert_eq!((route.state.as_str(), route.execution.as_str()), ("paused", ""));
    step(1_000_000);
    let (id, now_us) = (row.id.clone(), scene.world.clock.now_us());
    scene.world.store.write(move |tx| preview::remove(tx, &id, now_us)).await.unwrap();
    let RouteChange::RemovedHost(removed) = next().await else { panic!("the end") };
    assert_eq!(removed, host);
}

fn segment(records: &[Record]) -> Vec<u8> {
    records.iter().flat_map(|record| [serde_json::to_vec(record).unwrap(), b"\n".to_vec()].concat()).collect()
}

fn intent(scene: &Scene, sandbox: &str, secret_id: &str) -> Intent {
    Intent {
        event_id: fresh::<EventId>().to_string(),
        time_us: scene.world.clock.now_us(),
        execution: scene.sandbox.execution_id.clone().unwrap(),
        sandbox: sandbox.to_owned(),
        scheme: Scheme::Https,
        host: "api.openai.com".into(),
        port: 443,
        method: Some("POST".into()),
        path: Some("/v1/chat".into()),
        secrets: vec![SecretUse {
            env: "OPENAI_API_KEY".into(),
            secret_id: Some(secret_id.to_owned()),
            scope: Some("tenant".into()),
            resolved_by: "tenant".into(),
            location: Some("authorization".into()),
            swapped: true,
            reason: None,
        }],
    }
}

fn completion(event_id: &str, action: Action, time_us: i64) -> Completion {
    Completion {
        event_id: event_id.to_owned(),
        time_us,
        action,
        rejected_by: None,
        policy_id: None,
        rule_id: None,
        status_code: Some(200),
        duration_us: 1500,
        bytes_in: 10,
        bytes_out: 20,
        address: None,
        detail: None,
    }
}

/// The same test over day files and over PostgreSQL's table.
#[test]
fn shipped_calls_become_one_row_each_with_our_own_labels() {
    on_both_settings(|settings| {
        runtime().block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let audit = match settings.clone() {
                Settings::Postgres { url, connections } => {
                    tokio::task::spawn_blocking(move || Audit::in_database(url, connections))
                        .await
                        .unwrap()
                        .unwrap()
                }
                Settings::Sqlite { .. } => Audit::in_directory(directory.path().join("audit")).unwrap(),
            };
            let store = tokio::task::spawn_blocking(move || Store::open(settings)).await.unwrap().unwrap();
            let world = World::start_on(store, audit, directory).await;
            ship_and_query(Scene::in_world(world).await).await;
        });
    });
}

async fn ship_and_query(scene: Scene) {
    let now_us = scene.world.clock.now_us();
    let done = intent(&scene, &scene.sandbox.id, &scene.secret_id);
    let open = intent(&scene, &scene.sandbox.id, "sec_other");
    let foreign = intent(&scene, "sbx_01d39zy06fgsctvn4t2v9pkhfz", &scene.secret_id);
    let mut ancient = completion(&done.event_id, Action::Allow, now_us);
    ancient.event_id = "evt_00000000000000000000000000".into();
    let records = segment(&[
        Record::Intent(done.clone()),
        Record::Intent(open.clone()),
        Record::Intent(foreign.clone()),
        Record::Completion(completion(&done.event_id, Action::Allow, now_us + 1500)),
        Record::Completion(completion(&done.event_id, Action::Error, now_us + 9000)),
        Record::Completion(ancient),
    ]);
    let records = [records, b"not json\n".to_vec()].concat();
    let length = records.len() as u64;
    let mut egress = AuditClient::new(scene.world.channel(Some(&scene.host.egress)).await);
    for _ in 0..2 {
        let request =
            proto::ShipRequest { segment: "s".into(), offset: 100, records: records.clone().into() };
        assert_eq!(egress.ship(request).await.unwrap().into_inner().acked_offset, 100 + length);
    }
    let cut = proto::ShipRequest { segment: "s".into(), offset: 0, records: b"{".to_vec().into() };
    assert_eq!(egress.ship(cut).await.unwrap_err().code(), Code::InvalidArgument);
    // Another host cannot end this host's calls.
    let other = scene.world.join().await;
    let mut thief = AuditClient::new(scene.world.channel(Some(&other.egress)).await);
    let theft = segment(&[Record::Completion(completion(&open.event_id, Action::Allow, now_us))]);
    thief.ship(proto::ShipRequest { segment: "t".into(), offset: 0, records: theft.into() }).await.unwrap();

    let all = Filter { tenant_id: scene.owner.tenant.clone(), limit: 100, ..Filter::default() };
    let list = async |filter: Filter| scene.world.audit.list(filter).await.unwrap();
    let rows = list(all.clone()).await;
    assert_eq!(rows.len(), 2, "{rows:?}");
    let row = rows.iter().find(|row| row.event_id == done.event_id).unwrap();
    assert_eq!(
        (row.external_user_id.as_deref(), row.sandbox_id.as_str()),
        (Some("user_42"), scene.sandbox.id.as_str())
    );
    assert_eq!(
        (row.action.as_deref(), row.completed_us),
        (Some("allow"), Some(now_us + 1500)),
        "the first end counts"
    );
    let pending = rows.iter().find(|row| row.event_id == open.event_id).unwrap();
    assert_eq!((pending.action.as_deref(), pending.completed_us), (None, None));
    let some = |filter: Filter| async { list(filter).await.len() };
    assert_eq!(some(Filter { external_user_id: Some("user_42".into()), ..all.clone() }).await, 2);
    assert_eq!(some(Filter { external_user_id: Some("User_42".into()), ..all.clone() }).await, 0);
    assert_eq!(some(Filter { secret_id: Some(scene.secret_id.clone()), ..all.clone() }).await, 1);
    assert_eq!(some(Filter { action: Some("allow".into()), ..all.clone() }).await, 1);
    assert_eq!(some(Filter { since_us: Some(now_us + 1), ..all.clone() }).await, 0);
    assert_eq!(some(Filter { tenant_id: "ten_other".into(), ..all.clone() }).await, 0);
    let first = list(Filter { limit: 1, newest_first: true, ..all.clone() }).await.remove(0);
    let rest = Filter { after: Some((first.time_us, first.event_id)), newest_first: true, ..all.clone() };
    assert_eq!(some(rest).await, 1);
    let found = scene.world.audit.find(&scene.owner.tenant, &done.event_id).await.unwrap();
    assert!(found.is_some());
    assert!(scene.world.audit.find("ten_other", &done.event_id).await.unwrap().is_none());
    let (tenant, id) = (scene.owner.tenant.clone(), scene.secret_id.clone());
    let used = scene.world.store.read(move |tx| secret::find(tx, &tenant, &id)).await.unwrap().unwrap();
    assert_eq!(used.last_used_us, Some(now_us));
    scene.world.audit.remove_before(now_us + 2 * 86_400_000_000).await.unwrap();
    assert_eq!(some(all).await, 0, "retention");
}
