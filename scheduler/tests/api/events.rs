//! Event streams: what happens arrives, once, and a client that comes back misses nothing.

use roost_scheduler::store::event;
use serde_json::{Value, json};

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
