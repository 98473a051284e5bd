//! The lease of an idempotency key: a repeat takes over from an owner that died, and from no other.
//!
//! Time passes on the scheduler's clock only as far as a test says; renewals come in real time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use roost_scheduler::app::idempotency::{Answer as Stored, Claim, Ticket, claim};
use roost_scheduler::params;
use roost_scheduler::store::Store;
use roost_scheduler::store::fate::{Fate, Fates};
use roost_scheduler::store::idempotency::{self, Idempotency};
use roost_scheduler::store::sandbox;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::engines::on_both;
use crate::fault::plan::Ahead;
use crate::host::Mood;
use crate::world::{Answer, World};

const LEASE_US: i64 = 5_000_000;
/// What a repeat may take, in real time, once the owner's lease is over.
const TAKEN_OVER: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

struct Rig {
    world: World,
    /// Without fates.
    store: Store,
    clock: Ahead,
}

impl Rig {
    /// A host that begins what it is told and does not end it, so that calls go on until the test says.
    async fn new(store: Store) -> Rig {
        let clock = Ahead::default();
        let directory = tempfile::tempdir().unwrap();
        let world = World::with_clock(store.clone(), directory, 1_000_000, Arc::new(clock.clone())).await;
        // A key's first use is a write of its own.
        world.get("/sandboxes").await.expect(200);
        world.host.set_mood(Mood::Slow);
        Rig { world, store, clock }
    }

    async fn claimed(&self) -> Option<Idempotency> {
        let tenant = self.world.tenant.clone();
        self.store.read(move |tx| idempotency::find(tx, &tenant, "k")).await.unwrap()
    }

    /// Waits for a claim like this.
    async fn until(&self, what: &str, good: impl Fn(&Idempotency) -> bool) -> Idempotency {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(row) = self.claimed().await.filter(|row| good(row)) {
                return row;
            }
            assert!(Instant::now() < deadline, "never: {what}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the host was told of the one sandbox: the call's effect is there, its answer is not.
    async fn until_effect(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.world.host.held.lock().unwrap().is_empty() {
            assert!(Instant::now() < deadline, "nothing was made");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until what the host said of the one sandbox is recorded.
    async fn until_recorded(&self) {
        self.until_effect().await;
        let id = self.ids().await.remove(0);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let id = id.clone();
            let row = self.store.read(move |tx| sandbox::find_any(tx, &id)).await.unwrap().unwrap();
            if row.observed_generation > 0 {
                return;
            }
            assert!(Instant::now() < deadline, "the host's word was not recorded");
            tokio::time::sleep(POLL).await;
        }
    }

    async fn ids(&self) -> Vec<String> {
        let rows = self.world.get("/sandboxes").await.expect(200).data();
        rows.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    }
}

/// A create under the one key, in a task of its own.
fn create(world: &World) -> JoinHandle<Answer> {
    let world = world.clone();
    tokio::spawn(async move {
        let body = json!({ "name": "one", "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 512 });
        let key = [("idempotency-key", "k")];
        world.call_as(&world.key, "POST", "/sandboxes?wait=100", Some(body), &key).await
    })
}

async fn answer(call: JoinHandle<Answer>, within: Duration) -> Answer {
    tokio::time::timeout(within, call).await.expect("an answer in time").unwrap()
}

#[test]
fn a_repeat_takes_over_within_the_lease_of_an_owner_that_died() {
    on_both(|store| async move { take_over(Rig::new(store).await).await });
}

async fn take_over(rig: Rig) {
    let plan = rig.world.host.plan.clone();
    let process = plan.enter();
    let _dead = create(&rig.world.beside(rig.store.under(Arc::new(process))));
    rig.until_effect().await;
    plan.die();
    let left = rig.claimed().await.unwrap();
    let successor = rig.world.beside(rig.store.under(Arc::new(plan.enter())));
    rig.world.host.set_mood(Mood::Prompt);
    let repeat = create(&successor);
    let left_us = left.owner_until_us - successor.app.now_us();
    assert!(left_us <= LEASE_US, "nobody waits longer than that");
    rig.clock.pass_us(left_us.max(0));
    let made = answer(repeat, TAKEN_OVER).await.expect(201);
    assert!(!made.headers.contains_key("idempotent-replayed"));
    assert_eq!(rig.ids().await, [made.data()["id"].as_str().unwrap()]);
    assert_eq!(rig.world.audited("sandbox.created").await.len(), 1);
    let taken_us = rig.claimed().await.unwrap().owner_until_us - LEASE_US;
    assert!(taken_us >= left.owner_until_us, "no repeat runs while the owner is believed alive");
}

#[test]
fn an_owner_that_is_slow_and_alive_keeps_the_key() {
    on_both(|store| async move { keep(Rig::new(store).await).await });
}

async fn keep(rig: Rig) {
    let first = create(&rig.world);
    rig.until_effect().await;
    let claimed = rig.claimed().await.unwrap();
    let repeat = create(&rig.world.beside(rig.store.clone()));
    let mut until_us = claimed.owner_until_us;
    // Together more than two leases.
    for _ in 0..6 {
        rig.clock.pass_us(2_000_000);
        let renewed = rig.until("a renewal", |row| row.owner_until_us > until_us).await;
        assert_eq!(renewed.owner, claimed.owner);
        until_us = renewed.owner_until_us;
    }
    assert!(until_us > claimed.owner_until_us + 2 * LEASE_US);
    assert!(!first.is_finished() && !repeat.is_finished());
    rig.world.host.set_mood(Mood::Prompt);
    rig.world.app.fleet.ensure_soon(&rig.ids().await[0]);
    let (first, repeat) =
        (answer(first, PATIENCE).await.expect(201), answer(repeat, PATIENCE).await.expect(201));
    assert_eq!(first.bytes, repeat.bytes);
    assert!(!first.headers.contains_key("idempotent-replayed"));
    assert!(repeat.headers.contains_key("idempotent-replayed"));
    assert_eq!(rig.claimed().await.unwrap().owner, claimed.owner);
    assert_eq!(rig.ids().await.len(), 1);
}

/// The clocks of two schedulers differ by more than a lease: both run the call, and there is one effect and one answer.
#[test]
fn an_owner_that_lost_its_lease_is_answered_what_was_stored() {
    on_both(|store| async move { lose(Rig::new(store).await).await });
}

async fn lose(rig: Rig) {
    let first = create(&rig.world);
    rig.until_effect().await;
    let lost = rig.claimed().await.unwrap().owner;
    let ended = rig.store.write(|tx| tx.execute("UPDATE idempotency SET owner_until_us = 0", params![]));
    ended.await.unwrap();
    let second = create(&rig.world.beside(rig.store.clone()));
    rig.until("another owner", |row| row.owner != lost).await;
    // The other one answers first, and not what the first would have said.
    let id = rig.ids().await.remove(0);
    let stored = rig.world.get(&format!("/sandboxes/{id}")).await.expect(200);
    assert_eq!(stored.data()["state"], "creating");
    let body = stored.bytes.to_vec();
    let told = rig.store.write(move |tx| {
        tx.execute("UPDATE idempotency SET status = 202, body = ?1", params![body.as_slice()])
    });
    told.await.unwrap();
    rig.world.host.set_mood(Mood::Prompt);
    rig.world.app.fleet.ensure_soon(&id);
    for call in [first, second] {
        assert_eq!(answer(call, PATIENCE).await.expect(202).bytes, stored.bytes);
    }
    assert_eq!(rig.ids().await.len(), 1);
    assert_eq!(rig.world.audited("sandbox.created").await.len(), 1);
}

/// The same, and the one that lost its lease answers first.
#[test]
fn an_owner_that_took_over_is_answered_what_was_stored() {
    on_both(|store| async move { outrun(Rig::new(store).await).await });
}

async fn outrun(rig: Rig) {
    let app = &rig.world.app;
    let caller = app.authenticate(&rig.world.key, "request".to_owned()).await.unwrap();
    let lost = won(claim(app, &caller, "k", vec![7]).await.unwrap());
    rig.clock.pass_us(LEASE_US);
    let taken = won(claim(app, &caller, "k", vec![7]).await.unwrap());
    assert_eq!(taken.effect(), lost.effect());
    let said = |status, body: &str| Stored { status, body: body.into() };
    assert_eq!(lost.finish(app, &said(201, "first"), true).await.unwrap(), None);
    let first = said(201, "first");
    assert_eq!(taken.clone().finish(app, &said(202, "second"), true).await.unwrap(), Some(first.clone()));
    // Nor is it taken from those who come later by one that gives up.
    assert_eq!(taken.clone().finish(app, &said(503, ""), false).await.unwrap(), Some(first.clone()));
    assert!(
        matches!(claim(app, &caller, "k", vec![7]).await.unwrap(), Claim::Answered(kept) if kept == first)
    );
    // A key that is used anew has nothing to do with who had it before.
    rig.clock.pass_us(25 * 3600 * 1_000_000);
    let anew = won(claim(app, &caller, "k", vec![8]).await.unwrap());
    assert_eq!(taken.clone().finish(app, &said(202, "late"), true).await.unwrap(), None);
    assert_eq!(anew.finish(app, &said(201, "anew"), true).await.unwrap(), None);
    assert_eq!(taken.finish(app, &said(202, "late"), true).await.unwrap(), None);
    assert_eq!(rig.claimed().await.unwrap().body.unwrap(), b"anew");
}

fn won(claim: Claim) -> Ticket {
    let Claim::Won(ticket) = claim else { panic!("{claim:?}") };
    ticket
}

/// Counts transactions that write, and refuses the next one once it is told to.
#[derive(Debug, Default)]
struct Writes {
    met: AtomicUsize,
    refuses: AtomicBool,
}

impl Fates for Writes {
    fn of_write(&self) -> Fate {
        self.met.fetch_add(1, Ordering::SeqCst);
        if self.refuses.swap(false, Ordering::SeqCst) { Fate::Refused } else { Fate::Heard }
    }

    fn of_read(&self) -> Fate {
        Fate::Heard
    }
}

#[test]
fn a_call_that_ends_soon_writes_nothing_to_keep_its_key() {
    on_both(|store| async move {
        let rig = Rig::new(store).await;
        rig.world.host.set_mood(Mood::Prompt);
        let writes = Arc::new(Writes::default());
        let begun = Instant::now();
        answer(create(&rig.world.beside(rig.store.under(writes.clone()))), PATIENCE).await.expect(201);
        // The claim, the sandbox, what its host said, the answer; a machine that is slow has time to renew.
        let renewals = begun.elapsed().as_millis() / 1500;
        assert!(writes.met.load(Ordering::SeqCst) as u128 <= 4 + renewals);
    });
}

#[test]
fn a_renewal_that_fails_fails_nothing() {
    on_both(|store| async move {
        let rig = Rig::new(store).await;
        let writes = Arc::new(Writes::default());
        let call = create(&rig.world.beside(rig.store.under(writes.clone())));
        rig.until_recorded().await;
        // From here on the call writes nothing but renewals.
        writes.refuses.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + PATIENCE;
        while writes.refuses.load(Ordering::SeqCst) {
            assert!(Instant::now() < deadline, "nothing was refused");
            tokio::time::sleep(POLL).await;
        }
        let claimed = rig.claimed().await.unwrap();
        let renewed = rig.until("a renewal", |row| row.owner_until_us > claimed.owner_until_us).await;
        assert_eq!(renewed.owner, claimed.owner);
        rig.world.host.set_mood(Mood::Prompt);
        rig.world.app.fleet.ensure_soon(&rig.ids().await[0]);
        answer(call, PATIENCE).await.expect(201);
    });
}
