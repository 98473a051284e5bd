//! `Idempotency-Key`: one effect, the same answer for everybody who asks with the key.

use std::sync::Arc;

use roost_scheduler::params;
use serde_json::{Value, json};

use crate::engines::on_both;
use crate::world::{Answer, World};

fn small(name: &str) -> Value {
    json!({ "name": name, "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 512 })
}

async fn create(world: &World, key: &str, path: &str, body: Value) -> Answer {
    world.call_as(&world.key, "POST", path, Some(body), &[("idempotency-key", key)]).await
}

async fn count(world: &World) -> usize {
    world.get("/sandboxes").await.data().as_array().unwrap().len()
}

#[test]
fn calls_at_once_make_one_sandbox_and_get_one_answer() {
    on_both(|store| async move { call_at_once(Arc::new(World::on(store).await)).await });
}

async fn call_at_once(world: Arc<World>) {
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move { create(&world, "k1", "/sandboxes?wait=20", small("one")).await })
        })
        .collect();
    let mut ids = std::collections::BTreeSet::new();
    let mut bodies = std::collections::BTreeSet::new();
    let mut replayed = 0;
    for call in calls {
        let answer = call.await.unwrap().expect(201);
        ids.insert(answer.data()["id"].as_str().unwrap().to_owned());
        bodies.insert(answer.bytes.clone());
        replayed += usize::from(answer.headers.contains_key("idempotent-replayed"));
    }
    assert_eq!((ids.len(), bodies.len(), replayed, count(&world).await), (1, 1, 63, 1));
    assert_eq!(world.audited("sandbox.created").await.len(), 1);
}

/// Every operation that honours the key refuses it for another request, and forgets it when its time is over.
#[test]
fn a_key_is_for_one_request_until_it_is_forgotten() {
    on_both(|store| async move { reuse(World::on(store).await).await });
}

async fn reuse(world: World) {
    let id = world.sandbox_id().await;
    let at = |verb: &str| format!("/sandboxes/{id}/{verb}");
    let first = create(&world, "k1", "/sandboxes", small("one")).await.expect(202);
    for (path, body) in [
        ("/sandboxes".to_owned(), small("two")),
        (at("pause"), json!({})),
        (at("stop"), json!({})),
        (at("resume"), json!({})),
        (at("start"), json!({})),
    ] {
        let other = create(&world, "k1", &path, body).await;
        assert_eq!((other.status, other.code().as_str()), (409, "idempotency_key_reused"), "{path}");
        assert!(other.text().contains("use a new key"), "{}", other.text());
    }
    let again = create(&world, "k1", "/sandboxes", small("one")).await.expect(202);
    assert_eq!((again.bytes, count(&world).await), (first.bytes.clone(), 2));
    // Its time is over: what was kept under it no longer counts.
    let now_us = world.app.now_us();
    let gone = world.app.store.write(move |tx| {
        tx.execute("UPDATE idempotency SET expires_us = ?1, owner_until_us = ?1", params![now_us - 1])
    });
    assert_eq!(gone.await.unwrap(), 1);
    let fresh = create(&world, "k1", "/sandboxes", small("two")).await.expect(202);
    assert!(!fresh.headers.contains_key("idempotent-replayed"));
    assert_ne!(fresh.data()["id"], first.data()["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_request_under_the_same_key_is_refused() {
    let world = World::start().await;
    create(&world, "k1", "/sandboxes", small("one")).await.expect(202);
    let other = create(&world, "k1", "/sandboxes", small("two")).await;
    assert_eq!((other.status, other.code().as_str()), (409, "idempotency_key_reused"));
    create(&world, "k2", "/sandboxes", small("two")).await.expect(202);
    assert_eq!(count(&world).await, 2);
    for key in ["", &"k".repeat(256)] {
        assert_eq!(create(&world, key, "/sandboxes", small("x")).await.status, 422, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_the_answer_but_a_lack_of_room_is_not() {
    let world = World::with_memory(256).await;
    let refused = create(&world, "k1", "/sandboxes", json!({ "size": "huge" })).await;
    assert_eq!(refused.status, 422);
    let id = world.sandbox_id().await;
    let full = create(&world, "k2", "/sandboxes", small("two")).await;
    assert_eq!((full.status, full.code().as_str()), (503, "capacity_unavailable"));
    assert!(full.headers.contains_key("retry-after"));
    world.delete(&format!("/sandboxes/{id}")).await.expect(202);
    world.until(&format!("/sandboxes/{id}"), |answer| answer.data()["state"] == "destroyed").await;
    let again = create(&world, "k2", "/sandboxes", small("two")).await.expect(202);
    assert!(!again.headers.contains_key("idempotent-replayed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_leaves_a_finished_answer() {
    let world = Arc::new(World::start().await);
    let gone = {
        let world = world.clone();
        tokio::spawn(async move { create(&world, "k1", "/sandboxes?wait=20", small("one")).await })
    };
    tokio::task::yield_now().await;
    gone.abort();
    let _ = gone.await;
    let answer = create(&world, "k1", "/sandboxes?wait=20", small("one")).await.expect(201);
    assert_eq!(answer.data()["state"], "running");
    assert_eq!(count(&world).await, 1);
}
