//! Previews and share tokens: what is minted, what is recorded, what is revoked.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use roost_domain::token::{self, Claims, Kind};
use roost_scheduler::store::preview;
use serde_json::{Value, json};

use crate::world::World;

async fn preview_of(world: &World, sandbox: &str) -> Value {
    world.post(&format!("/sandboxes/{sandbox}/previews"), json!({ "port": 3000 })).await.expect(201).data()
}

#[tokio::test(flavor = "multi_thread")]
async fn previews_are_private_until_somebody_exposes_them() {
    let world = World::start().await;
    let sandbox = world.sandbox(json!({ "external_user_id": "u1", "external_workspace_id": "w1" })).await;
    let id = sandbox["id"].as_str().unwrap();
    let made = preview_of(&world, id).await;
    assert_eq!(
        (made["visibility"].as_str(), made["external_user_id"].as_str()),
        (Some("private"), Some("u1"))
    );
    let again = world
        .post(&format!("/sandboxes/{id}/previews"), json!({ "port": 3000, "visibility": "public" }))
        .await;
    assert_eq!(
        (again.status, &again.data()["visibility"], &again.data()["id"]),
        (200, &json!("private"), &made["id"])
    );
    assert!(world.audited("preview.published").await.is_empty());
    let exposed =
        world.post(&format!("/sandboxes/{id}/expose"), json!({ "port": 3000 })).await.expect(200).json();
    assert_eq!((&exposed["url"], &exposed["visibility"]), (&made["url"], &json!("public")));
    let published = world.audited("preview.published").await;
    assert_eq!((published.len(), &published[0]["resource_id"]), (1, &made["id"]));
    world.post(&format!("/sandboxes/{id}/expose"), json!({ "port": 3000 })).await.expect(200);
    assert_eq!(world.audited("preview.published").await.len(), 1);
    let path = format!("/sandboxes/{id}/previews/{}", made["id"].as_str().unwrap());
    let hidden = world.patch(&path, json!({ "visibility": "private" })).await.expect(200).data();
    assert_eq!(hidden["visibility"], "private");
    world.delete(&path).await.expect(204);
    world.get(&path).await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn urls_have_the_form_of_the_domain_they_are_on() {
    let world = World::start().await;
    let id = world.sandbox_id().await;
    let url = preview_of(&world, &id).await["url"].as_str().unwrap().to_owned();
    let key =
        url.strip_prefix("https://").and_then(|rest| rest.strip_suffix(".preview.preview.test")).unwrap();
    assert_eq!(key.len(), 8, "{url}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minted_share_has_the_promised_shape_and_verifies_with_the_public_key() {
    let world = World::start().await;
    let sandbox = world.sandbox(json!({ "external_user_id": "u1", "external_workspace_id": "w1" })).await;
    let id = sandbox["id"].as_str().unwrap();
    let made = preview_of(&world, id).await;
    let preview_id = made["id"].as_str().unwrap();
    let path = format!("/sandboxes/{id}/previews/{preview_id}/share");
    let answer = world.post(&path, json!({ "ttl_seconds": 900 })).await.expect(201);
    assert_eq!(answer.headers["cache-control"], "no-store");
    let body = answer.json();
    let mut keys: Vec<&String> = body.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["data", "preview_token", "share_url"]);
    let text = body["preview_token"].as_str().unwrap();
    let data = &body["data"];
    assert_eq!(
        (data["id"].as_str(), data["share_token_prefix"].as_str()),
        (Some(preview_id), Some(&text[..12]))
    );
    assert_eq!(body["share_url"], format!("{}/?preview_token={text}", made["url"].as_str().unwrap()));
    let parts = token::split(text, "miosa").unwrap();
    assert_eq!((parts.kind, Some(parts.tid)), (Kind::Preview, data["token_id"].as_str()));
    let claims = verify(&world, parts.jwt).await;
    assert_eq!(
        (claims.rid.as_str(), claims.sid.as_str(), claims.tenant.as_str()),
        (preview_id, id, world.tenant.as_str())
    );
    assert_eq!((claims.tid.as_str(), claims.exp - claims.iat, claims.generation), (parts.tid, 900, 1));
    // A client may read the expiry without the key.
    let payload = URL_SAFE_NO_PAD.decode(parts.jwt.split('.').nth(1).unwrap()).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&payload).unwrap()["exp"], claims.exp);

    let issued = world.audited("preview.share_token.issued").await;
    assert_eq!(issued.len(), 1);
    assert_eq!(issued[0]["resource_id"], preview_id);
    assert_eq!(issued[0]["actor"], format!("api_key:{}", &world.key[..12]));
    let expected = json!({
        "workspace_id": sandbox["workspace_id"], "project_id": sandbox["project_id"],
        "external_workspace_id": "w1", "external_user_id": "u1", "token_prefix": &text[..12],
        "expires_at": data["share_token_expires_at"],
    });
    assert_eq!(issued[0]["metadata"], expected);
}

pub async fn verify(world: &World, jwt: &str) -> Claims {
    let kid = jsonwebtoken::decode_header(jwt).unwrap().kid.unwrap();
    let keys = world.app.vault.public_keys().await.unwrap();
    let key = keys.iter().find(|key| key.kid == kid).unwrap();
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_audience(&["preview"]);
    validation.set_issuer(&["roost"]);
    jsonwebtoken::decode::<Claims>(jwt, &DecodingKey::from_ed_der(&key.bytes), &validation).unwrap().claims
}

#[tokio::test(flavor = "multi_thread")]
async fn several_tokens_live_side_by_side_until_all_are_revoked() {
    let world = World::start().await;
    let id = world.sandbox_id().await;
    let preview_id = preview_of(&world, &id).await["id"].as_str().unwrap().to_owned();
    let (long, short) =
        (format!("/sandboxes/{id}/previews/{preview_id}/share"), format!("/previews/{preview_id}/share"));
    let mut tokens = Vec::new();
    for (path, body) in
        [(&long, json!({})), (&short, json!({ "expiresInSec": 600, "scopes": ["preview:read"] }))]
    {
        tokens.push(
            world.post(path, body).await.expect(201).json()["preview_token"].as_str().unwrap().to_owned(),
        );
    }
    let listed = world.get(&long).await.expect(200);
    assert_eq!(listed.data().as_array().unwrap().len(), 2);
    assert_eq!(listed.data()[1]["scopes"], json!(["preview:read"]));
    for token in &tokens {
        assert!(!listed.text().contains(token.rsplit('.').next().unwrap()));
    }
    world.delete(&long).await.expect(204);
    assert_eq!(world.get(&short).await.data(), json!([]));
    let (tenant, wanted) = (world.tenant.clone(), preview_id.clone());
    let row = world.app.store.read(move |tx| preview::find(tx, &tenant, &wanted)).await.unwrap().unwrap();
    assert_eq!(row.share_generation, 2);
    world.delete(&short).await.expect(204);
    let fresh = world.post(&long, json!({})).await.expect(201).json();
    let parts = fresh["preview_token"].as_str().unwrap().to_owned();
    assert_eq!(verify(&world, token::split(&parts, "miosa").unwrap().jwt).await.generation, 3);
    assert_eq!(world.audited("preview.share_token.revoked").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_raw_token_is_stored_nowhere() {
    let world = World::start().await;
    let id = world.sandbox_id().await;
    let minted = world.post(&format!("/sandboxes/{id}/preview-token"), json!({})).await.expect(201).data();
    let token = minted["token"].as_str().unwrap();
    assert!(token.starts_with("mp_") && minted["url"].as_str().unwrap().contains("/?mt=mp_"), "{minted}");
    let signature = token.rsplit('.').next().unwrap();
    for path in ["/audit-log", &format!("/sandboxes/{id}/previews"), &format!("/sandboxes/{id}")] {
        assert!(!world.get(path).await.text().contains(signature), "{path}");
    }
    let issued = world.audited("browser_token.issued").await;
    assert_eq!(issued[0]["metadata"]["token_prefix"], &token[..12]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tenants_own_maximum_holds() {
    let world = World::start().await;
    world.put("/settings", json!({ "previews": { "max_share_ttl_sec": 600 } })).await.expect(200);
    let id = world.sandbox_id().await;
    let preview_id = preview_of(&world, &id).await["id"].as_str().unwrap().to_owned();
    let path = format!("/previews/{preview_id}/share");
    let refused = world.post(&path, json!({ "ttl_seconds": 601 })).await.expect(422);
    assert_eq!(refused.code(), "ttl_exceeds_plan");
    world.post(&path, json!({ "ttl_seconds": 600 })).await.expect(201);
    world.post(&path, json!({})).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroyed_sandbox_has_no_previews() {
    let world = World::start().await;
    let id = world.sandbox_id().await;
    let preview_id = preview_of(&world, &id).await["id"].as_str().unwrap().to_owned();
    world.delete(&format!("/sandboxes/{id}")).await.expect(202);
    world.post(&format!("/previews/{preview_id}/share"), json!({})).await.expect(404);
    world.post(&format!("/sandboxes/{id}/previews"), json!({ "port": 4000 })).await.expect(404);
    world.post(&format!("/sandboxes/{id}/expose"), json!({ "port": 4000 })).await.expect(404);
}
