//! Many calls at once for one thing: names, secrets, share tokens. (Idempotency keys and quotas have files of their
//! own.)

use std::collections::BTreeSet;
use std::sync::Arc;

use roost_domain::token;
use roost_scheduler::store::{preview, secret};
use serde_json::{Value, json};

use crate::engines::on_both;
use crate::previews::verify;
use crate::world::{Answer, World};

const CALLS: usize = 64;

/// Sends all of them at once and gathers the answers, in no order.
async fn at_once(world: &Arc<World>, calls: Vec<(&'static str, String, Value)>) -> Vec<Answer> {
    let calls: Vec<_> = calls
        .into_iter()
        .map(|(method, path, body)| {
            let (world, body) = (world.clone(), (method != "DELETE").then_some(body));
            tokio::spawn(async move { world.call(method, &path, body).await })
        })
        .collect();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.unwrap());
    }
    answers
}

#[test]
fn one_of_many_gets_a_slug() {
    on_both(|store| async move { one_slug(Arc::new(World::on(store).await)).await });
}

async fn one_slug(world: Arc<World>) {
    let small = json!({ "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 512 });
    let made = at_once(&world, vec![("POST", "/sandboxes".to_owned(), small); CALLS]).await;
    let ids: Vec<String> =
        made.into_iter().map(|answer| answer.expect(202).data()["id"].as_str().unwrap().to_owned()).collect();
    let wish = json!({ "slug": "the-one" });
    let calls = ids.iter().map(|id| ("PATCH", format!("/sandboxes/{id}"), wish.clone())).collect();
    let (won, lost): (Vec<Answer>, Vec<Answer>) =
        at_once(&world, calls).await.into_iter().partition(|answer| answer.status == 200);
    assert_eq!((won.len(), lost.len()), (1, CALLS - 1));
    for answer in lost {
        assert_eq!((answer.status, answer.code().as_str()), (409, "slug_conflict"), "{}", answer.text());
    }
    let found = world.get("/sandboxes/the-one").await.expect(200).data();
    assert_eq!(found["id"], won[0].data()["id"]);
    let listed = world.get("/sandboxes").await.data();
    let slugs: BTreeSet<&str> =
        listed.as_array().unwrap().iter().map(|row| row["slug"].as_str().unwrap()).collect();
    assert_eq!(slugs.len(), CALLS, "every other sandbox has kept a slug of its own");
}

#[test]
fn a_secret_set_many_times_is_one_secret_with_one_of_the_values() {
    on_both(|store| async move { one_secret(Arc::new(World::on(store).await)).await });
}

async fn one_secret(world: Arc<World>) {
    let value = |number: usize| format!("value-number-{number:03}");
    let set = |number| {
        let body = json!({
            "name": "KEY", "value": value(number), "scope": "external_user", "external_user_id": "u1",
        });
        ("POST", "/egress/secrets".to_owned(), body)
    };
    let answers = at_once(&world, (0..CALLS).map(set).collect()).await;
    let mut versions = BTreeSet::new();
    let mut made = 0;
    for answer in answers {
        match answer.status {
            200 | 201 => {
                made += usize::from(answer.status == 201);
                assert!(
                    versions.insert(answer.data()["version"].as_u64().unwrap()),
                    "two calls made one version"
                );
            }
            _ => assert_eq!(
                (answer.status, answer.code().as_str()),
                (409, "RESOURCE_STATE"),
                "{}",
                answer.text()
            ),
        }
    }
    assert_eq!(made, 1);
    let last = versions.len() as u64;
    assert_eq!(versions.iter().copied().collect::<Vec<_>>(), (1..=last).collect::<Vec<_>>());
    let listed = world.get("/egress/secrets").await.expect(200).data();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["version"]), (1, &json!(last)));
    let id = listed[0]["id"].as_str().unwrap().to_owned();
    let wanted = id.clone();
    let sealed = world.app.store.read(move |tx| secret::find_version(tx, &wanted, last)).await.unwrap();
    assert!(sealed.is_some(), "the present version has no value");
    // Binding it to somebody else's sandbox takes its value, so exactly one of them is it.
    let other = world.sandbox(json!({ "external_user_id": "u2" })).await["id"].clone();
    let mut fitting = 0;
    for number in 0..CALLS {
        let body = json!({ "secret_id": id, "resource_id": other, "value": value(number) });
        let answer = world.post("/egress/bindings", body).await;
        fitting += usize::from(answer.status == 201);
        assert!([201, 403].contains(&answer.status), "{}", answer.text());
    }
    assert_eq!(fitting, 1);
}

#[test]
fn no_share_minted_during_a_revocation_outlives_it() {
    on_both(|store| async move { mint_and_revoke(Arc::new(World::on(store).await)).await });
}

async fn mint_and_revoke(world: Arc<World>) {
    let id = world.sandbox_id().await;
    let made =
        world.post(&format!("/sandboxes/{id}/previews"), json!({ "port": 3000 })).await.expect(201).data();
    let preview_id = made["id"].as_str().unwrap().to_owned();
    let path = format!("/previews/{preview_id}/share");
    let calls = (0..CALLS + 4).map(|number| {
        let method = if number % 16 == 8 { "DELETE" } else { "POST" };
        (method, path.clone(), json!({}))
    });
    let mut minted = Vec::new();
    for answer in at_once(&world, calls.collect()).await {
        match answer.status {
            204 => {}
            _ => minted.push(answer.expect(201).json()["preview_token"].as_str().unwrap().to_owned()),
        }
    }
    assert_eq!(minted.len(), CALLS);
    let generation = async || {
        let (tenant, wanted) = (world.tenant.clone(), preview_id.clone());
        world
            .app
            .store
            .read(move |tx| preview::find(tx, &tenant, &wanted))
            .await
            .unwrap()
            .unwrap()
            .share_generation
    };
    let now = u64::try_from(generation().await).unwrap();
    assert_eq!(now, 5, "four revocations");
    // Hosts believe a token whose generation is the preview's. What is listed is what they believe.
    let listed = world.get(&path).await.expect(200).data();
    let listed: BTreeSet<String> =
        listed.as_array().unwrap().iter().map(|row| row["token_id"].as_str().unwrap().to_owned()).collect();
    let mut believed = BTreeSet::new();
    for text in &minted {
        let parts = token::split(text, "miosa").unwrap();
        let claims = verify(&world, parts.jwt).await;
        assert!(claims.generation <= now);
        if claims.generation == now {
            believed.insert(parts.tid.to_owned());
        }
    }
    assert_eq!(believed, listed);
    world.delete(&path).await.expect(204);
    assert_eq!(u64::try_from(generation().await).unwrap(), now + 1);
    assert_eq!(world.get(&path).await.data(), json!([]));
}
