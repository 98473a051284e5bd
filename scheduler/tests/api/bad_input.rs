//! Requests that cannot be served: the code each gets, and that it says what to do.

use axum::body::Body;
use http::Request;
use roost_scheduler::http::BASE;
use serde_json::{Value, json};

use crate::world::{World, operations};

/// method, path (`{id}` is a running sandbox, `{preview}` one of its previews), body, status, code, what is
/// named.
type Row = (&'static str, &'static str, Value, u16, &'static str, &'static str);

fn table() -> Vec<Row> {
    let long = "x".repeat(300);
    let wide = "é".repeat(129);
    let make = |body: Value| ("POST", "/sandboxes", body, 422, "VALIDATION_FAILED");
    let with =
        |(method, path, body, status, code): (&'static str, &'static str, Value, u16, &'static str),
         named| { (method, path, body, status, code, named) };
    vec![
        with(make(json!({ "size": "huge" })), "size"),
        with(make(json!({ "size": 5 })), "size"),
        with(make(json!({ "cpu_count": 1 })), "cpu_count"),
        with(make(json!({ "cpu_count": 0, "memory_mb": 256 })), "cpu_count"),
        with(make(json!({ "cpu_count": 1, "memory_mb": 1 })), "memory_mb"),
        with(make(json!({ "cpu_count": -1, "memory_mb": 256 })), "cpu_count"),
        with(make(json!({ "name": wide })), "name"),
        with(make(json!({ "name": "a\nb" })), "name"),
        with(make(json!({ "slug": "Not-A-Slug" })), "slug"),
        with(make(json!({ "slug": "www" })), "slug"),
        with(make(json!({ "external_user_id": long })), "external_user_id"),
        with(make(json!({ "external_user_id": "a\u{7}" })), "external_user_id"),
        with(make(json!({ "metadata": ["x"] })), "metadata"),
        with(make(json!({ "metadata": { "k": long.repeat(4) } })), "metadata.k"),
        with(make(json!({ "tags": "a" })), "tags"),
        with(make(json!({ "tags": ["a,b"] })), "tags"),
        with(make(json!({ "env": { "A": 1 } })), "env.A"),
        with(make(json!({ "timeout_sec": 0 })), "timeout_sec"),
        with(make(json!({ "timeout_sec": "soon" })), "timeout_sec"),
        with(make(json!({ "on_timeout": "explode" })), "on_timeout"),
        with(make(json!({ "template_id": "no-such" })), "template_id"),
        ("POST", "/sandboxes", json!({ "env": { "1A": "x" } }), 422, "invalid_env_name", "1A"),
        ("POST", "/sandboxes", json!({ "workspace_id": "nowhere" }), 404, "not_found", "workspace"),
        ("POST", "/sandboxes", json!({ "project_id": "nowhere" }), 404, "not_found", "project"),
        ("POST", "/sandboxes?wait=soon", json!({}), 422, "VALIDATION_FAILED", "wait"),
        ("GET", "/sandboxes?state=asleep", Value::Null, 422, "VALIDATION_FAILED", "state"),
        ("GET", "/sandboxes?limit=many", Value::Null, 400, "bad_request", "limit"),
        ("GET", "/sandboxes?cursor=%21", Value::Null, 422, "VALIDATION_FAILED", "cursor"),
        ("GET", "/sandboxes/sbx_01d39zy06fgsctvn4t2v9pkhfz", Value::Null, 404, "not_found", "sandbox"),
        (
            "PATCH",
            "/sandboxes/{id}",
            json!({ "external_user_id": "b" }),
            422,
            "attribution_immutable",
            "external_user_id",
        ),
        (
            "PATCH",
            "/sandboxes/{id}",
            json!({ "external_project_id": "b" }),
            422,
            "attribution_immutable",
            "external_project_id",
        ),
        ("PATCH", "/sandboxes/{id}", json!({ "slug": "UPPER" }), 422, "VALIDATION_FAILED", "slug"),
        ("PATCH", "/sandboxes/{id}/tags", json!({}), 422, "VALIDATION_FAILED", "tags"),
        (
            "POST",
            "/sandboxes/{id}/extend",
            json!({ "timeout_sec": 0 }),
            422,
            "VALIDATION_FAILED",
            "timeout_sec",
        ),
        (
            "PUT",
            "/sandboxes/{id}/env",
            json!({ "vars": [{ "key": "A" }] }),
            422,
            "VALIDATION_FAILED",
            "value",
        ),
        (
            "PUT",
            "/sandboxes/{id}/env",
            json!({ "vars": [{ "key": "A-B", "value": "" }] }),
            422,
            "invalid_env_name",
            "A-B",
        ),
        (
            "PUT",
            "/sandboxes/{id}/env",
            json!({ "vars": [{ "key": "A", "value": "x", "encrypted": true }] }),
            422,
            "VALIDATION_FAILED",
            "/egress/secrets",
        ),
        ("DELETE", "/sandboxes/{id}/env/NOPE", Value::Null, 404, "not_found", "variable"),
        ("POST", "/sandboxes/{id}/exec", json!({}), 422, "VALIDATION_FAILED", "command"),
        ("POST", "/sandboxes/{id}/exec", json!({ "command": "" }), 422, "VALIDATION_FAILED", "command"),
        ("POST", "/sandboxes/{id}/exec", json!({ "command": 5 }), 422, "VALIDATION_FAILED", "command"),
        (
            "POST",
            "/sandboxes/{id}/exec",
            json!({ "command": "true", "timeout": 601 }),
            422,
            "TIMEOUT_TOO_LONG",
            "600",
        ),
        (
            "POST",
            "/sandboxes/{id}/exec",
            json!({ "command": "true", "timeout": -1 }),
            422,
            "VALIDATION_FAILED",
            "timeout",
        ),
        (
            "POST",
            "/sandboxes/{id}/exec",
            json!({ "command": "true", "env": { "A B": "" } }),
            422,
            "invalid_env_name",
            "A B",
        ),
        ("GET", "/sandboxes/{id}/processes/99999999", Value::Null, 404, "not_found", "99999999"),
        ("GET", "/sandboxes/{id}/processes/none", Value::Null, 404, "not_found", "none"),
        (
            "POST",
            "/sandboxes/{id}/fs/write",
            json!({ "path": "a" }),
            422,
            "VALIDATION_FAILED",
            "content_base64",
        ),
        (
            "POST",
            "/sandboxes/{id}/fs/write",
            json!({ "path": "a", "content_base64": "***" }),
            422,
            "VALIDATION_FAILED",
            "content_base64",
        ),
        (
            "POST",
            "/sandboxes/{id}/fs/write",
            json!({ "path": "", "content_base64": "" }),
            422,
            "INVALID_PATH",
            "path",
        ),
        (
            "POST",
            "/sandboxes/{id}/fs/write",
            json!({ "path": "/workspace", "content_base64": "" }),
            422,
            "INVALID_PATH",
            "directory",
        ),
        ("POST", "/sandboxes/{id}/fs/stat", json!({ "path": "nope" }), 404, "not_found", "nope"),
        ("GET", "/sandboxes/{id}/fs/download", Value::Null, 400, "bad_request", "path"),
        ("GET", "/sandboxes/{id}/fs/download?path=nope", Value::Null, 404, "not_found", "nope"),
        ("GET", "/sandboxes/{id}/files/nope", Value::Null, 404, "not_found", "nope"),
        ("GET", "/sandboxes/{id}/files?depth=0", Value::Null, 422, "VALIDATION_FAILED", "depth"),
        ("GET", "/sandboxes/{id}/files?path=nope", Value::Null, 404, "not_found", "nope"),
        ("POST", "/sandboxes/{id}/previews", json!({}), 422, "VALIDATION_FAILED", "port"),
        ("POST", "/sandboxes/{id}/previews", json!({ "port": 0 }), 422, "VALIDATION_FAILED", "port"),
        ("POST", "/sandboxes/{id}/previews", json!({ "port": 65536 }), 422, "VALIDATION_FAILED", "port"),
        ("POST", "/sandboxes/{id}/previews", json!({ "port": 1021 }), 422, "VALIDATION_FAILED", "port"),
        ("POST", "/sandboxes/{id}/expose", json!({ "port": 1021 }), 422, "VALIDATION_FAILED", "port"),
        ("POST", "/sandboxes/{id}/expose", json!({ "prot": 80 }), 422, "VALIDATION_FAILED", "prot"),
        ("POST", "{preview}/share", json!({ "ttl_seconds": 86401 }), 422, "ttl_exceeds_plan", "86400"),
        ("POST", "{preview}/share", json!({ "ttl_seconds": 59 }), 422, "VALIDATION_FAILED", "60"),
        (
            "POST",
            "{preview}/share",
            json!({ "ttl_seconds": 900, "expires_in": 901 }),
            422,
            "VALIDATION_FAILED",
            "expires_in_sec",
        ),
        ("POST", "{preview}/share", json!({ "ttl": 900 }), 422, "VALIDATION_FAILED", "ttl"),
        ("POST", "{preview}/share", json!({ "scopes": ["terminal"] }), 422, "invalid_scope", "terminal"),
        ("POST", "/sandboxes/{id}/preview-token", json!({ "scope": "write" }), 422, "invalid_scope", "write"),
        ("POST", "/egress/secrets", json!({ "name": "K" }), 422, "VALIDATION_FAILED", "value"),
        ("POST", "/egress/secrets", json!({ "name": "", "value": "x" }), 422, "VALIDATION_FAILED", "name"),
        (
            "POST",
            "/egress/secrets",
            json!({ "name": "K", "value": "a\nb" }),
            422,
            "VALIDATION_FAILED",
            "value",
        ),
        (
            "POST",
            "/egress/secrets",
            json!({ "name": "K", "value": "x", "hosts": [] }),
            422,
            "VALIDATION_FAILED",
            "hosts",
        ),
        (
            "POST",
            "/egress/secrets",
            json!({ "name": "K", "value": "x", "scope": "external_user" }),
            422,
            "scope_field_missing",
            "external_user_id",
        ),
        (
            "POST",
            "/egress/secrets",
            json!({ "name": "K", "value": "x", "scope": "planet" }),
            422,
            "VALIDATION_FAILED",
            "scope",
        ),
        (
            "POST",
            "/egress/secrets",
            json!({ "name": "K", "value": "x", "expose_as_env": "1A" }),
            422,
            "invalid_env_name",
            "1A",
        ),
        (
            "POST",
            "/egress/secrets",
            json!({ "name": "K", "value": "x", "allowed_hosts": ["*"] }),
            422,
            "VALIDATION_FAILED",
            "allowed_hosts",
        ),
        (
            "POST",
            "/egress/secrets",
            json!({ "name": "K", "value": "x", "resource_id": "nope" }),
            404,
            "not_found",
            "sandbox",
        ),
        (
            "POST",
            "/egress/bindings",
            json!({ "secret_id": "sec_x", "resource_id": "{id}" }),
            404,
            "not_found",
            "secret",
        ),
        (
            "POST",
            "/api-keys",
            json!({ "name": "k", "scopes": ["everything"] }),
            422,
            "invalid_scope",
            "everything",
        ),
        ("POST", "/api-keys", json!({ "name": "k", "admin": true }), 422, "VALIDATION_FAILED", "admin"),
        (
            "POST",
            "/api-keys",
            json!({ "name": "k", "expires_at": "2001-01-01T00:00:00Z" }),
            422,
            "VALIDATION_FAILED",
            "expires_at",
        ),
        ("PUT", "/tenant/quota", json!({ "max_sandboxes": -1 }), 422, "VALIDATION_FAILED", "max_sandboxes"),
        ("PUT", "/quotas/external/u", json!({ "max_sandbox": 1 }), 422, "VALIDATION_FAILED", "max_sandbox"),
        ("PUT", "/workspaces/nowhere/quota", json!({}), 404, "not_found", "workspace"),
        ("PUT", "/settings", json!({ "secruity": {} }), 422, "VALIDATION_FAILED", "secruity"),
        (
            "PUT",
            "/settings",
            json!({ "previews": { "frame_ancestors": ["*"] } }),
            422,
            "VALIDATION_FAILED",
            "frame_ancestors",
        ),
        (
            "PUT",
            "/settings",
            json!({ "secrets": { "unbound_hosts": "yes" } }),
            422,
            "VALIDATION_FAILED",
            "unbound_hosts",
        ),
        ("GET", "/usage?group_by=mood", Value::Null, 422, "VALIDATION_FAILED", "group_by"),
        ("GET", "/usage?period=soon", Value::Null, 422, "VALIDATION_FAILED", "period"),
        ("GET", "/egress/audit?since=lately", Value::Null, 422, "VALIDATION_FAILED", "since"),
        ("GET", "/audit-log?after=%21", Value::Null, 422, "VALIDATION_FAILED", "cursor"),
        ("GET", "/sandbox-templates/none", Value::Null, 404, "not_found", "template"),
        ("POST", "/workspaces", json!({ "name": "" }), 422, "VALIDATION_FAILED", "name"),
        (
            "POST",
            "/projects",
            json!({ "name": "p", "workspace_id": "nowhere" }),
            404,
            "not_found",
            "workspace",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_request_gets_its_code_and_is_told_what_is_wrong() {
    let world = World::start().await;
    let id = world.sandbox_id().await;
    let preview = world.post(&format!("/sandboxes/{id}/previews"), json!({ "port": 3000 })).await.data();
    let preview = format!("/sandboxes/{id}/previews/{}", preview["id"].as_str().unwrap());
    for (method, path, body, status, code, named) in table() {
        let path = path.replace("{id}", &id).replace("{preview}", &preview);
        let body =
            (!body.is_null()).then(|| serde_json::from_str(&body.to_string().replace("{id}", &id)).unwrap());
        let answer = world.call(method, &path, body.clone()).await;
        let place = format!("{method} {path} {body:?}: {}", answer.text());
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{place}");
        assert!(answer.text().contains(named), "{place} does not name {named}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_no_json_are_refused_everywhere() {
    let world = World::start().await;
    let id = world.sandbox_id().await;
    let preview = world.post(&format!("/sandboxes/{id}/previews"), json!({ "port": 3000 })).await.data();
    for (method, template) in
        operations().into_iter().filter(|(method, _)| matches!(method.as_str(), "POST" | "PUT" | "PATCH"))
    {
        // These read no body.
        if ["/pause", "/stop", "/resume", "/start", "/rotate"].iter().any(|end| template.ends_with(end)) {
            continue;
        }
        let path = template
            .replace("{id}", &id)
            .replace("{preview_id}", preview["id"].as_str().unwrap())
            .replace("{pid}", "1");
        let path = path.replace("{external_user_id}", "u").replace("{external_workspace_id}", "w");
        let send = |content: &'static str, body: &'static str| {
            let request = Request::builder().method(method.clone()).uri(format!("{BASE}{path}"));
            let request = request
                .header("authorization", format!("Bearer {}", world.key))
                .header("content-type", content);
            world.send(request.body(Body::from(body)).unwrap())
        };
        let malformed = send("application/json", "{").await;
        assert_eq!((malformed.status, malformed.code().as_str()), (400, "bad_request"), "{method} {path}");
        let text = send("text/plain", "{}").await;
        assert_eq!((text.status, text.code().as_str()), (415, "unsupported_media_type"), "{method} {path}");
        let list = send("application/json", "[1]").await;
        assert_eq!(list.code(), "VALIDATION_FAILED", "{method} {path}: {}", list.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_are_refused_and_files_may_be_larger() {
    let world = World::start().await;
    let id = world.sandbox_id().await;
    let large = json!({ "command": "x".repeat(1024 * 1024) });
    let answer = world.post(&format!("/sandboxes/{id}/exec"), large).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "TOO_LARGE"));
    let file = json!({ "path": "large", "content_base64": "A".repeat(4 * 1024 * 1024) });
    let written = world.post(&format!("/sandboxes/{id}/fs/write"), file).await.expect(200).data();
    assert_eq!(written["size"], 3 * 1024 * 1024);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_a_clean_404() {
    let world = World::start().await;
    let id = world.sandbox_id().await;
    for (method, path) in [
        ("GET", "/nowhere".to_owned()),
        ("POST", "/sandboxes/batch".to_owned()),
        ("POST", "/sandboxes/run".to_owned()),
        ("POST", format!("/sandboxes/{id}/fork")),
        ("GET", format!("/sandboxes/{id}/snapshots")),
        ("GET", "/webhooks".to_owned()),
        ("PUT", format!("/sandboxes/{id}")),
        ("DELETE", "/workspaces/x".to_owned()),
        ("GET", "/egress/oauth/providers".to_owned()),
    ] {
        let answer = world.call(method, &path, None).await;
        assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"), "{method} {path}");
    }
    let outside = Request::builder().uri("/elsewhere").body(Body::empty()).unwrap();
    let answer = world.send_unchecked(outside).await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_secret_value_is_not_in_the_answer() {
    let world = World::start().await;
    for body in [
        json!({ "name": "K", "value": { "open": "sesame" } }),
        json!({ "name": "K", "value": "open sesame\n" }),
        json!({ "name": ["open sesame"], "value": "x" }),
        json!({ "name": "K", "value": "open sesame", "scope": "external_user" }),
    ] {
        let answer = world.post("/egress/secrets", body.clone()).await;
        assert_eq!(answer.status, 422, "{body}");
        assert!(!answer.text().contains("sesame"), "{}", answer.text());
    }
}
