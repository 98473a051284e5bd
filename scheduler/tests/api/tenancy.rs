//! Whose things are whose: every route with another tenant's ids is 404, and keys reach what their scopes
//! say.

use std::collections::BTreeMap;

use roost_domain::id::EventId;
use serde_json::{Value, json};

use crate::world::{World, operations};

/// A body that would be accepted, for operations that read one before they look for the resource.
fn body(method: &str, template: &str) -> Option<Value> {
    Some(match (method, template) {
        ("GET" | "DELETE", _) => return None,
        (_, path) if path.ends_with("/exec") || path.ends_with("/exec/stream") => {
            json!({ "command": "true" })
        }
        (_, path) if path.ends_with("/commands") || path.ends_with("/processes") => {
            json!({ "command": "true" })
        }
        (_, path) if path.ends_with("write-many") => json!({ "files": [] }),
        (_, path) if path.ends_with("/fs/write") || path.ends_with("/files") => {
            json!({ "path": "a", "content_base64": "" })
        }
        (_, path) if path.ends_with("/stat") => json!({ "path": "a" }),
        (_, path) if path.ends_with("/tags") => json!({ "tags": [] }),
        (_, path) if path.ends_with("/env") => json!({ "vars": [] }),
        (_, path) if path.ends_with("/previews") => json!({ "port": 3000 }),
        _ => json!({}),
    })
}

/// What a route without a resource in its path answers to a tenant that has nothing.
const OWN: &[(&str, &str)] = &[
    ("GET", "/sandboxes"),
    ("POST", "/sandboxes"),
    ("GET", "/api-keys"),
    ("POST", "/api-keys"),
    ("GET", "/whoami"),
    ("GET", "/workspaces"),
    ("POST", "/workspaces"),
    ("GET", "/projects"),
    ("POST", "/projects"),
    ("GET", "/settings"),
    ("PUT", "/settings"),
    ("GET", "/tenant/settings"),
    ("PATCH", "/tenant/settings"),
    ("GET", "/sandbox-templates"),
    ("GET", "/sandbox-templates/{id}"),
    ("GET", "/templates"),
    ("GET", "/usage"),
    ("GET", "/usage/summary"),
    ("GET", "/audit-log"),
    ("GET", "/egress/audit"),
    ("GET", "/egress/secrets"),
    ("POST", "/egress/secrets"),
    ("GET", "/egress/bindings"),
    ("POST", "/egress/bindings"),
    ("GET", "/events/stream"),
    ("GET", "/tenant/quota"),
    ("PUT", "/tenant/quota"),
    ("DELETE", "/tenant/quota"),
    ("GET", "/quotas/external/{external_user_id}"),
    ("PUT", "/quotas/external/{external_user_id}"),
    ("DELETE", "/quotas/external/{external_user_id}"),
    ("GET", "/quotas/external-workspaces/{external_workspace_id}"),
    ("PUT", "/quotas/external-workspaces/{external_workspace_id}"),
    ("DELETE", "/quotas/external-workspaces/{external_workspace_id}"),
];

/// Ids of the first tenant, by the parameter and the path they stand in.
pub async fn ids(world: &World) -> BTreeMap<&'static str, String> {
    let sandbox = world.sandbox(json!({ "name": "mine" })).await;
    let id = sandbox["id"].as_str().unwrap();
    let text = |value: Value| value.as_str().unwrap().to_owned();
    let preview = world.post(&format!("/sandboxes/{id}/previews"), json!({ "port": 3000 })).await.data();
    let secret =
        world.post("/egress/secrets", json!({ "name": "K", "value": "0123456789abcdef" })).await.data();
    let binding =
        world.post("/egress/bindings", json!({ "secret_id": secret["id"], "resource_id": id })).await.data();
    let key = world.post("/api-keys", json!({ "name": "k" })).await.data();
    let project = world.post("/projects", json!({ "name": "p" })).await.data();
    let process =
        world.post(&format!("/sandboxes/{id}/processes"), json!({ "command": "true" })).await.data();
    let event = crate::usage::plant_egress_row(world, id).await;
    BTreeMap::from([
        ("/sandboxes/", id.to_owned()),
        ("slug", text(sandbox["slug"].clone())),
        ("name", "mine".to_owned()),
        ("preview_id", text(preview["id"].clone())),
        ("/egress/secrets/", text(secret["id"].clone())),
        ("/egress/bindings/", text(binding["id"].clone())),
        ("/egress/audit/", event),
        ("/api-keys/", text(key["id"].clone())),
        ("/workspaces/", text(sandbox["workspace_id"].clone())),
        ("/projects/", text(project["id"].clone())),
        ("pid", process["pid"].to_string()),
        ("key", "A".to_owned()),
        ("path", "a".to_owned()),
    ])
}

pub fn fill(template: &str, ids: &BTreeMap<&'static str, String>) -> String {
    let resource = ids.keys().find(|place| place.starts_with('/') && template.starts_with(**place));
    let mut path = match resource {
        Some(place) => template.replace("{id}", &ids[place]),
        None => template.to_owned(),
    };
    for parameter in ["name", "preview_id", "pid", "key", "path"] {
        path = path.replace(&format!("{{{parameter}}}"), &ids[parameter]);
    }
    assert!(!path.contains('{'), "{template} has a parameter that this table does not know");
    path
}

/// What a route needs beyond its path to be read at all.
fn with_query(path: String, template: &str) -> String {
    if template.ends_with("/fs/download") { path + "?path=a" } else { path }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_resources_do_not_exist() {
    let world = World::start().await;
    let stranger = world.another_tenant().await;
    let ids = ids(&world).await;
    for (method, template) in operations() {
        let own = OWN.contains(&(method.as_str(), template.as_str()));
        if own {
            continue;
        }
        assert!(
            template.contains('{'),
            "{method} {template} has no row in the table of routes without a resource"
        );
        let path = with_query(fill(&template, &ids), &template);
        let answer =
            world.call_as(&stranger, method.as_str(), &path, body(method.as_str(), &template), &[]).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (404, "not_found"),
            "{method} {path}: {}",
            answer.text()
        );
        // The same request is not a 404 for its owner, or the test above proves nothing.
        // A stream of events does not end by itself; its own test reads it.
        if method == "GET" && !path.ends_with("/events") {
            let answer = world.call("GET", &path, None).await;
            let absent = ["/env/", "/files/a", "/fs/download"].iter().any(|part| path.contains(part));
            assert!(answer.status == 200 || absent, "{path}: {}", answer.text());
        }
    }
    let by_slug = world.call_as(&stranger, "GET", &format!("/sandboxes/{}", ids["slug"]), None, &[]).await;
    assert_eq!(by_slug.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_show_nothing_of_another_tenant() {
    let world = World::start().await;
    let stranger = world.another_tenant().await;
    let ids = ids(&world).await;
    for (method, template) in OWN.iter().filter(|row| row.0 == "GET" && row.1 != "/events/stream") {
        let path = template.replace("{id}", "miosa-sandbox").replace("{external_user_id}", "u");
        let path = path.replace("{external_workspace_id}", "w");
        let answer = world.call_as(&stranger, method, &path, None, &[]).await.expect(200).text();
        for (place, id) in ids.iter().filter(|(place, _)| place.starts_with('/')) {
            assert!(!answer.contains(id.as_str()), "{path} shows {place} {id}");
        }
    }
    let body = json!({ "secret_id": ids["/egress/secrets/"], "resource_id": ids["/sandboxes/"] });
    assert_eq!(world.call_as(&stranger, "POST", "/egress/bindings", Some(body), &[]).await.status, 404);
    let body = json!({ "name": "N", "value": "0123456789abcdef", "resource_id": ids["/sandboxes/"] });
    assert_eq!(world.call_as(&stranger, "POST", "/egress/secrets", Some(body), &[]).await.status, 404);
    let body = json!({ "workspace_id": ids["/workspaces/"] });
    assert_eq!(world.call_as(&stranger, "POST", "/sandboxes", Some(body), &[]).await.status, 404);
    let event = roost_daemon::ids::fresh::<EventId>().to_string();
    assert_eq!(world.get(&format!("/egress/audit/{event}")).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_good_credential_nothing_is_answered() {
    let world = World::start().await;
    for (method, template) in operations() {
        let path = template.replace("{id}", "x").replace("{preview_id}", "x").replace("{pid}", "1");
        let path = path.replace("{name}", "x").replace("{key}", "x").replace("{path}", "x");
        let path = path.replace("{external_user_id}", "x").replace("{external_workspace_id}", "x");
        let none = world.call_as("", method.as_str(), &path, body(method.as_str(), &template), &[]).await;
        assert_eq!((none.status, none.code().as_str()), (401, "token_missing"), "{method} {path}");
    }
    for (token, status, code) in [
        ("msk_live_nonsense", 401, "invalid_token"),
        ("miosa_pv_Ab3dEf7h1J.a.b.c", 403, "browser_token_not_allowed"),
        ("mp_Ab3dEf7h1J.a.b.c", 403, "browser_token_not_allowed"),
        ("miosa_up_x", 403, "browser_token_not_allowed"),
    ] {
        let answer = world.call_as(token, "GET", "/sandboxes", None, &[]).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{token}");
    }
    let basic = world.call_as("", "GET", "/whoami", None, &[("authorization", "Basic eDp5")]).await;
    assert_eq!(basic.code(), "invalid_token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_dead_at_once() {
    let world = World::start().await;
    let made = world
        .post("/api-keys", json!({ "name": "ci", "scopes": ["sandboxes:read"] }))
        .await
        .expect(201)
        .data();
    let key = made["key"].as_str().unwrap();
    assert!(key.starts_with("msk_live_") && made["key_prefix"].as_str() == Some(&key[..12]));
    world.call_as(key, "GET", "/sandboxes", None, &[]).await.expect(200);
    world.call_as(key, "GET", "/api-keys", None, &[]).await.expect(403);
    world.delete(&format!("/api-keys/{}", made["id"].as_str().unwrap())).await.expect(204);
    let dead = world.call_as(key, "GET", "/sandboxes", None, &[]).await.expect(401);
    assert_eq!(dead.code(), "token_revoked");
    let made = world.post("/api-keys", json!({ "name": "old" })).await.expect(201).data();
    let path = format!("/api-keys/{}", made["id"].as_str().unwrap());
    let narrowed = world.patch(&path, json!({ "scopes": ["usage:read"] })).await.expect(200).data();
    assert_eq!((narrowed["scopes"].clone(), narrowed["name"].as_str()), (json!(["usage:read"]), Some("old")));
    let old = made["key"].as_str().unwrap();
    world.call_as(old, "GET", "/sandboxes", None, &[]).await.expect(403);
    let fresh = world.post(&format!("{path}/rotate"), json!({})).await.expect(201).data();
    world.call_as(old, "GET", "/usage", None, &[]).await.expect(401);
    world.call_as(fresh["key"].as_str().unwrap(), "GET", "/usage", None, &[]).await.expect(200);
    world.post(&format!("{path}/rotate"), json!({})).await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn scopes_are_needed_and_cannot_be_grown() {
    let world = World::start().await;
    let reader = world.key_with(&["sandboxes:read"], None).await;
    let id = world.sandbox_id().await;
    world.call_as(&reader, "GET", &format!("/sandboxes/{id}"), None, &[]).await.expect(200);
    for (method, path, body) in [
        ("POST", "/sandboxes".to_owned(), Some(json!({}))),
        ("DELETE", format!("/sandboxes/{id}"), None),
        ("POST", format!("/sandboxes/{id}/exec"), Some(json!({ "command": "true" }))),
        ("POST", format!("/sandboxes/{id}/expose"), None),
        ("GET", "/egress/secrets".to_owned(), None),
        ("GET", "/usage".to_owned(), None),
        ("GET", "/audit-log".to_owned(), None),
        ("GET", "/settings".to_owned(), None),
    ] {
        let answer = world.call_as(&reader, method, &path, body, &[]).await;
        assert_eq!((answer.status, answer.code().as_str()), (403, "insufficient_scope"), "{method} {path}");
    }
    let maker = world.key_with(&["keys:write", "sandboxes:read"], None).await;
    let grown = json!({ "name": "more", "scopes": ["admin"] });
    world.call_as(&maker, "POST", "/api-keys", Some(grown), &[]).await.expect(403);
    let plain = world
        .call_as(&maker, "POST", "/api-keys", Some(json!({ "name": "same" })), &[])
        .await
        .expect(201)
        .data();
    assert_eq!(plain["scopes"], json!(["sandboxes:read", "keys:write"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_key_stays_in_its_workspace() {
    let world = World::start().await;
    let other = world.sandbox(json!({ "external_workspace_id": "clinic2" })).await;
    let own = world.post("/workspaces", json!({ "name": "Own" })).await.expect(201).data();
    let own_id = own["id"].as_str().unwrap();
    let key = world.key_with(&["admin"], Some(own_id)).await;
    let small = |extra: Value| {
        let mut body = json!({ "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 512 });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Some(body)
    };
    // A label that no workspace has is only a label.
    let made = world
        .call_as(&key, "POST", "/sandboxes", small(json!({ "external_workspace_id": "new" })), &[])
        .await;
    assert_eq!(made.expect(202).data()["workspace_id"], own_id);
    for reach in [
        json!({ "external_workspace_id": "clinic2" }),
        json!({ "workspace_id": other["workspace_id"] }),
        json!({ "workspace_slug": "somewhere" }),
    ] {
        let answer = world.call_as(&key, "POST", "/sandboxes", small(reach.clone()), &[]).await;
        assert_eq!((answer.status, answer.code().as_str()), (403, "WORKSPACE_FORBIDDEN"), "{reach}");
    }
    let path = format!("/sandboxes/{}", other["id"].as_str().unwrap());
    world.call_as(&key, "GET", &path, None, &[]).await.expect(404);
    let listed = world.call_as(&key, "GET", "/sandboxes", None, &[]).await.expect(200).data();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    world.call_as(&key, "PUT", "/settings", Some(json!({})), &[]).await.expect(403);
    let secret = json!({ "name": "T", "value": "0123456789abcdef", "scope": "tenant" });
    world.call_as(&key, "POST", "/egress/secrets", Some(secret), &[]).await.expect(403);
}
