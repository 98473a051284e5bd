//! Leases of credentials: asked for when a placeholder is met, kept in memory until they expire, never
//! longer.
//!
//! ```text
//! absent ─ask─▶ fresh ─10 s, used─▶ renewing ─▶ fresh
//!                 └─────── 30 s, not renewed ───▶ absent
//! ```
//! A change that the scheduler pushes empties what it names at once; an answer asked for before the change
//! and come after it is not kept. When the scheduler cannot be asked and the lease is over, there is no
//! credential.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use http::HeaderName;
use roost_daemon::clock::now_us;
use roost_domain::host_name::Pattern;
use roost_domain::sabotage::Defence;
use roost_proto::host::{Credential as LeasedCredential, Resolution, ResolveRequest, resolution};
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::egress::scrub::Scrub;

/// A lease in use is renewed when it is this old.
const RENEW_AFTER: Duration = Duration::from_secs(10);
/// No lease is kept longer, whatever it says: the greatest revocation bound there is.
const KEEP_AT_MOST: Duration = Duration::from_secs(600);
/// How long "no such secret" is believed; short, since a secret may be stored at any moment.
const NEGATIVE_FOR: Duration = Duration::from_millis(250);
/// Leases of one execution; a guest that makes up placeholders pushes out the oldest.
const MAX_LEASES: usize = 256;
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the scheduler cannot be asked for credentials")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the scheduler did not answer within {ASK_TIMEOUT:?}")]
    Timeout,
    #[error("the scheduler answered for {answered} of {asked} placeholders")]
    Incomplete { asked: usize, answered: usize },
    #[error("the scheduler's lease is over on arrival; the clocks differ by at least {0:?}")]
    Expired(Duration),
}

/// Whoever can be asked for leases.
#[async_trait::async_trait]
pub trait Leases: Send + Sync + fmt::Debug {
    async fn resolve(&self, request: ResolveRequest) -> Result<Vec<Resolution>, Error>;
}

/// A host without a scheduler: no credentials.
#[derive(Debug, Clone, Copy)]
pub struct NoScheduler;

#[async_trait::async_trait]
impl Leases for NoScheduler {
    async fn resolve(&self, _: ResolveRequest) -> Result<Vec<Resolution>, Error> {
        Err(Error::Unavailable("this host has no scheduler".into()))
    }
}

/// A credential in memory. Its value is shown nowhere and wiped when dropped.
pub(crate) struct Credential {
    pub(crate) secret_id: String,
    pub(crate) logical_key: String,
    pub(crate) scope: String,
    pub(crate) hosts: Vec<Pattern>,
    pub(crate) slots: Vec<HeaderName>,
    pub(crate) unbound: bool,
    value: Zeroizing<Vec<u8>>,
    scrub: OnceLock<Arc<Scrub>>,
}

impl Credential {
    /// What takes the value out of responses. A lease is that of one placeholder, which takes its place.
    pub(crate) fn scrub(&self, placeholder: &str) -> Arc<Scrub> {
        Arc::clone(self.scrub.get_or_init(|| Arc::new(Scrub::new(&self.value, placeholder))))
    }

    pub(crate) fn expose(&self) -> &[u8] {
        &self.value
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Credential").field("secret_id", &self.secret_id).finish_non_exhaustive()
    }
}

impl From<LeasedCredential> for Credential {
    fn from(leased: LeasedCredential) -> Self {
        // A pattern or slot that does not parse permits nothing.
        Self {
            hosts: leased.allowed_hosts.iter().filter_map(|text| Pattern::parse(text).ok()).collect(),
            slots: leased.slots.iter().filter_map(|text| text.parse().ok()).collect(),
            secret_id: leased.secret_id,
            logical_key: leased.logical_key,
            scope: leased.scope,
            unbound: leased.unbound,
            value: Zeroizing::new(leased.value.to_vec()),
            scrub: OnceLock::new(),
        }
    }
}

/// What a placeholder stands for, to the execution that asked.
#[derive(Debug, Clone)]
pub(crate) enum Lease {
    Credential(Arc<Credential>),
    /// No secret matches; the placeholder is forwarded as it is.
    None {
        reason: String,
    },
    /// It belongs to another sandbox.
    Foreign {
        reason: String,
    },
}

#[derive(Debug)]
struct Kept {
    lease: Lease,
    asked: Instant,
    expires: Instant,
    renewing: bool,
}

/// The leases of one execution.
#[derive(Debug, Default)]
pub(crate) struct LeaseCache {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    kept: HashMap<String, Kept>,
    /// Grows with every pushed change.
    changes: u64,
}

/// What the cache knows of some placeholders.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) leases: HashMap<String, Lease>,
    pub(crate) missing: Vec<String>,
    /// Known, but to be asked for again in the background.
    pub(crate) renew: Vec<String>,
    changes: u64,
}

impl LeaseCache {
    /// Looks placeholders up; those to be renewed are marked as being so.
    pub(crate) fn look_up(&self, placeholders: &[String]) -> Known {
        let mut state = self.lock();
        let now = Instant::now();
        let mut known =
            Known { leases: HashMap::new(), missing: Vec::new(), renew: Vec::new(), changes: state.changes };
        for placeholder in placeholders {
            match state.kept.get_mut(placeholder) {
                Some(kept) if kept.expires > now || Defence::LeaseExpiry.is_off() => {
                    known.leases.insert(placeholder.clone(), kept.lease.clone());
                    if !kept.renewing && now >= kept.asked + RENEW_AFTER {
                        kept.renewing = true;
                        known.renew.push(placeholder.clone());
                    }
                }
                _ => known.missing.push(placeholder.clone()),
            }
        }
        known
    }

    /// Asks for placeholders and keeps the answers, unless something changed meanwhile.
    pub(crate) async fn ask(
        &self,
        leases: &dyn Leases,
        request: ResolveRequest,
        known: &Known,
    ) -> Result<HashMap<String, Lease>, Error> {
        let asked = Instant::now();
        let wanted = request.placeholders.clone();
        let answer = tokio::time::timeout(ASK_TIMEOUT, leases.resolve(request)).await;
        let answer = answer.unwrap_or(Err(Error::Timeout)).and_then(|answer| read_answer(&wanted, answer));
        let mut state = self.lock();
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                for placeholder in &wanted {
                    if let Some(kept) = state.kept.get_mut(placeholder) {
                        kept.renewing = false;
                    }
                }
                return Err(error);
            }
        };
        if state.changes == known.changes {
            for (placeholder, (lease, valid_for)) in &answer {
                state.keep(placeholder, lease.clone(), asked, asked + *valid_for);
            }
        }
        Ok(answer.into_iter().map(|(placeholder, (lease, _))| (placeholder, lease)).collect())
    }

    /// Forgets the leases of these secrets, and every one that is not a credential; all if none is named.
    pub(crate) fn forget(&self, secret_ids: &[String]) {
        if Defence::LeaseChange.is_off() {
            return;
        }
        let mut state = self.lock();
        state.changes += 1;
        state.kept.retain(|_, kept| match &kept.lease {
            Lease::Credential(credential) => {
                !secret_ids.is_empty() && !secret_ids.contains(&credential.secret_id)
            }
            _ => false,
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn keep(&mut self, placeholder: &str, lease: Lease, asked: Instant, expires: Instant) {
        if self.kept.len() >= MAX_LEASES && !self.kept.contains_key(placeholder) {
            let oldest =
                self.kept.iter().min_by_key(|(_, kept)| kept.asked).map(|(oldest, _)| oldest.clone());
            if let Some(oldest) = oldest {
                self.kept.remove(&oldest);
            }
        }
        self.kept.insert(placeholder.to_owned(), Kept { lease, asked, expires, renewing: false });
    }
}

type Answer = HashMap<String, (Lease, Duration)>;

fn read_answer(wanted: &[String], resolutions: Vec<Resolution>) -> Result<Answer, Error> {
    let mut answer = HashMap::new();
    for resolution in resolutions.into_iter().filter(|resolution| wanted.contains(&resolution.placeholder)) {
        let lease = match resolution.outcome {
            Some(resolution::Outcome::Credential(leased)) => {
                let left_us = leased.expires_us.saturating_sub(now_us());
                let Ok(left_us @ 1..) = u64::try_from(left_us) else {
                    return Err(Error::Expired(Duration::from_micros(left_us.unsigned_abs())));
                };
                let valid_for = Duration::from_micros(left_us).min(KEEP_AT_MOST);
                (Lease::Credential(Arc::new(leased.into())), valid_for)
            }
            Some(resolution::Outcome::None(reason)) => (Lease::None { reason }, NEGATIVE_FOR),
            Some(resolution::Outcome::Foreign(reason)) => (Lease::Foreign { reason }, NEGATIVE_FOR),
            None => continue,
        };
        answer.insert(resolution.placeholder, lease);
    }
    if answer.len() < wanted.len() {
        return Err(Error::Incomplete { asked: wanted.len(), answered: answer.len() });
    }
    Ok(answer)
}

#[cfg(test)]
mod tests;
