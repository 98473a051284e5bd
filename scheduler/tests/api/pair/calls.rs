//! What tenants ask of both at once, and what both do because time passed.

use std::collections::BTreeSet;

use roost_scheduler::app::event::{Wanted, follow};
use roost_scheduler::store::params;
use roost_scheduler::sweep;
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use super::{CALLS, PATIENCE, Pair, with_pair};
use crate::events::first_event;
use crate::previews::verify;
use crate::world::{Answer, World};

fn small() -> Value {
    json!({ "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 512 })
}

fn id(answer: &Answer) -> String {
    answer.data()["id"].as_str().unwrap().to_owned()
}

#[test]
fn one_key_makes_one_sandbox_whoever_is_asked() {
    with_pair(|pair| async move { one_key(&pair).await });
}

async fn one_key(pair: &Pair) {
    let create = |world: World, _| async move {
        let key = [("idempotency-key", "k")];
        world.call_as(&world.key, "POST", "/sandboxes?wait=20", Some(small()), &key).await
    };
    let answers = pair.at_once(CALLS, create).await;
    let (mut ids, mut bodies, mut replayed) = (BTreeSet::new(), BTreeSet::new(), 0);
    for answer in answers {
        let answer = answer.expect(201);
        ids.insert(id(&answer));
        replayed += usize::from(answer.headers.contains_key("idempotent-replayed"));
        bodies.insert(answer.bytes);
    }
    assert_eq!((ids.len(), bodies.len(), replayed), (1, 1, CALLS - 1));
    assert_eq!(pair.b.audited("sandbox.created").await.len(), 1);
    assert_eq!(pair.counted().await, (1, 1, 256, 512));
}

#[test]
fn one_of_many_gets_a_slug_whoever_is_asked() {
    with_pair(|pair| async move { one_slug(&pair).await });
}

async fn one_slug(pair: &Pair) {
    let made = pair.at_once(CALLS, |world, _| async move { world.post("/sandboxes", small()).await }).await;
    let ids: Vec<String> = made.into_iter().map(|answer| id(&answer.expect(202))).collect();
    let places = ids.clone();
    let wish = move |world: World, at: usize| {
        let path = format!("/sandboxes/{}", places[at]);
        async move { world.patch(&path, json!({ "slug": "the-one" })).await }
    };
    let answers = pair.at_once(CALLS, wish).await;
    let (won, lost): (Vec<Answer>, Vec<Answer>) =
        answers.into_iter().partition(|answer| answer.status == 200);
    assert_eq!((won.len(), lost.len()), (1, CALLS - 1));
    for answer in lost {
        assert_eq!((answer.status, answer.code().as_str()), (409, "slug_conflict"), "{}", answer.text());
    }
    for world in [&pair.a, &pair.b] {
        assert_eq!(id(&world.get("/sandboxes/the-one").await.expect(200)), id(&won[0]));
    }
    let count = i64::try_from(CALLS).unwrap();
    assert_eq!(pair.counted().await, (count, count, 256 * CALLS as u64, 512 * CALLS as u64));
}

#[test]
fn decisions_about_one_sandbox_are_made_once() {
    with_pair(|pair| async move { one_decision(&pair).await });
}

async fn one_decision(pair: &Pair) {
    let sandbox = pair.a.sandbox_id().await;
    for (verb, state, concurrent, generation) in [("pause", "paused", 0, 2), ("resume", "running", 1, 3)] {
        let path = format!("/sandboxes/{sandbox}/{verb}");
        let ask = move |world: World, _| {
            let path = path.clone();
            async move { world.post(&path, json!({})).await }
        };
        for answer in pair.at_once(16, ask).await {
            assert_eq!(answer.expect(200).data()["state"], state);
        }
        let row = pair.row(&sandbox).await;
        assert_eq!((row.desired_run.as_str(), row.generation), (state, generation));
        assert_eq!(pair.counted().await.1, concurrent);
        assert_eq!(pair.b.audited(&format!("sandbox.{verb}d")).await.len(), 1);
    }
    assert_eq!(
        pair.events(&sandbox).await,
        ["sandbox.created", "sandbox.running", "sandbox.paused", "sandbox.resumed"]
    );
}

const TIMED: usize = 24;
const TIMEOUT_S: i64 = 300;

#[test]
fn sweeps_of_both_end_each_lifetime_once() {
    with_pair(|pair| async move { sweep_both(&pair).await });
}

async fn sweep_both(pair: &Pair) {
    let create = |world: World, at: usize| async move {
        let mut body = small();
        body["timeout_sec"] = TIMEOUT_S.into();
        body["on_timeout"] = if at < TIMED / 2 { "pause" } else { "destroy" }.into();
        world.post("/sandboxes?wait=20", body).await
    };
    let made = pair.at_once(TIMED, create).await;
    let ids: Vec<String> = made.into_iter().map(|answer| id(&answer.expect(201))).collect();
    // Over for both, however far their clocks are apart.
    pair.pass_us((TIMEOUT_S + 10) * 1_000_000);
    let (one, other) = tokio::join!(sweep::end_overdue(&pair.a.app), sweep::end_overdue(&pair.b.app));
    one.unwrap();
    other.unwrap();
    // A transaction that lost too often is made again at the next turn, a second later.
    sweep::end_overdue(&pair.b.app).await.unwrap();
    for (at, id) in ids.iter().enumerate() {
        let (state, end) =
            if at < TIMED / 2 { ("paused", "sandbox.paused") } else { ("destroyed", "sandbox.destroyed") };
        let row = pair.until_row(id, state, |row| row.state == state && row.observed_generation == 2).await;
        assert_eq!((row.desired_run.as_str(), row.generation), (state, 2));
        assert_eq!(pair.events(id).await, ["sandbox.created", "sandbox.running", end]);
    }
    for action in ["sandbox.paused", "sandbox.destroyed"] {
        assert_eq!(pair.a.audited(action).await.len(), TIMED / 2);
    }
    let left = TIMED as u64 / 2;
    assert_eq!(pair.counted().await, (i64::try_from(left).unwrap(), 0, 0, 512 * left));
}

/// What either makes at its first need is one for both: keys that sign, the tenant's keys that seal.
#[test]
fn keys_made_at_once_are_the_same_keys() {
    with_pair(|pair| async move { one_key_ring(&pair).await });
}

async fn one_key_ring(pair: &Pair) {
    let sandbox = pair.a.sandbox_id().await;
    let path = format!("/sandboxes/{sandbox}/previews");
    let made = pair.a.post(&path, json!({ "port": 3000 })).await.expect(201);
    let share = format!("{path}/{}/share", id(&made));
    pair.a.app.store.write(|tx| tx.execute("DELETE FROM signing_key", params![])).await.unwrap();
    let mint = move |world: World, _| {
        let share = share.clone();
        async move { world.post(&share, json!({})).await }
    };
    for (at, answer) in pair.at_once(16, mint).await.into_iter().enumerate() {
        let text = answer.expect(201).json()["preview_token"].as_str().unwrap().to_owned();
        let jwt = roost_domain::token::split(&text, "miosa").unwrap().jwt;
        // By the other one's keys than those it was signed with.
        verify(if at.is_multiple_of(2) { &pair.b } else { &pair.a }, jwt).await;
    }
    let set = |world: World, at: usize| async move {
        let name = format!("KEY_{at}");
        let body = json!({ "name": name, "value": "sk-sesame-0123456789", "scope": "tenant", "expose_as_env": name });
        world.post("/egress/secrets", body).await
    };
    for answer in pair.at_once(16, set).await {
        answer.expect(201);
    }
    let count = |sql: &'static str| {
        let store = pair.a.app.store.clone();
        async move { store.read(move |tx| tx.query_one("n", sql, params![])?.int("n")).await.unwrap() }
    };
    assert_eq!(count("SELECT COUNT(*) AS n FROM signing_key").await, 1);
    let row = pair.row(&sandbox).await;
    let (one, other) = (
        pair.a.app.vault.environment(&row).await.unwrap(),
        pair.b.app.vault.environment(&row).await.unwrap(),
    );
    assert_eq!(one.len(), 16);
    assert_eq!(one, other, "one placeholder for each, whoever makes it");
}

/// A stream at one of them shows what the other recorded, in its order and once, though its clock is behind.
#[test]
fn events_are_seen_at_either() {
    with_pair(|pair| async move {
        let sandbox = pair.a.sandbox_id().await;
        let caller = pair.a.app.authenticate(&pair.a.key, "request".to_owned()).await.unwrap();
        let live = follow(pair.a.app.clone(), caller, Wanted::default()).await.unwrap();
        let mut live = std::pin::pin!(live);
        for verb in ["pause", "resume"] {
            pair.b.post(&format!("/sandboxes/{sandbox}/{verb}"), json!({})).await.expect(200);
            let event = tokio::time::timeout(PATIENCE, live.next()).await.expect("an event in time").unwrap();
            assert_eq!(event.kind, format!("sandbox.{verb}d"));
        }
        let created = first_event(&pair.a, &sandbox).await;
        let path = format!("/sandboxes/{sandbox}/events");
        let after = [("last-event-id", created.as_str())];
        let text = pair.a.read_stream(&path, &after, |text| text.contains("event: sandbox.resumed")).await;
        let kinds: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
        assert_eq!(kinds, ["sandbox.running", "sandbox.paused", "sandbox.resumed"]);
    });
}
