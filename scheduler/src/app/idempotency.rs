//! One effect for one `Idempotency-Key`: repeats get the first answer, also while it is still being made.
//!
//! ```text
//! claim ──won──▶ run ──final──▶ stored for 24 h
//!   │             └──5xx, or worth another try──▶ given back, the next attempt runs again
//!   └─lost──▶ same request: wait for the answer, or for the owner's end · another request: refused
//! ```
//! The work runs in a task of its own, so a client that goes away neither stops it nor leaves the key
//! claimed. An answer can be lost after the effect was committed (this process dies, the store breaks off), so what is
//! made under a key has an id that follows from the claim: an attempt that runs again finds what the one before made.
//!
//! A claim is a short lease that its owner renews while the work runs, so a repeat takes over seconds after the owner's
//! process ended. Several schedulers compare the lease with their own clocks. One that is behind waits longer by as
//! much; one that is ahead by more than [`OWNER_LIVES_US`] less [`RENEWAL`] takes over from an owner that lives. Then
//! both do the work, which the id makes one effect, and the answer is the one that was stored first, for both.

use std::convert::Infallible;
use std::time::Duration;

use roost_domain::Ulid;
use roost_domain::sabotage::Defence;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{App, Caller, Error};
use crate::store::idempotency::{self, Idempotency};
use crate::store::{self, Tx};

pub const MAX_KEY_BYTES: usize = 255;
const KEPT_US: i64 = 24 * 3600 * 1_000_000;
/// How long an owner is believed to be alive that does not say so again.
const OWNER_LIVES_US: i64 = 5_000_000;
/// Several fit into the life of a claim, so that one lost or late write does not end it. A call that ends before the
/// first one writes nothing for it.
const RENEWAL: Duration = Duration::from_millis(1500);
/// How long a repeat waits for the first one's answer.
const JOIN_PATIENCE: Duration = Duration::from_secs(55);
const JOIN_POLL: Duration = Duration::from_millis(20);
/// A write of ours whose outcome is not known is asked again: left alone it would keep the key claimed.
const WRITE_ATTEMPTS: u32 = 3;
const WRITE_PAUSE: Duration = Duration::from_millis(50);

/// An answer as it is stored and sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// What became of a claim.
#[derive(Debug)]
pub enum Claim {
    /// This caller does the work inside [`Ticket::hold`] and then calls [`Ticket::finish`].
    Won(Ticket),
    /// Somebody did it before.
    Answered(Answer),
}

/// The right and the duty to answer for a key.
#[derive(Debug, Clone)]
pub struct Ticket {
    claim: Idempotency,
}

/// What makes two requests the same: who calls, what for, with which body.
pub fn fingerprint(caller: &Caller, method: &str, target: &str, body: &[u8]) -> Vec<u8> {
    let mut digest = Sha256::new();
    for part in [caller.key_id.as_bytes(), method.as_bytes(), target.as_bytes(), body] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.finalize().to_vec()
}

/// Claims the key or waits for the answer of whoever has it.
pub async fn claim(app: &App, caller: &Caller, key: &str, request_sha256: Vec<u8>) -> Result<Claim, Error> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(Error::invalid("Idempotency-Key", format!("1 to {MAX_KEY_BYTES} bytes")));
    }
    let owner = uuid::Uuid::new_v4().to_string();
    let deadline = Instant::now() + JOIN_PATIENCE;
    loop {
        let now_us = app.now_us();
        let row = Idempotency {
            tenant_id: caller.tenant_id.clone(),
            key: key.to_owned(),
            request_sha256: request_sha256.clone(),
            owner: owner.clone(),
            owner_until_us: now_us + OWNER_LIVES_US,
            status: None,
            body: None,
            created_us: now_us,
            expires_us: now_us + KEPT_US,
        };
        let (won, found) = write(app, move |tx| {
            let won = idempotency::claim(tx, &row, now_us)?;
            Ok((won, idempotency::find(tx, &row.tenant_id, &row.key)?))
        })
        .await?;
        match found {
            Some(claim) if won => return Ok(Claim::Won(Ticket { claim })),
            Some(row) if row.request_sha256 != request_sha256 => return Err(Error::IdempotencyKeyReused),
            Some(row) => {
                if let Some(answer) = row.answer() {
                    return Ok(Claim::Answered(answer));
                }
            }
            None => {}
        }
        wait_for_answer(app, caller, key, deadline).await?;
    }
}

/// Writes what may be written twice, again if it is not known whether it was.
async fn write<T, F>(app: &App, work: F) -> Result<T, store::Error>
where
    T: Send + 'static,
    F: Fn(&mut Tx<'_>) -> Result<T, store::Error> + Clone + Send + 'static,
{
    let mut attempt = 1;
    loop {
        match app.store.write(work.clone()).await {
            Err(error) if error.is_transient() && attempt < WRITE_ATTEMPTS => {
                tokio::time::sleep(WRITE_PAUSE * attempt).await;
                attempt += 1;
            }
            other => return other,
        }
    }
}

/// The id of what is made under a claim: the same for every attempt, another for a key that is used anew.
fn effect(row: &Idempotency) -> Ulid {
    let mut digest = Sha256::new();
    for part in [row.tenant_id.as_bytes(), row.key.as_bytes(), &row.request_sha256] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.update(row.created_us.to_le_bytes());
    let mut random = [0u8; 16];
    random.copy_from_slice(&digest.finalize()[..16]);
    Ulid::from_parts(u64::try_from(row.created_us / 1000).unwrap_or(0), u128::from_be_bytes(random))
}

/// Reads until the key has an answer or nobody, so that a joined call does not keep the writer busy.
async fn wait_for_answer(app: &App, caller: &Caller, key: &str, deadline: Instant) -> Result<(), Error> {
    loop {
        let (tenant_id, key, now_us) = (caller.tenant_id.clone(), key.to_owned(), app.now_us());
        let found = app.store.read(move |tx| idempotency::find(tx, &tenant_id, &key)).await?;
        let pending = found.is_some_and(|row| row.status.is_none() && row.owner_until_us > now_us);
        if !pending {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::IdempotencyInProgress);
        }
        tokio::time::sleep(JOIN_POLL).await;
    }
}

impl Ticket {
    /// The id of what the work makes, if it makes something.
    pub fn effect(&self) -> Ulid {
        if Defence::KeyEffect.is_off() { Ulid::generate() } else { effect(&self.claim) }
    }

    /// Runs the work and keeps the key claimed for as long as it takes.
    pub async fn hold<F: Future>(&self, app: &App, work: F) -> F::Output {
        tokio::select! {
            done = work => done,
            never = self.renew_while_owned(app) => match never {},
        }
    }

    /// Stops writing once the claim is lost: whoever has it now does the same work, and two renewing one would fight.
    async fn renew_while_owned(&self, app: &App) -> Infallible {
        loop {
            tokio::time::sleep(RENEWAL).await;
            let (claim, until_us) = (self.claim.clone(), app.now_us() + OWNER_LIVES_US);
            let renewed = app.store.write(move |tx| {
                idempotency::renew(tx, &claim.tenant_id, &claim.key, &claim.owner, until_us)
            });
            match renewed.await {
                Ok(true) => {}
                Ok(false) => std::future::pending().await,
                // The next one may come in time. If none does, another attempt finds what this one made.
                Err(error) => {
                    let error = roost_daemon::telemetry::chain(&error);
                    tracing::warn!(error, "the claim of an idempotency key was not renewed");
                }
            }
        }
    }

    /// Stores the answer, or gives the key back where the same request may do better later. If another attempt at the
    /// same claim has answered, that answer is everybody's and comes back.
    pub async fn finish(self, app: &App, answer: &Answer, is_final: bool) -> Result<Option<Answer>, Error> {
        let answer = answer.clone();
        let other = write(app, move |tx| {
            let Idempotency { tenant_id, key, owner, .. } = &self.claim;
            let is_ours = if is_final {
                idempotency::complete(tx, &self.claim, answer.status, &answer.body)?
            } else {
                idempotency::abandon(tx, tenant_id, key, owner)?
            };
            if is_ours {
                return Ok(None);
            }
            // Another's where the key was used anew since: no answer to this request.
            let found = idempotency::find(tx, tenant_id, key)?;
            Ok(found.filter(|row| effect(row) == effect(&self.claim)))
        });
        Ok(other.await?.and_then(Idempotency::answer))
    }
}

impl Idempotency {
    fn answer(self) -> Option<Answer> {
        let status = u16::try_from(self.status?).unwrap_or(500);
        Some(Answer { status, body: self.body.unwrap_or_default() })
    }
}
