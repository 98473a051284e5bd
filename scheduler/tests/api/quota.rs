//! Quotas at admission, through the API: counted once, given back, never exceeded by calls at once.

use std::sync::Arc;

use roost_scheduler::store::quota::{self, Quota};
use serde_json::{Value, json};

use crate::engines::on_both;
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

#[test]
fn calls_at_once_cannot_exceed_a_quota() {
    on_both(|store| async move { call_at_once(Arc::new(World::on(store).await)).await });
}

async fn call_at_once(world: Arc<World>) {
    limit(&world, "external_user", "u1", |row| row.max_sandboxes = Some(10)).await;
    let calls: Vec<_> = (0..64)
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
                assert_eq!((&details["limit"], &details["current"]), (&json!(10), &json!(10)));
                refused += 1;
            }
        }
    }
    assert_eq!((made, refused), (10, 54));
    let listed = world.get("/sandboxes?external_user_id=u1").await.expect(200).data();
    assert_eq!(listed.as_array().unwrap().len(), 10);
    let subject =
        quota::Subject { tenant_id: world.tenant.clone(), subject: "external_user", subject_id: "u1".into() };
    let used = world.app.store.read(move |tx| quota::find_use(tx, &subject)).await.unwrap().unwrap();
    assert_eq!((used.sandboxes, used.memory_mib), (10, 10 * 256));
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
async fn limits_set_through_the_api_hold_at_once_and_show_what_is_in_use() {
    let world = World::start().await;
    let path = "/quotas/external/dr_smith@clinic1.example";
    world.put(path, json!({ "max_sandboxes": 1 })).await.expect(200);
    world.put(path, json!({ "max_concurrent": 4 })).await.expect(200);
    world.sandbox(small("dr_smith@clinic1.example")).await;
    let quota = world.get(path).await.expect(200).data();
    assert_eq!((quota["max_sandboxes"].as_u64(), quota["max_concurrent"].as_u64()), (Some(1), Some(4)));
    assert_eq!(
        (quota["usage"]["sandboxes"].as_u64(), quota["usage"]["storage_gb"].as_f64()),
        (Some(1), Some(0.5))
    );
    let refused = world.post("/sandboxes", small("dr_smith@clinic1.example")).await.expect(403);
    assert_eq!(refused.code(), "quota_exceeded");
    world.delete(path).await.expect(204);
    world.delete(path).await.expect(204);
    world.sandbox(small("dr_smith@clinic1.example")).await;
    assert_eq!(world.get(path).await.data()["max_sandboxes"], Value::Null);
    let set = world.audited("quota.set").await;
    assert_eq!((set.len(), set[0]["resource_id"].as_str()), (2, Some("dr_smith@clinic1.example")));
    let workspace = world.post("/workspaces", json!({ "name": "w" })).await.data();
    let confined = world.key_with(&["admin"], workspace["id"].as_str()).await;
    world.call_as(&confined, "PUT", path, Some(json!({})), &[]).await.expect(403);
}

#[tokio::test(flavor = "multi_thread")]
async fn fail_fast_names_the_lack_of_room() {
    let world = World::with_memory(128).await;
    let mut body = small("u1");
    body["fail_fast"] = json!(true);
    let full = world.post("/sandboxes", body).await.expect(503);
    let retryable = full.json()["error"]["retryable"].as_bool();
    assert_eq!((full.code().as_str(), retryable), ("no_ready_machine", Some(false)));
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
