//! Leases in time: how long one serves, when it is asked for again, and what a change does to an answer under
//! way.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::*;

/// Answers with one credential; its version tells the answers apart.
#[derive(Debug, Default)]
struct Vault {
    asked: AtomicUsize,
    away: AtomicBool,
    /// Answers wait for this when `slow`.
    slow: AtomicBool,
    go: Notify,
}

const LEASE_US: i64 = 30_000_000;

#[async_trait::async_trait]
impl Leases for Vault {
    async fn resolve(&self, request: ResolveRequest) -> Result<Vec<Resolution>, Error> {
        let version = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        if self.slow.load(Ordering::Relaxed) {
            self.go.notified().await;
        }
        if self.away.load(Ordering::Relaxed) {
            return Err(Error::Unavailable("away".into()));
        }
        let outcome = resolution::Outcome::Credential(LeasedCredential {
            secret_id: format!("sec_{version}"),
            value: "value".into(),
            expires_us: now_us() + LEASE_US,
            ..LeasedCredential::default()
        });
        let answer = |placeholder| Resolution { placeholder, outcome: Some(outcome.clone()) };
        Ok(request.placeholders.into_iter().map(answer).collect())
    }
}

fn ids(leases: &HashMap<String, Lease>) -> Vec<String> {
    let id = |lease: &Lease| match lease {
        Lease::Credential(credential) => credential.secret_id.clone(),
        other => format!("{other:?}"),
    };
    leases.values().map(id).collect()
}

fn request() -> ResolveRequest {
    ResolveRequest { placeholders: vec!["ph".to_owned()], ..ResolveRequest::default() }
}

/// What a request would use: from memory, else asked for.
async fn resolve(cache: &LeaseCache, vault: &Vault) -> Result<Vec<String>, Error> {
    let known = cache.look_up(&["ph".to_owned()]);
    if known.missing.is_empty() {
        return Ok(ids(&known.leases));
    }
    cache.ask(vault, request(), &known).await.map(|leases| ids(&leases))
}

#[tokio::test(start_paused = true)]
async fn a_lease_serves_until_it_expires_and_not_longer() {
    let (cache, vault) = (LeaseCache::default(), Vault::default());
    assert_eq!(resolve(&cache, &vault).await.unwrap(), ["sec_1"]);
    vault.away.store(true, Ordering::Relaxed);
    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!(resolve(&cache, &vault).await.unwrap(), ["sec_1"]);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(matches!(resolve(&cache, &vault).await, Err(Error::Unavailable(_))), "fail closed");
}

#[tokio::test(start_paused = true)]
async fn a_lease_in_use_is_renewed_once_it_is_ten_seconds_old() {
    let (cache, vault) = (LeaseCache::default(), Vault::default());
    resolve(&cache, &vault).await.unwrap();
    assert!(cache.look_up(&["ph".to_owned()]).renew.is_empty());
    tokio::time::advance(Duration::from_secs(11)).await;
    let known = cache.look_up(&["ph".to_owned()]);
    assert_eq!((ids(&known.leases), known.renew.len()), (vec!["sec_1".to_owned()], 1), "served meanwhile");
    assert!(cache.look_up(&["ph".to_owned()]).renew.is_empty(), "by one request only");
    // A renewal that fails leaves the lease as it was and may be tried again.
    vault.away.store(true, Ordering::Relaxed);
    cache.ask(&vault, request(), &known).await.unwrap_err();
    vault.away.store(false, Ordering::Relaxed);
    let known = cache.look_up(&["ph".to_owned()]);
    assert_eq!(known.renew.len(), 1);
    cache.ask(&vault, request(), &known).await.unwrap();
    tokio::time::advance(Duration::from_secs(25)).await;
    assert_eq!(resolve(&cache, &vault).await.unwrap(), ["sec_3"], "36 s after the first");
}

#[tokio::test(start_paused = true)]
async fn a19_an_answer_that_a_change_overtook_is_not_kept() {
    let (cache, vault) = (LeaseCache::default(), Vault::default());
    vault.slow.store(true, Ordering::Relaxed);
    let asking = resolve(&cache, &vault);
    let changing = async {
        tokio::task::yield_now().await;
        cache.forget(&["sec_1".to_owned()]);
        vault.slow.store(false, Ordering::Relaxed);
        vault.go.notify_one();
    };
    let (first, ()) = tokio::join!(asking, changing);
    assert_eq!(first.unwrap(), ["sec_1"]);
    assert_eq!(resolve(&cache, &vault).await.unwrap(), ["sec_2"], "asked again");
}

#[tokio::test(start_paused = true)]
async fn a10_a_change_drops_what_it_names() {
    let (cache, vault) = (LeaseCache::default(), Vault::default());
    resolve(&cache, &vault).await.unwrap();
    cache.forget(&["sec_other".to_owned()]);
    assert_eq!(resolve(&cache, &vault).await.unwrap(), ["sec_1"]);
    cache.forget(&["sec_1".to_owned()]);
    assert_eq!(resolve(&cache, &vault).await.unwrap(), ["sec_2"]);
    cache.forget(&[]);
    assert_eq!(resolve(&cache, &vault).await.unwrap(), ["sec_3"]);
}

#[tokio::test(start_paused = true)]
async fn a_scheduler_that_does_not_answer_is_not_waited_for() {
    let (cache, vault) = (LeaseCache::default(), Vault::default());
    vault.slow.store(true, Ordering::Relaxed);
    assert!(matches!(resolve(&cache, &vault).await, Err(Error::Timeout)));
}

#[tokio::test(start_paused = true)]
async fn made_up_placeholders_do_not_grow_the_cache() {
    let (cache, vault) = (LeaseCache::default(), Vault::default());
    for index in 0..2 * MAX_LEASES {
        let placeholders = vec![format!("ph{index}")];
        let known = cache.look_up(&placeholders);
        let request = ResolveRequest { placeholders, ..ResolveRequest::default() };
        cache.ask(&vault, request, &known).await.unwrap();
        tokio::time::advance(Duration::from_micros(1)).await;
    }
    assert_eq!(cache.lock().kept.len(), MAX_LEASES);
}

#[test]
fn an_answer_must_name_every_placeholder_and_come_in_time() {
    let wanted = ["a".to_owned(), "b".to_owned()];
    let resolution = |placeholder: &str, expires_us| Resolution {
        placeholder: placeholder.to_owned(),
        outcome: Some(resolution::Outcome::Credential(LeasedCredential {
            expires_us,
            ..LeasedCredential::default()
        })),
    };
    let later = now_us() + LEASE_US;
    assert!(read_answer(&wanted, vec![resolution("a", later), resolution("b", later)]).is_ok());
    let error = read_answer(&wanted, vec![resolution("a", later), resolution("c", later)]).unwrap_err();
    assert!(matches!(error, Error::Incomplete { asked: 2, answered: 1 }));
    let skewed = read_answer(&wanted, vec![resolution("a", now_us() - LEASE_US), resolution("b", later)]);
    assert!(matches!(skewed, Err(Error::Expired(by)) if by >= Duration::from_secs(29)), "{skewed:?}");
    let eternal = read_answer(&wanted[..1], vec![resolution("a", i64::MAX)]).unwrap();
    assert_eq!(eternal["a"].1, KEEP_AT_MOST);
}

#[test]
fn a_credential_shows_its_value_to_nobody() {
    let leased = LeasedCredential {
        value: "SENTINEL".into(),
        secret_id: "sec_1".to_owned(),
        ..LeasedCredential::default()
    };
    let shown = format!("{:?}", Lease::Credential(Arc::new(leased.into())));
    assert!(shown.contains("sec_1") && !shown.contains("SENTINEL"), "{shown}");
}
