//! Usage reports and the egress audit as tenants read them.

use roost_api::Timestamp;
use roost_domain::id::{EventId, ExecutionId};
use roost_scheduler::store::execution;
use roost_scheduler::store::sandbox;
use roost_scheduler::store::usage::{self as table, Delta};
use serde_json::{Value, json};

use crate::world::World;

const SECOND_US: i64 = 1_000_000;

/// One outbound call of a sandbox as its host ships it; its event id.
pub async fn plant_egress_row(world: &World, sandbox: &str) -> String {
    let now_us = world.app.now_us();
    let event_id = roost_daemon::ids::fresh::<EventId>().to_string();
    let intent = json!({
        "record": "intent", "event_id": event_id, "time_us": now_us, "sandbox": sandbox,
        "execution": "exe_01d39zy06fgsctvn4t2v9pkhfz", "scheme": "https",
        "host": "api.openai.com", "port": 443, "method": "GET", "path": "/v1/models",
        "secrets": [{ "env": "OPENAI_API_KEY", "resolved_by": "external_user", "swapped": true }],
    });
    let done = json!({
        "record": "completion", "event_id": event_id, "time_us": now_us + 5, "action": "allow",
        "status_code": 401, "duration_us": 5000, "bytes_in": 10, "bytes_out": 20,
    });
    let lines = format!("{intent}\n{done}\n");
    let taken =
        world.app.audit.ingest(&world.app.store, &world.host.id, lines.as_bytes(), now_us).await.unwrap();
    assert_eq!((taken.records, taken.dropped), (2, 0), "{lines}");
    event_id
}

/// A minute of a running sandbox, ending now.
async fn plant_minute(world: &World, sandbox_id: &str) {
    let (id, now_us) = (sandbox_id.to_owned(), world.app.now_us());
    let execution_id = roost_daemon::ids::fresh::<ExecutionId>().to_string();
    let planted = world.app.store.write(move |tx| {
        let owner = sandbox::find_any(tx, &id)?.unwrap();
        let from_us = now_us - 60 * SECOND_US;
        let row = execution::Execution {
            id: execution_id.clone(),
            sandbox_id: owner.id.clone(),
            tenant_id: owner.tenant_id.clone(),
            host_id: owner.host_id.clone().unwrap(),
            placement_epoch: 1,
            started_us: from_us,
            ended_us: Some(now_us),
            end_cause: "stopped".into(),
        };
        execution::record(tx, &row)?;
        let delta = Delta {
            execution_id: execution_id.clone(),
            seq: 1,
            sandbox_id: owner.id.clone(),
            tenant_id: owner.tenant_id.clone(),
            from_us,
            to_us: now_us,
            wall_us: 60_000_000,
            vcpu_alloc_us: 60_000_000,
            mem_alloc_mib_us: 256 * 60_000_000,
            cpu_used_us: 1_000_000,
            mem_used_mib_us: 100 * 60_000_000,
            disk_mib_us: 512 * 60_000_000,
            snapshot_mib_us: 0,
            net_egress_bytes: 7,
            net_ingress_bytes: 9,
        };
        table::ingest(tx, &delta, &owner)
    });
    assert!(planted.await.unwrap());
}

async fn stopped(world: &World, extra: Value) -> String {
    let id = world.sandbox(extra).await["id"].as_str().unwrap().to_owned();
    world.post(&format!("/sandboxes/{id}/stop"), json!({})).await.expect(200);
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_add_up_to_the_total_and_labels_without_a_value_are_null() {
    let world = World::start().await;
    for extra in [json!({ "external_user_id": "a" }), json!({ "external_user_id": "b" }), json!({})] {
        let id = stopped(&world, extra).await;
        plant_minute(&world, &id).await;
    }
    let start = Timestamp::from_micros(world.app.now_us() - 3600 * SECOND_US);
    let report =
        world.get(&format!("/usage?group_by=external_user_id&start={start}")).await.expect(200).json();
    let results = report["results"].as_array().unwrap();
    let sum = |field: &str| results.iter().map(|row| row[field].as_f64().unwrap()).sum::<f64>();
    let mut keys: Vec<Value> = results.iter().map(|row| row["external_user_id"].clone()).collect();
    keys.sort_by_key(Value::to_string);
    assert_eq!(keys, [json!("a"), json!("b"), Value::Null]);
    for field in ["sandbox_seconds", "vcpu_seconds", "memory_gib_seconds", "egress_bytes"] {
        assert!((sum(field) - report["total"][field].as_f64().unwrap()).abs() < 1e-6, "{field}");
    }
    assert!((report["total"]["sandbox_seconds"].as_f64().unwrap() - 180.0).abs() < 1e-6);
    assert_eq!(report["total"]["egress_bytes"], 21);
    let one = world.get(&format!("/usage?external_user_id=a&start={start}")).await.json();
    assert!((one["total"]["sandbox_seconds"].as_f64().unwrap() - 60.0).abs() < 1e-6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_sandbox_is_in_the_numbers() {
    let world = World::start().await;
    let id = world.sandbox_id().await;
    let usage = world
        .until(&format!("/sandboxes/{id}/usage"), |answer| answer.data()["runtime_sec"].as_f64() > Some(0.0))
        .await;
    assert_eq!(usage.data()["state"], "running");
    let summary = world.get("/usage/summary").await.expect(200).data();
    assert!(summary["sandbox_seconds"].as_f64().unwrap() > 0.0, "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_egress_audit_shows_identity_credential_and_upstream_status() {
    let world = World::start().await;
    let sandbox =
        world.sandbox(json!({ "external_user_id": "user_42", "external_workspace_id": "clinic1" })).await;
    let id = sandbox["id"].as_str().unwrap();
    let event = plant_egress_row(&world, id).await;
    let path = "/egress/audit?since=7d&external_user_id=user_42";
    let rows = world.get(path).await.expect(200).data();
    let row = &rows.as_array().unwrap()[0];
    assert_eq!(row["id"], event.as_str());
    for (field, value) in [
        ("external_user_id", json!("user_42")),
        ("external_workspace_id", json!("clinic1")),
        ("resource_id", json!(id)),
        ("workspace_id", sandbox["workspace_id"].clone()),
        ("status_code", json!(401)),
        ("action", json!("allow")),
        ("secret_resolution", json!("external_user")),
        ("host", json!("api.openai.com")),
        ("path", json!("/v1/models")),
    ] {
        assert_eq!(row[field], value, "{field}");
    }
    assert_eq!(world.get("/egress/audit?external_user_id=User_42").await.data(), json!([]));
    assert_eq!(world.get("/egress/audit?host=other.example").await.data(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_pages_do_not_lose_rows() {
    let world = World::start().await;
    let id = world.sandbox_id().await;
    for _ in 0..7 {
        plant_egress_row(&world, &id).await;
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = world.get(&format!("/egress/audit?limit=3{cursor}")).await.expect(200).json();
        seen.extend(
            page["data"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()),
        );
        match page["page"]["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let unique: std::collections::BTreeSet<&String> = seen.iter().collect();
    assert_eq!((seen.len(), unique.len()), (7, 7));
}
