//! Placeholders of a request: found, resolved to leases, judged, and replaced; all of them or the request is
//! refused.
//!
//! A value leaves this host only in an allowed place of a request over TLS to a host its secret is bound to.
//! A placeholder nobody has a secret for is forwarded untouched; one that belongs to another sandbox, goes to
//! another host or stands in another place stops the request. Bodies are never rewritten.

mod find;
pub(crate) mod lease;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::header::{ACCEPT_CHARSET, ACCEPT_ENCODING, Entry, IF_RANGE, RANGE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use roost_daemon::telemetry::chain;
use roost_domain::audit::{SecretUse, reason};
use roost_domain::sabotage::Defence;
use roost_proto::host::ResolveRequest;

use super::Host;
use super::execution::Execution;
use super::http::Refusal;
use super::scrub::Scrub;
use find::{Form, Location, Occurrence, find, fits, rewrite};
use lease::{Credential, Lease};
pub use lease::{Error as LeaseError, Leases, NoScheduler};

/// Times one placeholder may stand in a request.
const MAX_OCCURRENCES: usize = 2;
/// Placeholders a request may hold in all.
const MAX_PLACEHOLDERS: usize = 8;
/// Longest value that is put into a header.
const MAX_VALUE_BYTES: usize = 8 * 1024;

/// Who asks, and where the request goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) execution: &'a Arc<Execution>,
    pub(crate) host: &'a Host,
    pub(crate) tls: bool,
    pub(crate) by_address: bool,
}

/// A request that is refused for a placeholder in it.
#[derive(Debug)]
pub(crate) struct Blocked {
    pub(crate) refusal: Refusal,
    pub(crate) uses: Vec<SecretUse>,
}

/// What is to be put where.
#[derive(Debug, Default)]
pub(crate) struct Substitutions {
    swaps: Vec<Swap>,
    uses: Vec<SecretUse>,
}

#[derive(Debug)]
struct Swap {
    occurrence: Occurrence,
    credential: Arc<Credential>,
}

/// Judges every placeholder of a request.
pub(crate) async fn judge(asker: Asker<'_>, parts: &Parts) -> Result<Substitutions, Blocked> {
    let found = find(&asker.execution.services.placeholders, parts);
    if found.is_empty() {
        return Ok(Substitutions::default());
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for occurrence in &found {
        *counts.entry(&occurrence.placeholder).or_default() += 1;
    }
    let is_crowded = found.len() > MAX_PLACEHOLDERS || counts.values().any(|count| *count > MAX_OCCURRENCES);
    if is_crowded && !Defence::OccurrenceLimit.is_off() {
        let message = format!(
            "a request may hold one credential placeholder {MAX_OCCURRENCES} times and {MAX_PLACEHOLDERS} in all; \
             this one holds {}",
            found.len()
        );
        let refusal = Refusal::new(StatusCode::FORBIDDEN, reason::OCCURRENCES, message);
        return Err(Blocked { refusal, uses: Vec::new() });
    }
    let placeholders: Vec<String> = counts.into_keys().map(str::to_owned).collect();
    match resolve(asker.execution, placeholders).await {
        Ok(leases) => decide(asker.host, asker.tls, asker.by_address, found, &leases),
        Err(error) => {
            asker.execution.tell_unresolved(&error);
            let message =
                "credentials cannot be checked at the moment because the scheduler is away; try again later";
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let refusal = Refusal::failed(status, reason::SCHEDULER_UNAVAILABLE, message);
            Err(Blocked { refusal, uses: Vec::new() })
        }
    }
}

/// The leases of some placeholders, from memory or from the scheduler.
async fn resolve(
    execution: &Arc<Execution>,
    placeholders: Vec<String>,
) -> Result<HashMap<String, Lease>, LeaseError> {
    // An operator's own execution has no tenant, so no secrets.
    if execution.subject.local {
        let none = |placeholder| (placeholder, Lease::None { reason: "local_execution".to_owned() });
        return Ok(placeholders.into_iter().map(none).collect());
    }
    let request = |placeholders| ResolveRequest {
        execution: execution.subject.execution.clone(),
        sandbox: execution.subject.sandbox.clone(),
        placeholders,
    };
    let mut known = execution.leases.look_up(&placeholders);
    if !known.missing.is_empty() {
        let request = request(known.missing.clone());
        let asked = execution.leases.ask(&*execution.services.leases, request, &known).await?;
        known.leases.extend(asked);
    }
    if !known.renew.is_empty() {
        let request = request(known.renew.clone());
        let leases = std::mem::take(&mut known.leases);
        let renewing = Arc::clone(execution);
        execution.spawn(async move {
            if let Err(error) = renewing.leases.ask(&*renewing.services.leases, request, &known).await {
                tracing::debug!(execution = %renewing.id, error = chain(&error), "a lease was not renewed");
            }
        });
        return Ok(leases);
    }
    Ok(known.leases)
}

/// What becomes of each occurrence: all are replaced or left as they should be, or the request is blocked.
fn decide(
    host: &Host,
    tls: bool,
    by_address: bool,
    found: Vec<Occurrence>,
    leases: &HashMap<String, Lease>,
) -> Result<Substitutions, Blocked> {
    let mut substitutions = Substitutions::default();
    let mut blocked = None;
    for occurrence in found {
        let verdict = match leases.get(&occurrence.placeholder) {
            Some(Lease::Credential(credential)) => {
                judge_credential(host, tls, by_address, &occurrence.location, credential)
            }
            Some(Lease::Foreign { reason }) if Defence::ForeignPlaceholder.is_off() => {
                Verdict::Leave(reason.clone())
            }
            Some(Lease::Foreign { reason }) => Verdict::Block(foreign(reason)),
            Some(Lease::None { reason }) => Verdict::Leave(reason.clone()),
            None => Verdict::Leave(String::new()),
        };
        let lease = leases.get(&occurrence.placeholder);
        let (swapped, reason) = match &verdict {
            Verdict::Swap => (true, None),
            Verdict::Leave(reason) => (false, Some(reason.clone())),
            Verdict::Block(refusal) => (false, Some(refusal.reason.to_owned())),
        };
        substitutions.uses.push(describe(lease, &occurrence.location, swapped, reason));
        match (verdict, lease) {
            (Verdict::Swap, Some(Lease::Credential(credential))) => {
                substitutions.swaps.push(Swap { occurrence, credential: Arc::clone(credential) });
            }
            (Verdict::Block(refusal), _) => blocked = blocked.or(Some(refusal)),
            _ => {}
        }
    }
    match blocked {
        None => Ok(substitutions),
        Some(refusal) => {
            // Nothing was sent, so nothing was swapped.
            substitutions.uses.iter_mut().for_each(|used| used.swapped = false);
            Err(Blocked { refusal, uses: substitutions.uses })
        }
    }
}

enum Verdict {
    Swap,
    Leave(String),
    Block(Refusal),
}

fn judge_credential(
    host: &Host,
    tls: bool,
    by_address: bool,
    location: &Location,
    credential: &Credential,
) -> Verdict {
    let key = &credential.logical_key;
    let block = |reason, message| Verdict::Block(Refusal::new(StatusCode::FORBIDDEN, reason, message));
    if credential.unbound {
        return Verdict::Leave(reason::UNBOUND.to_owned());
    }
    let bound = credential.hosts.iter().any(|pattern| pattern.matches(host)) || Defence::HostBinding.is_off();
    let by_address = by_address && !Defence::NamedHost.is_off();
    if !bound || by_address {
        let allowed: Vec<String> = credential.hosts.iter().map(ToString::to_string).collect();
        let message = match by_address && bound {
            true => format!(
                "the secret {key} is only sent to names; connect to {host} by its name, not its address"
            ),
            false => format!(
                "the secret {key} may be sent to {} only, not to {host}; add the host to the secret's allowed_hosts",
                allowed.join(", ")
            ),
        };
        return block(reason::BLOCKED_HOST, message);
    }
    if !tls && !Defence::CredentialTls.is_off() {
        let message = format!("the secret {key} is only sent over TLS; use https://{host}");
        return block(reason::PLAINTEXT, message);
    }
    if !location.allows_value(&credential.slots) && !Defence::HeaderSlots.is_off() {
        let message = format!(
            "the secret {key} stands in {}, where values are never put; use Authorization (Bearer, token or Basic), \
             X-Api-Key, Api-Key, X-Goog-Api-Key, Private-Token or a header named in the secret's slots",
            location.name()
        );
        return block(reason::BLOCKED_LOCATION, message);
    }
    let Location::Header { form, .. } = location else { return Verdict::Leave(String::new()) };
    if credential.expose().len() > MAX_VALUE_BYTES || !fits(*form, credential.expose()) {
        let message =
            format!("the stored value of the secret {key} cannot stand in a header; store it again");
        return block(reason::INVALID_VALUE, message);
    }
    Verdict::Swap
}

fn foreign(reason: &str) -> Refusal {
    let message = format!(
        "the request holds a credential placeholder of another sandbox ({reason}); read the variable anew in this one"
    );
    Refusal::new(StatusCode::FORBIDDEN, reason::FOREIGN_PLACEHOLDER, message)
}

fn describe(lease: Option<&Lease>, location: &Location, swapped: bool, reason: Option<String>) -> SecretUse {
    let credential = match lease {
        Some(Lease::Credential(credential)) => Some(credential),
        _ => None,
    };
    SecretUse {
        env: credential.map(|credential| credential.logical_key.clone()).unwrap_or_default(),
        secret_id: credential.map(|credential| credential.secret_id.clone()),
        scope: credential.map(|credential| credential.scope.clone()),
        resolved_by: credential.map_or_else(|| "none".to_owned(), |credential| credential.scope.clone()),
        location: Some(location.name().to_owned()),
        swapped,
        reason: reason.filter(|reason| !reason.is_empty()),
    }
}

impl Substitutions {
    pub(crate) fn uses(&self) -> Vec<SecretUse> {
        self.uses.clone()
    }

    /// What has to be taken out of the response again.
    pub(crate) fn scrubs(&self) -> Vec<Arc<Scrub>> {
        let scrubs = self.swaps.iter().map(|swap| swap.credential.scrub(&swap.occurrence.placeholder));
        let mut scrubs: Vec<Arc<Scrub>> = scrubs.collect();
        scrubs.dedup_by(|one, other| Arc::ptr_eq(one, other));
        scrubs
    }

    /// Puts the values into the headers that were judged, and asks for a response that can be read through.
    pub(crate) fn inject(self, headers: &mut HeaderMap) {
        if !self.swaps.is_empty() {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            // Byte by byte, a value would pass any scrubber.
            for unreadable in [RANGE, IF_RANGE, ACCEPT_CHARSET] {
                headers.remove(unreadable);
            }
        }
        for Swap { occurrence, credential } in self.swaps {
            let Location::Header { name, index, form } = occurrence.location else { continue };
            let Entry::Occupied(mut values) = headers.entry(name) else { continue };
            let Some(value) = values.iter_mut().nth(index) else { continue };
            put(value, form, &occurrence.placeholder, credential.expose());
        }
    }
}

fn put(value: &mut HeaderValue, form: Form, placeholder: &str, secret: &[u8]) {
    let rewritten = rewrite(value.as_bytes(), form, placeholder, secret);
    if let Some(mut fresh) = rewritten.and_then(|bytes| HeaderValue::from_bytes(&bytes).ok()) {
        // Never indexed by HPACK, hidden by Debug.
        fresh.set_sensitive(true);
        *value = fresh;
    }
}
