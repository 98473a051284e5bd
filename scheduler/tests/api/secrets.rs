//! Secrets through the API: never shown, resolved by identity, seen by the next command.

use serde_json::{Value, json};

use crate::world::World;

const VALUE: &str = "sk-open-sesame-0123456789";

async fn set(world: &World, extra: Value) -> Value {
    let mut body = json!({ "name": "OPENAI_API_KEY", "value": VALUE, "expose_as_env": "OPENAI_API_KEY" });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let answer = world.post("/egress/secrets", body).await;
    assert!(answer.status == 201 || answer.status == 200, "{}", answer.text());
    answer.data()
}

async fn variable(world: &World, sandbox: &str) -> String {
    let body = json!({ "command": "printf %s \"$OPENAI_API_KEY\"" });
    let answer = world.post(&format!("/sandboxes/{sandbox}/exec"), body).await.expect(200).json();
    answer["stdout"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_holds_a_value() {
    let world = World::start().await;
    let secret = set(&world, json!({ "scope": "tenant" })).await;
    let id = secret["id"].as_str().unwrap();
    world.patch(&format!("/egress/secrets/{id}"), json!({ "value": format!("{VALUE}2") })).await.expect(200);
    for path in ["/egress/secrets", &format!("/egress/secrets/{id}"), "/audit-log"] {
        let text = world.get(path).await.expect(200).text();
        assert!(!text.contains("sesame"), "{path}: {text}");
    }
    assert_eq!(world.audited("secret.created").await.len(), 1);
    assert_eq!(world.audited("secret.rotated").await[0]["resource_id"], id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_set_later_is_a_placeholder_in_the_next_command() {
    let world = World::start().await;
    let mine = world.sandbox(json!({ "external_user_id": "u1" })).await["id"].as_str().unwrap().to_owned();
    let other = world.sandbox(json!({ "external_user_id": "u2" })).await["id"].as_str().unwrap().to_owned();
    assert_eq!(variable(&world, &mine).await, "");
    let secret = set(&world, json!({ "scope": "external_user", "external_user_id": "u1" })).await;
    let placeholder = variable(&world, &mine).await;
    assert!(
        placeholder.starts_with("sk-") && placeholder.contains("MIOSA") && !placeholder.contains("sesame"),
        "{placeholder}"
    );
    assert_eq!(variable(&world, &other).await, "");
    let id = secret["id"].as_str().unwrap();
    world
        .patch(&format!("/egress/secrets/{id}"), json!({ "value": "sk-another-0123456789" }))
        .await
        .expect(200);
    assert_eq!(variable(&world, &mine).await, placeholder);
    world.patch(&format!("/egress/secrets/{id}"), json!({ "enabled": false })).await.expect(200);
    assert_eq!(variable(&world, &mine).await, "");
    assert_eq!(world.audited("secret.disabled").await.len(), 1);
    world.patch(&format!("/egress/secrets/{id}"), json!({ "enabled": true })).await.expect(200);
    world.delete(&format!("/egress/secrets/{id}")).await.expect(204);
    assert_eq!(variable(&world, &mine).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn resolution_explains_the_six_steps() {
    let world = World::start().await;
    let id = world.sandbox(json!({ "external_user_id": "u1", "external_workspace_id": "w1" })).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    set(&world, json!({ "scope": "tenant" })).await;
    let winner = async || {
        let rows = world.get(&format!("/sandboxes/{id}/secrets/resolution")).await.expect(200).data();
        rows[0]["resolved_by"].as_str().unwrap().to_owned()
    };
    assert_eq!(winner().await, "tenant");
    set(&world, json!({ "scope": "external_workspace", "external_workspace_id": "w1" })).await;
    assert_eq!(winner().await, "external_workspace");
    let user = set(&world, json!({ "scope": "external_user", "external_user_id": "u1" })).await;
    assert_eq!(winner().await, "external_user");
    set(&world, json!({})).await;
    assert_eq!(winner().await, "user");
    let body = json!({
        "secret_id": user["id"], "resource_id": id, "resource_type": "sandbox",
        "expose_as_env": "OPENAI_API_KEY",
    });
    world.post("/egress/bindings", body.clone()).await.expect(201);
    assert_eq!(winner().await, "binding");
    assert_eq!(world.post("/egress/bindings", body).await.code(), "env_taken");
    let rows = world.get(&format!("/sandboxes/{id}/secrets/resolution")).await.data();
    assert_eq!(
        (rows[0]["env"].as_str(), rows[0]["unbound"].as_bool()),
        (Some("OPENAI_API_KEY"), Some(false))
    );
    assert_eq!(rows[0]["allowed_hosts"], json!(["api.openai.com"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn setting_again_replaces_and_another_name_for_the_same_variable_conflicts() {
    let world = World::start().await;
    let first = set(&world, json!({ "scope": "external_user", "external_user_id": "u1" })).await;
    let again = set(
        &world,
        json!({ "scope": "external_user", "external_user_id": "u1", "value": "sk-second-0123456789" }),
    )
    .await;
    assert_eq!((&again["id"], again["version"].as_u64()), (&first["id"], Some(2)));
    let other = set(&world, json!({ "scope": "external_user", "external_user_id": "u2" })).await;
    assert_ne!(other["id"], first["id"]);
    let body = json!({
        "name": "second name", "value": VALUE, "expose_as_env": "OPENAI_API_KEY", "scope": "external_user",
        "external_user_id": "u1",
    });
    let taken = world.post("/egress/secrets", body).await.expect(409);
    assert_eq!(taken.code(), "env_taken");
    let listed = world.get("/egress/secrets?external_user_id=u1").await.data();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(world.get("/egress/secrets?scope=tenant&external_user_id=u1").await.data(), json!([]));
    assert_eq!(world.get("/egress/secrets?provider=github").await.data(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn widening_needs_the_value_and_narrowing_does_not() {
    let world = World::start().await;
    let secret = set(&world, json!({ "allowed_hosts": ["*.example.com"], "scope": "tenant" })).await;
    let path = format!("/egress/secrets/{}", secret["id"].as_str().unwrap());
    let wider = json!({ "allowed_hosts": ["*.example.com", "evil.test"] });
    assert_eq!(world.patch(&path, wider.clone()).await.expect(422).code(), "value_required");
    assert_eq!(
        world.patch(&path, json!({ "slots": ["x-custom-key"] })).await.expect(422).code(),
        "value_required"
    );
    world.patch(&path, json!({ "allowed_hosts": ["api.example.com"] })).await.expect(200);
    let mut with_value = wider;
    with_value["value"] = json!(VALUE);
    world.patch(&path, with_value).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_users_secret_on_another_users_sandbox_needs_the_value() {
    let world = World::start().await;
    let sandbox = world.sandbox(json!({ "external_user_id": "u2" })).await;
    let secret = set(&world, json!({ "scope": "external_user", "external_user_id": "u1" })).await;
    let (secret, resource) = (&secret["id"], &sandbox["id"]);
    let body = |value: Option<&str>| json!({ "secret_id": secret, "resource_id": resource, "value": value });
    for value in [None, Some("wrong")] {
        let refused = world.post("/egress/bindings", body(value)).await;
        assert_eq!((refused.status, refused.code().as_str()), (403, "secret_not_theirs"));
    }
    world.post("/egress/bindings", body(Some(VALUE))).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_without_hosts_is_kept_and_said_to_be_unbound() {
    let world = World::start().await;
    let body = json!({ "name": "EHR_API_KEY", "value": VALUE, "expose_as_env": "EHR_API_KEY" });
    let made = world.post("/egress/secrets", body).await.expect(201).data();
    assert_eq!((&made["warnings"], &made["allowed_hosts"]), (&json!(["unbound"]), &json!([])));
    assert_eq!((made["scope"].as_str(), made["status"].as_str()), (Some("user"), Some("active")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_switch_stops_end_user_credentials_both_ways() {
    let world = World::start().await;
    let id = world.sandbox(json!({ "external_user_id": "u1" })).await["id"].as_str().unwrap().to_owned();
    set(&world, json!({ "scope": "external_user", "external_user_id": "u1" })).await;
    assert_ne!(variable(&world, &id).await, "");
    let off = json!({ "security": { "allow_end_user_scoped_credentials": false } });
    let settings = world.put("/settings", off).await.expect(200).data();
    assert_eq!(settings["security"]["allow_end_user_scoped_credentials"], false);
    assert_eq!(variable(&world, &id).await, "");
    let body = json!({ "name": "K", "value": VALUE, "scope": "external_user", "external_user_id": "u1" });
    let refused = world.post("/egress/secrets", body).await.expect(403);
    assert_eq!(refused.code(), "end_user_credentials_disabled");
    world
        .patch("/tenant/settings", json!({ "security": { "allow_end_user_scoped_credentials": true } }))
        .await
        .expect(200);
    assert_ne!(variable(&world, &id).await, "");
    assert_eq!(world.audited("settings.updated").await.len(), 2);
}
