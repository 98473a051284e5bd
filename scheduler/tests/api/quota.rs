//! Quotas at admission, through the API: counted once, given back, never exceeded by calls at once.

use std::sync::Arc;

use roost_scheduler::store::quota::{self, Quota};
use serde_json::{Value, json};

use crate::world::World;

async fn limit(world: &World, subject: &str, subject_id: &str, change: impl Fn(&mut Quota) + Send + 'static) {
    let mut row = Quota {
        tenant_id: world.tenant.clone(),
        subject: subject.into(),
        subject_id: subject_id.into(),
        max_sandboxes: None,
        max_concurrent: None,
        max_vcpus: None,
        max_memory_mib: None,
        max_disk_mib: None,
        max_credit_cents: None,
        updated_us: 1,
    };
    change(&mut row);
    world.app.store.write(move |tx| quota::set(tx, &row)).await.unwrap();
}

fn small(user: &str) -> Value {
    json!({ "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 512, "external_user_id": user })
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_at_once_cannot_exceed_a_quota() {
    let world = Arc::new(World::start().await);
    limit(&world, "external_user", "u1", |row| row.max_sandboxes = Some(3)).await;
    let calls: Vec<_> = (0..12)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move { world.post("/sandboxes", small("u1")).await })
        })
        .collect();
    let (mut made, mut refused) = (0, 0);
    for call in calls {
        let answer = call.await.unwrap();
        match answer.status {
            202 => made += 1,
            _ => {
                assert_eq!((answer.status, answer.code().as_str()), (403, "quota_exceeded"));
                let details = &answer.json()["error"]["details"];
                assert_eq!(
                    (&details["subject"], &details["quota"]),
                    (&json!("external_user u1"), &json!("max_sandboxes"))
                );
                assert_eq!((&details["limit"], &details["current"]), (&json!(3), &json!(3)));
                refused += 1;
            }
        }
    }
    assert_eq!((made, refused), (3, 9));
    world.post("/sandboxes", small("u2")).await.expect(202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sandbox_gives_back_what_runs_and_a_destroyed_one_the_rest() {
    let world = World::start().await;
    limit(&world, "tenant", &world.tenant.clone(), |row| row.max_concurrent = Some(1)).await;
    let id = world.sandbox(small("u1")).await["id"].as_str().unwrap().to_owned();
    assert_eq!(world.post("/sandboxes", small("u1")).await.expect(403).code(), "quota_exceeded");
    world.post(&format!("/sandboxes/{id}/pause"), json!({})).await.expect(200);
    let second = world.sandbox(small("u1")).await["id"].as_str().unwrap().to_owned();
    let blocked = world.post(&format!("/sandboxes/{id}/resume"), json!({})).await.expect(403);
    assert_eq!(blocked.code(), "quota_exceeded");
    for sandbox in [&id, &second] {
        world.delete(&format!("/sandboxes/{sandbox}")).await.expect(202);
        world.delete(&format!("/sandboxes/{sandbox}")).await;
    }
    world.until(&format!("/sandboxes/{second}"), |answer| answer.data()["state"] == "destroyed").await;
    let subject = quota::Subject {
        tenant_id: world.tenant.clone(),
        subject: "tenant",
        subject_id: world.tenant.clone(),
    };
    let used = world.app.store.read(move |tx| quota::find_use(tx, &subject)).await.unwrap().unwrap();
    assert_eq!(
        (used.sandboxes, used.concurrent, used.vcpus, used.memory_mib, used.disk_mib),
        (0, 0, 0, 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_create_leaves_nothing_behind() {
    let world = World::with_memory(256).await;
    let id = world.sandbox(small("u1")).await["id"].as_str().unwrap().to_owned();
    world.post("/sandboxes", small("u1")).await.expect(503);
    let subject = quota::Subject {
        tenant_id: world.tenant.clone(),
        subject: "tenant",
        subject_id: world.tenant.clone(),
    };
    let used = world.app.store.read(move |tx| quota::find_use(tx, &subject)).await.unwrap().unwrap();
    assert_eq!((used.sandboxes, used.memory_mib), (1, 256));
    assert_eq!(world.audited("sandbox.created").await.len(), 1);
    world.delete(&format!("/sandboxes/{id}")).await.expect(202);
    world.until(&format!("/sandboxes/{id}"), |answer| answer.data()["state"] == "destroyed").await;
    world.sandbox(small("u1")).await;
}
