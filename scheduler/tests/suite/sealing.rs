//! The vault's keys: what is sealed under them, what does not open, and the keys that sign.

use std::sync::Arc;

use roost_domain::placeholder::Format;
use roost_scheduler::secret::{Error, Scope, Vault};
use roost_scheduler::store::{Store, params};

use crate::engines::on_both;
use crate::vault::{BOUND, World};

#[test]
fn a_row_moved_or_bent_does_not_open() {
    on_both(|store| async move {
        let world = World::new(store.clone()).await;
        let victim = world
            .set(world.secret(Scope::ExternalUser("alice".into()), "sk-live-of-alice-1234"))
            .await
            .unwrap();
        let mine = world
            .set(world.secret(Scope::ExternalUser("mallory".into()), "sk-live-of-mallory-12"))
            .await
            .unwrap();
        let sandbox = world.sandbox(|row| row.external_user_id = Some("mallory".into())).await;
        let placeholder = world.placeholder(&sandbox).await.unwrap();
        let resolves = || {
            let (vault, sandbox, asked) = (world.vault.clone(), sandbox.clone(), vec![placeholder.clone()]);
            store.examine(move |tx| vault.resolve(tx, &sandbox, &asked, BOUND))
        };
        assert!(resolves().await.is_ok());
        let hosts = "UPDATE secret SET allowed_hosts = '[\"evil.example.com\"]' WHERE id = ?1";
        let id = mine.secret.id.clone();
        store.write(move |tx| tx.execute(hosts, params![&id])).await.unwrap();
        assert!(matches!(resolves().await, Err(Error::Crypto { .. })), "other hosts");
        let back = "UPDATE secret SET allowed_hosts = '[\"api.openai.com\"]' WHERE id = ?1";
        let id = mine.secret.id.clone();
        store.write(move |tx| tx.execute(back, params![&id])).await.unwrap();
        assert!(resolves().await.is_ok());
        let (mine, victim) = (mine.secret.id, victim.secret.id);
        let swap =
            "UPDATE secret_version SET sealed = (SELECT sealed FROM secret_version WHERE secret_id = ?2)
            WHERE secret_id = ?1";
        store.write(move |tx| tx.execute(swap, params![&mine, &victim])).await.unwrap();
        assert!(matches!(resolves().await, Err(Error::Crypto { .. })), "another's value");
    });
}

#[test]
fn no_value_is_stored_in_clear_and_the_scanner_would_find_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("scheduler.db");
    let store = Store::open(roost_scheduler::store::Settings::Sqlite { path }).unwrap();
    let value = "sk-live-SENTINEL-0123456789";
    crate::engines::runtime().block_on(async {
        let world = World::new(store).await;
        let mut planted = world.secret(Scope::Tenant, value);
        planted.metadata.insert("planted".into(), "PLANTED-0123456789".into());
        let stored = world.set(planted).await.unwrap();
        let sandbox = world.sandbox(|_| ()).await;
        let placeholder = world.placeholder(&sandbox).await.unwrap();
        assert_eq!(world.resolve(&sandbox, &placeholder).await.value(), value);
        assert!(!format!("{stored:?} {:?}", world.vault).contains("SENTINEL"));
    });
    // The store is being closed: a journal that is gone meanwhile is in the database, which may have been read before.
    let bytes = loop {
        let files = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
        let read: std::io::Result<Vec<Vec<u8>>> = files.map(std::fs::read).collect();
        match read {
            Ok(files) => break files.concat(),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
        }
    };
    let holds = |needle: &str| bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
    assert!(holds("PLANTED-0123456789"), "the scanner works");
    assert!(!holds("SENTINEL"));
}

#[test]
fn the_wrong_master_key_is_named_and_opens_nothing() {
    on_both(|store| async move {
        let world = World::new(store.clone()).await;
        world.set(world.secret(Scope::Tenant, "sk-live-0123456789abcdef")).await.unwrap();
        let sandbox = world.sandbox(|_| ()).await;
        world.placeholder(&sandbox).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let other = Vault::ensure_master_key(&directory.path().join("master.key")).unwrap();
        let vault = Vault::new(store, Arc::new(world.clock.clone()), other, Format::default());
        let error = vault.environment(&sandbox).await.unwrap_err();
        assert!(matches!(error, Error::OtherMasterKey { .. }), "{error}");
    });
}

#[test]
fn signing_keys_rotate_and_outlive_their_tokens() {
    on_both(|store| async move {
        let world = World::new(store).await;
        let first = world.vault.signing_key().await.unwrap();
        let jwt = first.sign(&serde_json::json!({"sub": "x"})).unwrap();
        let keys = world.vault.public_keys().await.unwrap();
        assert_eq!(keys.len(), 1);
        let verifying = jsonwebtoken::DecodingKey::from_ed_der(&keys[0].bytes);
        let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::EdDSA);
        rules.required_spec_claims.clear();
        rules.validate_exp = false;
        let claims = jsonwebtoken::decode::<serde_json::Value>(&jwt, &verifying, &rules).unwrap();
        assert_eq!(claims.claims["sub"], "x");
        assert_eq!(jsonwebtoken::decode_header(&jwt).unwrap().kid.as_deref(), Some(keys[0].kid.as_str()));
        world.clock.advance_us(7 * 86_400_000_000);
        let second = world.vault.signing_key().await.unwrap();
        assert_ne!(first.kid, second.kid);
        assert_eq!(world.vault.public_keys().await.unwrap().len(), 2, "the old one still verifies");
        world.clock.advance_us(86_400_000_000 + 3_600_000_000);
        let kids: Vec<String> =
            world.vault.public_keys().await.unwrap().into_iter().map(|key| key.kid).collect();
        assert_eq!(kids, [second.kid]);
    });
}
