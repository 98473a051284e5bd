//! Every operation of the document once, successfully: the document, the router and what is exercised are one
//! set.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use roost_scheduler::http::document;
use serde_json::{Value, json};

use crate::engines::on_both;
use crate::world::{Answer, World, operations};

/// Calls operations and notes which.
struct Tour {
    world: World,
    seen: BTreeSet<String>,
}

impl Tour {
    /// `template` is the path as the document has it; `path` the same with its parameters filled in.
    async fn go(
        &mut self,
        method: &str,
        template: &str,
        path: &str,
        body: Option<Value>,
        status: u16,
    ) -> Answer {
        self.seen.insert(format!("{method} {template}"));
        let answer = self.world.call(method, path, body).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        answer
    }

    /// The same where the path has no parameter but `{id}`.
    async fn at(
        &mut self,
        method: &str,
        template: &str,
        id: &str,
        body: Option<Value>,
        status: u16,
    ) -> Answer {
        let path = template.replace("{id}", id);
        self.go(method, template, &path, body, status).await
    }
}

#[test]
fn every_documented_operation_works_as_documented() {
    on_both(|store| async move { take(World::on(store).await).await });
}

async fn take(world: World) {
    let mut tour = Tour { world, seen: BTreeSet::new() };
    let id = sandboxes(&mut tour).await;
    commands(&mut tour, &id).await;
    files(&mut tour, &id).await;
    previews(&mut tour, &id).await;
    secrets(&mut tour, &id).await;
    tenant(&mut tour).await;
    reports(&mut tour, &id).await;
    tour.at("DELETE", "/sandboxes/{id}", &id, None, 202).await;
    let documented: BTreeSet<String> =
        operations().into_iter().map(|(method, path)| format!("{method} {path}")).collect();
    assert_eq!(tour.seen, documented);
}

async fn sandboxes(tour: &mut Tour) -> String {
    let body = json!({
        "name": "Brand Refresh", "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 512, "tags": ["a"],
        "metadata": { "plan": "pro" }, "external_user_id": "user_42", "external_workspace_id": "clinic1",
    });
    let made = tour.go("POST", "/sandboxes", "/sandboxes?wait=20", Some(body), 201).await.data();
    let id = made["id"].as_str().unwrap().to_owned();
    tour.go("GET", "/sandboxes", "/sandboxes", None, 200).await;
    tour.at("GET", "/sandboxes/{id}", &id, None, 200).await;
    tour.go("GET", "/sandboxes/by-name/{name}", "/sandboxes/by-name/Brand%20Refresh", None, 200).await;
    tour.at("PATCH", "/sandboxes/{id}", &id, Some(json!({ "name": "Renamed" })), 200).await;
    tour.at("PATCH", "/sandboxes/{id}/tags", &id, Some(json!({ "tags": ["x"] })), 200).await;
    tour.at("POST", "/sandboxes/{id}/extend", &id, None, 200).await;
    tour.at("POST", "/sandboxes/{id}/pause", &id, Some(json!({})), 200).await;
    tour.at("POST", "/sandboxes/{id}/resume", &id, Some(json!({})), 200).await;
    tour.at("POST", "/sandboxes/{id}/stop", &id, None, 200).await;
    tour.at("POST", "/sandboxes/{id}/start", &id, None, 200).await;
    tour.at("GET", "/sandboxes/{id}/readiness", &id, None, 200).await;
    let stream = tour.at("GET", "/sandboxes/{id}/readiness/stream", &id, None, 200).await.text();
    assert!(stream.contains("event: ready\n") && stream.ends_with("\n\n"), "{stream}");
    tour.at("PUT", "/sandboxes/{id}/env", &id, Some(json!({ "vars": [{ "key": "A", "value": "1" }] })), 200)
        .await;
    tour.at("GET", "/sandboxes/{id}/env", &id, None, 200).await;
    tour.go("DELETE", "/sandboxes/{id}/env/{key}", &format!("/sandboxes/{id}/env/A"), None, 204).await;
    id
}

async fn commands(tour: &mut Tour, id: &str) {
    let echo = Some(json!({ "command": "echo hello" }));
    tour.at("POST", "/sandboxes/{id}/exec", id, echo.clone(), 200).await;
    tour.at("POST", "/sandboxes/{id}/exec/stream", id, echo.clone(), 200).await;
    tour.at("POST", "/sandboxes/{id}/commands", id, echo.clone(), 200).await;
    tour.at("GET", "/sandboxes/{id}/commands", id, None, 200).await;
    let started =
        tour.at("POST", "/sandboxes/{id}/processes", id, Some(json!({ "command": "sleep 60" })), 201).await;
    tour.at("GET", "/sandboxes/{id}/processes", id, None, 200).await;
    let pid = started.data()["pid"].as_u64().unwrap();
    let at = |rest: &str| format!("/sandboxes/{id}{rest}").replace("{pid}", &pid.to_string());
    for template in ["/commands/{pid}", "/commands/{pid}/logs", "/processes/{pid}", "/processes/{pid}/logs"] {
        tour.go("GET", &format!("/sandboxes/{{id}}{template}"), &at(template), None, 200).await;
    }
    let kill = Some(json!({ "signal": "TERM" }));
    tour.go("POST", "/sandboxes/{id}/commands/{pid}/kill", &at("/commands/{pid}/kill"), kill, 200).await;
    tour.go("GET", "/sandboxes/{id}/processes/{pid}/stream", &at("/processes/{pid}/stream"), None, 200).await;
    tour.go("DELETE", "/sandboxes/{id}/processes/{pid}", &at("/processes/{pid}"), None, 204).await;
}

async fn files(tour: &mut Tour, id: &str) {
    let content = STANDARD.encode("hello");
    let file = json!({ "path": "/workspace/a.txt", "content_base64": content });
    tour.at("POST", "/sandboxes/{id}/fs/write", id, Some(file.clone()), 200).await;
    let legacy = json!({ "path": "/workspace/b.txt", "content": content });
    tour.at("POST", "/sandboxes/{id}/files", id, Some(legacy), 200).await;
    tour.at("POST", "/sandboxes/{id}/fs/write-many", id, Some(json!({ "files": [file] })), 200).await;
    tour.at("POST", "/sandboxes/{id}/files/write-many", id, Some(json!({ "files": [] })), 200).await;
    let path = format!("/sandboxes/{id}/fs/download?path=/workspace/a.txt");
    let read = tour.go("GET", "/sandboxes/{id}/fs/download", &path, None, 200).await;
    assert_eq!(read.bytes, "hello");
    let path = format!("/sandboxes/{id}/files/workspace/b.txt");
    let read = tour.go("GET", "/sandboxes/{id}/files/{path}", &path, None, 200).await;
    assert_eq!(read.bytes, "hello");
    for template in ["/sandboxes/{id}/fs/stat", "/sandboxes/{id}/files/stat"] {
        tour.at("POST", template, id, Some(json!({ "path": "/workspace/a.txt" })), 200).await;
    }
    tour.at("GET", "/sandboxes/{id}/files", id, None, 200).await;
    tour.at("GET", "/sandboxes/{id}/files/tree", id, None, 200).await;
    tour.at("GET", "/sandboxes/{id}/files/watch", id, None, 200).await;
}

async fn previews(tour: &mut Tour, id: &str) {
    tour.at("POST", "/sandboxes/{id}/expose", id, Some(json!({ "port": 8080 })), 200).await;
    let made =
        tour.at("POST", "/sandboxes/{id}/previews", id, Some(json!({ "port": 3000 })), 201).await.data();
    let preview = made["id"].as_str().unwrap().to_owned();
    tour.at("GET", "/sandboxes/{id}/previews", id, None, 200).await;
    let (one, path) =
        ("/sandboxes/{id}/previews/{preview_id}", format!("/sandboxes/{id}/previews/{preview}"));
    tour.go("GET", one, &path, None, 200).await;
    tour.go("PATCH", one, &path, Some(json!({ "name": "app" })), 200).await;
    for (template, path) in [
        (format!("{one}/share"), format!("{path}/share")),
        ("/previews/{preview_id}/share".to_owned(), format!("/previews/{preview}/share")),
    ] {
        tour.go("POST", &template, &path, Some(json!({ "ttl_seconds": 900 })), 201).await;
        tour.go("GET", &template, &path, None, 200).await;
        tour.go("DELETE", &template, &path, None, 204).await;
    }
    tour.at(
        "POST",
        "/sandboxes/{id}/preview-token",
        id,
        Some(json!({ "expires_in": 900, "scope": "read" })),
        201,
    )
    .await;
    tour.go("DELETE", one, &path, None, 204).await;
}

async fn secrets(tour: &mut Tour, id: &str) {
    let name = "OPENAI_API_KEY";
    let body = json!({ "name": name, "value": "sk-0123456789abcdef", "expose_as_env": name });
    let secret = tour.go("POST", "/egress/secrets", "/egress/secrets", Some(body), 201).await.data();
    let secret = secret["id"].as_str().unwrap().to_owned();
    tour.go("GET", "/egress/secrets", "/egress/secrets", None, 200).await;
    tour.at("GET", "/egress/secrets/{id}", &secret, None, 200).await;
    tour.at("PATCH", "/egress/secrets/{id}", &secret, Some(json!({ "enabled": true })), 200).await;
    let body = json!({ "secret_id": secret, "resource_id": id, "resource_type": "sandbox" });
    let binding = tour.go("POST", "/egress/bindings", "/egress/bindings", Some(body), 201).await.data();
    tour.go("GET", "/egress/bindings", "/egress/bindings", None, 200).await;
    tour.at("GET", "/sandboxes/{id}/secrets/resolution", id, None, 200).await;
    tour.at("DELETE", "/egress/bindings/{id}", binding["id"].as_str().unwrap(), None, 204).await;
    tour.at("DELETE", "/egress/secrets/{id}", &secret, None, 204).await;
}

async fn tenant(tour: &mut Tour) {
    let key = tour.go("POST", "/api-keys", "/api-keys", Some(json!({ "name": "ci" })), 201).await.data();
    let key = key["id"].as_str().unwrap().to_owned();
    tour.go("GET", "/api-keys", "/api-keys", None, 200).await;
    tour.at("GET", "/api-keys/{id}", &key, None, 200).await;
    tour.at("PATCH", "/api-keys/{id}", &key, Some(json!({ "name": "cd" })), 200).await;
    let rotated = tour.at("POST", "/api-keys/{id}/rotate", &key, None, 201).await.data();
    tour.at("DELETE", "/api-keys/{id}", rotated["id"].as_str().unwrap(), None, 204).await;
    tour.go("GET", "/whoami", "/whoami", None, 200).await;
    let made =
        tour.go("POST", "/workspaces", "/workspaces", Some(json!({ "name": "Team" })), 201).await.data();
    tour.go("GET", "/workspaces", "/workspaces", None, 200).await;
    tour.at("GET", "/workspaces/{id}", made["id"].as_str().unwrap(), None, 200).await;
    let made = tour.go("POST", "/projects", "/projects", Some(json!({ "name": "Site" })), 201).await.data();
    tour.go("GET", "/projects", "/projects", None, 200).await;
    tour.at("GET", "/projects/{id}", made["id"].as_str().unwrap(), None, 200).await;
    quotas(tour, made["workspace_id"].as_str().unwrap(), made["id"].as_str().unwrap()).await;
    tour.go("GET", "/settings", "/settings", None, 200).await;
    let change = json!({ "previews": { "frame_ancestors": ["https://app.cliniciq.com"] } });
    tour.go("PUT", "/settings", "/settings", Some(change.clone()), 200).await;
    tour.go("GET", "/tenant/settings", "/tenant/settings", None, 200).await;
    tour.go("PATCH", "/tenant/settings", "/tenant/settings", Some(change), 200).await;
    tour.go("GET", "/sandbox-templates", "/sandbox-templates", None, 200).await;
    tour.at("GET", "/sandbox-templates/{id}", "miosa-sandbox", None, 200).await;
    tour.go("GET", "/templates", "/templates", None, 200).await;
}

async fn quotas(tour: &mut Tour, workspace: &str, project: &str) {
    for (template, path) in [
        ("/quotas/external/{external_user_id}", "/quotas/external/dr_smith@clinic1.example".to_owned()),
        (
            "/quotas/external-workspaces/{external_workspace_id}",
            "/quotas/external-workspaces/a%2Fb".to_owned(),
        ),
        ("/workspaces/{id}/quota", format!("/workspaces/{workspace}/quota")),
        ("/projects/{id}/quota", format!("/projects/{project}/quota")),
        ("/tenant/quota", "/tenant/quota".to_owned()),
    ] {
        tour.go("PUT", template, &path, Some(json!({ "max_sandboxes": 5, "max_storage_gb": 10 })), 200).await;
        let read = tour.go("GET", template, &path, None, 200).await.data();
        assert_eq!((read["max_sandboxes"].as_u64(), read["max_storage_gb"].as_u64()), (Some(5), Some(10)));
        tour.go("DELETE", template, &path, None, 204).await;
    }
}

async fn reports(tour: &mut Tour, id: &str) {
    tour.go("GET", "/usage", "/usage?group_by=external_user_id&period=7d", None, 200).await;
    tour.go("GET", "/usage/summary", "/usage/summary", None, 200).await;
    tour.at("GET", "/sandboxes/{id}/usage", id, None, 200).await;
    tour.go("GET", "/audit-log", "/audit-log", None, 200).await;
    tour.go("GET", "/egress/audit", "/egress/audit?since=7d", None, 200).await;
    let first = crate::events::first_event(&tour.world, id).await;
    for (template, path) in [
        ("/sandboxes/{id}/events", format!("/sandboxes/{id}/events")),
        ("/events/stream", "/events/stream".to_owned()),
    ] {
        tour.seen.insert(format!("GET {template}"));
        tour.world.read_stream(&path, &[("last-event-id", &first)], |text| text.contains("\n\n")).await;
    }
    let event = crate::usage::plant_egress_row(&tour.world, id).await;
    tour.at("GET", "/egress/audit/{id}", &event, None, 200).await;
}

/// The committed document is the generated one. `ROOST_WRITE_OPENAPI=1` writes it.
#[test]
fn the_committed_document_is_the_routers() {
    let generated = serde_json::to_string_pretty(&document()).unwrap() + "\n";
    if std::env::var_os("ROOST_WRITE_OPENAPI").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/api/openapi.json");
        std::fs::write(path, &generated).unwrap();
        return;
    }
    let same = roost_api::OPENAPI_JSON == generated;
    assert!(
        same,
        "crates/api/openapi.json is not what the router has: run this test with ROOST_WRITE_OPENAPI=1"
    );
}
