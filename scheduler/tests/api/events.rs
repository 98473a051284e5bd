//! Event streams: what happens arrives, once, and a client that comes back misses nothing.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use roost_scheduler::app::event::{Wanted, follow};
use roost_scheduler::store::fate::{Fate, Fates};
use roost_scheduler::store::{Store, event};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_stream::StreamExt;

use crate::engines::on_both;
use crate::world::World;

fn ids(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix("id: ")).map(str::to_owned).collect()
}

fn small() -> Value {
    json!({ "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 512, "external_user_id": "u1" })
}

/// The event of a sandbox's creation.
pub async fn first_event(world: &World, sandbox: &str) -> String {
    let (tenant, sandbox) = (world.tenant.clone(), sandbox.to_owned());
    let rows = world.app.store.read(move |tx| event::list_after(tx, &tenant, Some(&sandbox), (0, ""), 10));
    rows.await.unwrap()[0].id.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_is_told_in_order_and_resumed_without_a_gap() {
    let world = World::start().await;
    let id = world.sandbox(small()).await["id"].as_str().unwrap().to_owned();
    let (path, created) = (format!("/sandboxes/{id}"), first_event(&world, &id).await);
    let after = [("last-event-id", created.as_str())];
    let ended = |text: &str| text.contains("event: sandbox.destroyed");
    let everything = async { world.read_stream("/events/stream", &after, ended).await };
    let live = async {
        world.post(&format!("{path}/pause"), json!({})).await.expect(200);
        world.post(&format!("{path}/resume"), json!({})).await.expect(200);
        world.delete(&path).await.expect(202);
    };
    let (text, ()) = tokio::join!(everything, live);
    let kinds: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let expected = ["running", "paused", "resumed", "destroying", "destroyed"];
    assert_eq!(kinds, expected.map(|kind| format!("sandbox.{kind}")), "{text}");
    let seen = ids(&text);
    let again = world.read_stream(&format!("{path}/events"), &[("last-event-id", &seen[1])], ended).await;
    assert_eq!(ids(&again), seen[2..], "{again}");
    let data = again.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!(
        (data["id"].as_str(), data["type"].as_str()),
        (Some(seen[2].as_str()), Some("sandbox.resumed"))
    );
    assert_eq!(data["data"]["external_user_id"], "u1");
}

#[tokio::test(flavor = "multi_thread")]
async fn types_filter() {
    let world = World::start().await;
    let id = world.sandbox(small()).await["id"].as_str().unwrap().to_owned();
    let created = first_event(&world, &id).await;
    world.post(&format!("/sandboxes/{id}/pause"), json!({})).await.expect(200);
    let path = format!("/sandboxes/{id}/events?types=sandbox.paused,x.*");
    let text = world.read_stream(&path, &[("last-event-id", &created)], |text| text.contains("\n\n")).await;
    assert!(text.contains("event: sandbox.paused") && !text.contains("sandbox.running"), "{text}");
}

/// Two pages and a bit of a reader's.
const BEFORE: usize = 1200;
const ARRIVING: usize = 60;
/// As far as the other scheduler's clock may be behind in the tests of two.
const BEHIND_US: i64 = 3_000_000;
const SOON: Duration = Duration::from_secs(10);

/// Commits an event before each look of a reader, of this sandbox and of another one that a scheduler recorded whose
/// clock is behind, in turns.
#[derive(Debug)]
struct Arrivals {
    store: Store,
    tenant: String,
    sandbox: String,
    ids: Mutex<Vec<String>>,
}

impl Arrivals {
    async fn record(&self, at: usize) {
        let created_us = roost_daemon::clock::now_us();
        let (sandbox, created_us) = match at % 2 {
            0 => (self.sandbox.clone(), created_us),
            _ => ("another".to_owned(), created_us - BEHIND_US),
        };
        let event = event::Event {
            id: format!("{sandbox}-{at:05}"),
            tenant_id: self.tenant.clone(),
            kind: "x".to_owned(),
            sandbox_id: Some(sandbox),
            data: json!({}),
            created_us,
        };
        self.ids.lock().unwrap().push(event.id.clone());
        self.store.write(move |tx| event::insert(tx, &event)).await.unwrap();
    }

    fn number(&self) -> usize {
        self.ids.lock().unwrap().len()
    }
}

impl Fates for Arrivals {
    fn of_write(&self) -> Fate {
        Fate::Heard
    }

    fn of_read(&self) -> Fate {
        let at = self.number();
        if at < BEFORE + ARRIVING {
            tokio::task::block_in_place(|| Handle::current().block_on(self.record(at)));
        }
        Fate::Heard
    }
}

#[test]
fn a_stream_begins_while_events_arrive_without_pause_and_loses_none() {
    on_both(|store| async move { begin_amid(World::on(store).await).await });
}

async fn begin_amid(world: World) {
    let store = world.app.store.clone();
    for of_one in [false, true] {
        let sandbox = world.sandbox_id().await;
        let caller = world.app.authenticate(&world.key, "request".to_owned()).await.unwrap();
        let (tenant, ids) = (world.tenant.clone(), Mutex::default());
        let arrivals = Arc::new(Arrivals { store: store.clone(), tenant, sandbox: sandbox.clone(), ids });
        for at in 0..BEFORE {
            arrivals.record(at).await;
        }
        let app = world.beside(store.under(arrivals.clone())).app;
        let wanted = Wanted { sandbox: of_one.then(|| sandbox.clone()), ..Wanted::default() };
        let live = tokio::time::timeout(SOON, follow(app, caller, wanted)).await;
        let mut live = pin!(live.expect("it begins").unwrap());
        let begun = arrivals.number();
        assert!(begun <= BEFORE + 2, "it looks for the sandbox and for what was there, not at what comes");
        let mut seen = BTreeSet::new();
        let missing = |seen: &BTreeSet<String>| {
            let ids = arrivals.ids.lock().unwrap();
            let due = ids[begun..].iter().filter(|id| !of_one || id.starts_with(&sandbox));
            ids.len() < BEFORE + ARRIVING || due.into_iter().any(|id| !seen.contains(id))
        };
        while missing(&seen) {
            let event = tokio::time::timeout(SOON, live.next()).await.expect("an event in time").unwrap();
            assert!(!arrivals.ids.lock().unwrap()[..BEFORE].contains(&event.id), "{} was before", event.id);
            assert!(seen.insert(event.id), "each comes once");
        }
        store.write(|tx| event::remove_before(tx, i64::MAX)).await.unwrap();
    }
}
