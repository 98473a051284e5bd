//! Sandboxes: names and slugs, labels, lists, states, commands, files.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::host::Mood;
use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn names_become_slugs_and_only_chosen_slugs_can_conflict() {
    let world = World::start().await;
    let first = world.sandbox(json!({ "name": "Brand Refresh 2026" })).await;
    assert_eq!(
        (first["slug"].as_str(), first["name"].as_str()),
        (Some("brand-refresh-2026"), Some("Brand Refresh 2026"))
    );
    let second = world.sandbox(json!({ "name": "Brand Refresh 2026" })).await;
    assert!(second["slug"].as_str().unwrap().starts_with("brand-refresh-2026-"), "{second}");
    let taken = world.post("/sandboxes", json!({ "slug": "brand-refresh-2026" })).await.expect(409);
    assert_eq!(
        (taken.code().as_str(), &taken.json()["error"]["details"]["within"]),
        ("slug_conflict", &json!("workspace"))
    );
    // Another workspace of the tenant shares the preview domain.
    let body = json!({ "slug": "brand-refresh-2026", "external_workspace_id": "other" });
    let taken = world.post("/sandboxes", body).await.expect(409);
    assert_eq!(taken.json()["error"]["details"]["within"], "preview domain");
    let path = format!("/sandboxes/{}", second["id"].as_str().unwrap());
    let clash = world.patch(&path, json!({ "slug": "brand-refresh-2026" })).await.expect(409);
    assert_eq!(clash.code(), "slug_conflict");
    let renamed = world.patch(&path, json!({ "slug": "another" })).await.expect(200).data();
    assert_eq!(renamed["slug"], "another");
    assert_eq!(world.get("/sandboxes/another").await.expect(200).data()["id"], second["id"]);
    // A destroyed sandbox gives its slug back.
    world.delete(&path).await.expect(202);
    world.post("/sandboxes", json!({ "slug": "another" })).await.expect(202);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_kept_byte_for_byte_and_make_workspaces_and_projects() {
    let world = World::start().await;
    let labels = json!({
        "external_user_id": "dr_smith@clinic1.example", "external_workspace_id": "Clinic 1",
        "external_project_id": "a/b?c#d",
    });
    let one = world.sandbox(labels.clone()).await;
    let two = world.sandbox(labels.clone()).await;
    for (field, value) in labels.as_object().unwrap() {
        assert_eq!(&one[field], value);
    }
    assert_eq!((&one["workspace_id"], &one["project_id"]), (&two["workspace_id"], &two["project_id"]));
    let plain = world.sandbox(json!({})).await;
    assert_ne!(plain["workspace_id"], one["workspace_id"]);
    assert_eq!(plain["external_user_id"], Value::Null);
    let workspaces = world.get("/workspaces").await.data();
    let made =
        workspaces.as_array().unwrap().iter().find(|row| row["id"] == one["workspace_id"]).unwrap().clone();
    assert_eq!(
        (made["slug"].as_str(), made["external_workspace_id"].as_str()),
        (Some("clinic-1"), Some("Clinic 1"))
    );
    let again = world
        .post("/workspaces", json!({ "name": "x", "external_workspace_id": "Clinic 1" }))
        .await
        .expect(200);
    assert_eq!((again.json()["reused"].as_bool(), &again.data()["id"]), (Some(true), &one["workspace_id"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_are_exact_and_tags_are_all_of_them() {
    let world = World::start().await;
    world.sandbox(json!({ "external_user_id": "a", "tags": ["x", "y"] })).await;
    world.sandbox(json!({ "external_user_id": "A", "tags": ["x"] })).await;
    world.sandbox(json!({ "external_workspace_id": "w", "external_project_id": "p" })).await;
    let count = async |query: &str| {
        world.get(&format!("/sandboxes?{query}")).await.expect(200).data().as_array().unwrap().len()
    };
    for (query, expected) in [
        ("", 3),
        ("external_user_id=a", 1),
        ("external_user_id=A", 1),
        ("external_user_id=b", 0),
        ("tags=x", 2),
        ("tags=x,y", 1),
        ("tags=y,z", 0),
        ("external_workspace_id=w", 1),
        ("external_project_id=p", 1),
        ("state=running", 3),
        ("state=paused", 0),
        ("state=paused,running", 3),
        ("state=destroyed", 0),
        ("external_workspace_id=W", 0),
    ] {
        assert_eq!(count(query).await, expected, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_paging_all_come_back_and_pages_lose_nothing() {
    let world = World::start().await;
    for _ in 0..25 {
        world
            .post("/sandboxes", json!({ "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 512 }))
            .await
            .expect(202);
    }
    let all = world.get("/sandboxes").await.expect(200).json();
    assert_eq!((all["data"].as_array().unwrap().len(), all.get("page")), (25, None));
    let (mut seen, mut cursor) = (std::collections::BTreeSet::new(), String::new());
    loop {
        let page = world.get(&format!("/sandboxes?limit=10{cursor}")).await.expect(200).json();
        seen.extend(page["data"].as_array().unwrap().iter().map(|row| row["id"].to_string()));
        match page["page"]["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 25);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_from_creating_to_gone() {
    let world = World::start().await;
    world.host.set_mood(Mood::Slow);
    let began = Instant::now();
    let body = json!({ "cpu_count": 1, "memory_mb": 256, "auto_resume": false });
    let made = world.post("/sandboxes?wait=1", body).await.expect(202).data();
    assert!(began.elapsed() >= Duration::from_secs(1) && made["state"] == "creating", "{made}");
    let id = made["id"].as_str().unwrap().to_owned();
    let path = format!("/sandboxes/{id}");
    let early = world.post(&format!("{path}/exec"), json!({ "command": "true" })).await;
    assert_eq!((early.status, early.code().as_str()), (409, "SANDBOX_STARTING"));
    assert_eq!(early.json()["error"]["retryable"], true);
    assert_eq!(world.get(&format!("{path}/readiness")).await.json()["ready"], false);
    world.host.set_mood(Mood::Prompt);
    world.app.fleet.ensure(&id).await.unwrap();
    let running = world.get(&path).await.data();
    assert_eq!((running["state"].as_str(), running["ready"].as_bool()), (Some("running"), Some(true)));
    assert!(running["ready_at"].is_string() && running["started_at"].is_string());
    let paused = world.post(&format!("{path}/pause"), json!({})).await.expect(200).data();
    assert_eq!(paused["state"], "paused");
    let asleep = world.post(&format!("{path}/exec"), json!({ "command": "true" })).await;
    assert_eq!((asleep.status, asleep.code().as_str()), (409, "RESOURCE_STATE"));
    world.post(&format!("{path}/pause"), json!({})).await.expect(200);
    world.post(&format!("{path}/resume"), json!({})).await.expect(200);
    assert_eq!(world.audited("sandbox.paused").await.len(), 1);
    world.delete(&path).await.expect(202);
    world.until(&path, |answer| answer.data()["state"] == "destroyed").await;
    world.delete(&path).await.expect(204);
    world.post(&format!("{path}/exec"), json!({ "command": "true" })).await.expect(404);
    world.post(&format!("{path}/resume"), json!({})).await.expect(404);
    assert_eq!(world.get("/sandboxes").await.data(), json!([]));
    assert_eq!(world.get("/sandboxes?include_destroyed=true").await.data().as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sandbox_wakes_for_those_who_may_change_it() {
    let world = World::start().await;
    let id = world.sandbox_id().await;
    let path = format!("/sandboxes/{id}");
    world.post(&format!("{path}/pause"), json!({})).await.expect(200);
    let reader = world.key_with(&["sandboxes:read"], None).await;
    let asleep = world.call_as(&reader, "GET", &format!("{path}/files"), None, &[]).await.expect(409);
    assert_eq!(asleep.code(), "RESOURCE_STATE");
    let answer =
        world.post(&format!("{path}/exec"), json!({ "command": "echo awake" })).await.expect(200).json();
    assert_eq!(answer["stdout"], "awake\n");
    assert_eq!(world.get(&path).await.data()["state"], "running");
    assert_eq!(world.audited("sandbox.resumed").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_says_so() {
    let world = World::start().await;
    world.host.set_mood(Mood::Broken);
    let made = world
        .post("/sandboxes?wait=20", json!({ "cpu_count": 1, "memory_mb": 256 }))
        .await
        .expect(201)
        .data();
    assert_eq!(
        (made["state"].as_str(), made["state_reason"].as_str()),
        (Some("error"), Some("start_failed"))
    );
    let stream =
        world.get(&format!("/sandboxes/{}/readiness/stream", made["id"].as_str().unwrap())).await.text();
    assert!(stream.contains("event: timeout\n"), "{stream}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_host_is_told_is_what_was_asked_for() {
    let world = World::start().await;
    let body = json!({ "env": { "MODE": "test" }, "timeout_sec": 600, "name": "told" });
    let made = world.sandbox(body).await;
    let ensured = world.host.ensured.lock().unwrap();
    let spec = ensured.last().unwrap().spec.clone().unwrap();
    assert_eq!((spec.vcpus, spec.memory_mib, spec.disk_mib), (1, 256, 512));
    assert_eq!((spec.template.as_str(), spec.host_name.as_str()), ("miosa-sandbox", "told"));
    assert_eq!(made["timeout_sec"], 600);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_return_their_result_whatever_it_is() {
    let world = World::start().await;
    let id = world.sandbox_id().await;
    let exec =
        async |body: Value| world.post(&format!("/sandboxes/{id}/exec"), body).await.expect(200).json();
    let failed = exec(json!({ "command": "echo out; echo err >&2; exit 3" })).await;
    assert_eq!(
        (&failed["stdout"], &failed["stderr"], &failed["exit_code"]),
        (&json!("out\n"), &json!("err\n"), &json!(3))
    );
    let argv = exec(json!({ "command": ["printf", "%s|", "a b", "$HOME"] })).await;
    assert_eq!(argv["stdout"], "a b|$HOME|");
    let piped = exec(json!({ "command": "cat", "stdin": "x".repeat(200_000) })).await;
    assert_eq!(piped["stdout"].as_str().unwrap().len(), 200_000);
    let slow = exec(json!({ "command": "sleep 30", "timeout": 0.2 })).await;
    assert_eq!(slow["timed_out"], true);
    let began = Instant::now();
    let background = exec(json!({ "command": "seq 20000; (sleep 5 &)" })).await;
    assert!(began.elapsed() < Duration::from_secs(4));
    assert_eq!(background["stdout"].as_str().unwrap().lines().count(), 20_000);
    let large = exec(json!({ "command": "head -c 9000000 /dev/zero | tr '\\0' x" })).await;
    assert_eq!(
        (large["truncated"].as_bool(), large["stdout"].as_str().unwrap().len()),
        (Some(true), 8 * 1024 * 1024)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_reach_commands_and_the_request_wins() {
    let world = World::start().await;
    let id = world.sandbox(json!({ "env": { "A": "made", "B": "made" } })).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let vars = json!({ "vars": [{ "key": "B", "value": "set" }, { "key": "C", "value": "set" }] });
    let listed = world.put(&format!("/sandboxes/{id}/env"), vars).await.expect(200).data();
    assert_eq!(listed.as_array().unwrap().len(), 3);
    let body = json!({ "command": "echo $A $B $C $D", "env": { "C": "asked", "D": "asked" } });
    let answer = world.post(&format!("/sandboxes/{id}/exec"), body).await.json();
    assert_eq!(answer["stdout"], "made set asked asked\n");
    world.delete(&format!("/sandboxes/{id}/env/A")).await.expect(204);
    let answer = world.post(&format!("/sandboxes/{id}/exec"), json!({ "command": "echo [$A]" })).await.json();
    assert_eq!(answer["stdout"], "[]\n");
}

/// Events and their data, as the SDK's reader takes a stream apart.
fn frames(text: &str) -> Vec<(String, Value)> {
    let mut frames = Vec::new();
    for frame in text.split_terminator("\n\n") {
        let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if let (Some(event), Some(data)) = (field("event:"), field("data:")) {
            frames.push((event.to_owned(), serde_json::from_str(data).unwrap()));
        }
    }
    frames
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_the_exit_and_hold_every_character() {
    let world = World::start().await;
    let id = world.sandbox_id().await;
    let command = "printf 'a\\303\\251\\342\\200\\250b\\302\\205c\\n'; echo err >&2; printf rest; exit 4";
    let answer =
        world.post(&format!("/sandboxes/{id}/exec/stream"), json!({ "command": command })).await.expect(200);
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let text = answer.text();
    assert!(text.ends_with("\n\n"), "{text:?}");
    assert!(!text.contains(['\u{2028}', '\u{85}', '\u{2029}']));
    let frames = frames(&text);
    let of = |event: &str| {
        frames
            .iter()
            .filter(|(name, _)| name == event)
            .map(|(_, data)| data["line"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(of("stdout"), [json!("aé\u{2028}b\u{85}c"), json!("rest")]);
    assert_eq!(of("stderr"), [json!("err")]);
    let (last, exit) = frames.last().unwrap();
    assert_eq!((last.as_str(), &exit["exit_code"]), ("exit", &json!(4)));
}

#[tokio::test(flavor = "multi_thread")]
async fn detached_commands_are_found_read_and_ended() {
    let world = World::start().await;
    let id = world.sandbox_id().await;
    let body = json!({ "command": "seq 5; exec sleep 60", "detached": true, "name": "counter" });
    let started = world.post(&format!("/sandboxes/{id}/commands"), body).await.expect(201).data();
    let path = format!("/sandboxes/{id}/commands/{}", started["pid"]);
    let logs = world.until(&format!("{path}/logs?tail=2"), |answer| answer.json()["data"] == "4\n5\n").await;
    assert_eq!(logs.status, 200);
    assert_eq!(world.get(&path).await.data()["name"], "counter");
    let killed = world.post(&format!("{path}/kill"), json!({ "signal": "KILL" })).await;
    assert_eq!(killed.status, 200);
    let ended = world.until(&path, |answer| answer.data()["running"] == false).await.data();
    assert_eq!((ended["exit_code"].as_i64(), ended["signal"].as_u64()), (Some(137), Some(9)));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_in_and_come_out_unchanged() {
    let world = World::start().await;
    let id = world.sandbox_id().await;
    let bytes: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    let file = |path: &str| json!({ "path": path, "content_base64": STANDARD.encode(&bytes) });
    world.post(&format!("/sandboxes/{id}/fs/write"), file("/workspace/deep/er/data.json")).await.expect(200);
    let read = world
        .get(&format!("/sandboxes/{id}/fs/download?path=/workspace/deep/er/data.json"))
        .await
        .expect(200);
    assert_eq!(read.bytes, bytes);
    assert_eq!(read.headers["content-type"], "application/octet-stream");
    let stat = world
        .post(&format!("/sandboxes/{id}/fs/stat"), json!({ "path": "deep/er/data.json" }))
        .await
        .expect(200)
        .data();
    assert_eq!((stat["size"].as_u64(), stat["name"].as_str()), (Some(200_000), Some("data.json")));
    let many = json!({ "files": [
        { "path": "a.txt", "content_base64": STANDARD.encode("a") },
        { "path": "b.txt", "content_base64": "***" },
        { "path": "/workspace/deep", "content_base64": "" },
    ] });
    let result = world.post(&format!("/sandboxes/{id}/fs/write-many"), many).await.expect(200).json();
    assert_eq!(result["written"], json!([{ "path": "a.txt", "size_bytes": 1 }]));
    let failed: Vec<&str> =
        result["failed"].as_array().unwrap().iter().map(|row| row["path"].as_str().unwrap()).collect();
    assert_eq!(failed, ["b.txt", "/workspace/deep"]);
    let tree =
        world.get(&format!("/sandboxes/{id}/files/tree?path=/workspace&depth=3")).await.expect(200).json();
    assert_eq!(tree["children"][1]["children"][0]["children"][0]["path"], "/workspace/deep/er/data.json");
    let listed = world.get(&format!("/sandboxes/{id}/files?path=/workspace")).await.json();
    let names: Vec<&str> =
        listed["entries"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a.txt", "deep"]);
    let watched = frames(&world.get(&format!("/sandboxes/{id}/files/watch?path=/workspace")).await.text());
    assert_eq!(watched[0].1["event"], "created");
}
