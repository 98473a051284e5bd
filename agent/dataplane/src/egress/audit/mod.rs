//! The audit trail of outbound calls: one intent and one completion for each, joined by an event id.
//!
//! Owns event ids, the clock readings of a row and the two journals: what tenants' executions do is shipped
//! to the scheduler, what an operator's local ones do stays on the host. [`Audit::begin`] returns when the
//! intent is written; only then may anything be dialled. The [`Pending`] it returns completes exactly once:
//! by [`Pending::finish`], or as cancelled when it is dropped. Must not see a secret's value: records are
//! made from the request as the guest sent it.

mod ballast;
mod journal;
mod room;
mod segment;
pub mod ship;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use roost_daemon::clock::now_us;
use roost_daemon::ids;
use roost_daemon::telemetry::chain;
use roost_domain::Ulid;
use roost_domain::audit::{
    Action, Completion, Intent, MAX_DETAIL_BYTES, MAX_HOST_BYTES, MAX_METHOD_BYTES, MAX_PATH_BYTES, Record,
    Scheme, SecretUse, reason, recorded_text,
};
use roost_domain::id::EventId;
use roost_domain::sabotage::Defence;

pub use journal::{Error, Limits};
use journal::{Journal, Reserved};
pub use room::NoRoom;

/// Segments of executions that a tenant owns.
const SHIPPED: Limits = Limits {
    segment_bytes: 16 << 20,
    segment_age: Duration::from_secs(300),
    total_bytes: 2 << 30,
    drop_oldest: false,
};
/// Segments of executions an operator started by hand.
const LOCAL: Limits = Limits {
    segment_bytes: 16 << 20,
    segment_age: Duration::from_secs(24 * 3600),
    total_bytes: 256 << 20,
    drop_oldest: true,
};

/// Whose calls are recorded.
#[derive(Debug)]
pub struct Subject {
    pub execution: String,
    pub sandbox: String,
    /// Started by the operator of the host: never shipped.
    pub local: bool,
    pub detached: AtomicBool,
}

impl Subject {
    /// Whose share of the journal its records are: the sandbox's, over all of its executions, so that pausing and
    /// resuming brings no further share.
    fn owner(&self) -> &str {
        if self.sandbox.is_empty() { &self.execution } else { &self.sandbox }
    }
}

/// What a guest is about to do, before it is cut to the record's limits.
#[derive(Debug)]
pub struct Call<'a> {
    pub scheme: Scheme,
    pub host: &'a str,
    pub port: u16,
    pub method: Option<&'a str>,
    pub path: Option<&'a str>,
    pub secrets: Vec<SecretUse>,
}

/// How a call ended; made by the constructors, refined by the fields.
#[derive(Debug)]
pub struct Outcome {
    pub action: Action,
    pub rejected_by: Option<&'static str>,
    pub rule_id: Option<String>,
    pub status_code: Option<u16>,
    pub address: Option<SocketAddr>,
    pub detail: Option<String>,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

impl Outcome {
    fn new(action: Action, rejected_by: Option<&'static str>) -> Self {
        Self {
            action,
            rejected_by,
            rule_id: None,
            status_code: None,
            address: None,
            detail: None,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// An HTTP response came back.
    pub fn allowed(status_code: u16) -> Self {
        Self { status_code: Some(status_code), ..Self::new(Action::Allow, None) }
    }

    /// Bytes are relayed.
    pub fn tunnelled(address: SocketAddr) -> Self {
        Self { address: Some(address), ..Self::new(Action::Tunnel, None) }
    }

    /// Nothing left the host.
    pub fn rejected(rejected_by: &'static str) -> Self {
        Self::new(Action::Reject, Some(rejected_by))
    }

    /// It was permitted and did not work.
    pub fn failed(rejected_by: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self { detail: Some(chain(error)), ..Self::new(Action::Error, Some(rejected_by)) }
    }

    pub fn cancelled() -> Self {
        Self::new(Action::ClientCancel, None)
    }

    pub fn with_detail(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }
}

/// A cheap handle to both journals.
#[derive(Debug, Clone)]
pub struct Audit {
    shipped: Journal,
    local: Journal,
}

impl Audit {
    /// Opens both journals below `directory`, which is this process's own.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        Self::open_with(directory, SHIPPED, LOCAL)
    }

    /// As [`Audit::open`], with other limits.
    pub fn open_with(directory: &Path, shipped: Limits, local: Limits) -> Result<Self, Error> {
        Ok(Self {
            shipped: Journal::open(&directory.join("shipped"), shipped)?,
            local: Journal::open(&directory.join("local"), local)?,
        })
    }

    /// Ships what tenants' executions do, for ever.
    pub async fn ship(&self, shipper: &dyn ship::Shipper) {
        ship::run(&self.shipped, shipper).await;
    }

    /// Records what is about to be done; it may be done once this returns.
    pub async fn begin(&self, subject: &Arc<Subject>, call: Call<'_>) -> Result<Pending, Error> {
        let event = ids::fresh::<EventId>().ulid();
        let record = Record::Intent(Intent {
            event_id: EventId::from_ulid(event).to_string(),
            time_us: now_us(),
            execution: subject.execution.clone(),
            sandbox: subject.sandbox.clone(),
            scheme: call.scheme,
            host: recorded_text(call.host, MAX_HOST_BYTES),
            port: call.port,
            method: call.method.map(|method| recorded_text(method, MAX_METHOD_BYTES)),
            path: call.path.map(|path| recorded_text(path, MAX_PATH_BYTES)),
            secrets: call.secrets,
        });
        let journal = if subject.local { &self.local } else { &self.shipped };
        let reserved = Some(journal.reserve().await?);
        // Made before the wait, so that a caller who is cancelled in it completes what it may have begun.
        let mut pending = Pending { event, began: Instant::now(), subject: Arc::clone(subject), reserved };
        if !Defence::AuditIntent.is_off()
            && let Err(error) = journal.write_intent(event, subject, &record).await
        {
            pending.reserved = None;
            return Err(error);
        }
        Ok(pending)
    }

    /// Records a call that the proxy refuses.
    pub async fn reject(
        &self,
        subject: &Arc<Subject>,
        call: Call<'_>,
        outcome: Outcome,
    ) -> Result<(), Error> {
        self.begin(subject, call).await?.finish(outcome);
        Ok(())
    }
}

/// A call whose intent is written and whose completion is not.
#[derive(Debug)]
pub struct Pending {
    event: Ulid,
    began: Instant,
    subject: Arc<Subject>,
    reserved: Option<Reserved>,
}

impl Pending {
    pub fn finish(mut self, outcome: Outcome) {
        self.complete(outcome);
    }

    fn complete(&mut self, outcome: Outcome) {
        let Some(reserved) = self.reserved.take() else {
            return;
        };
        let record = Record::Completion(Completion {
            event_id: EventId::from_ulid(self.event).to_string(),
            time_us: now_us(),
            action: outcome.action,
            rejected_by: outcome.rejected_by.map(str::to_owned),
            policy_id: None,
            rule_id: outcome.rule_id,
            status_code: outcome.status_code,
            duration_us: self.began.elapsed().as_micros() as u64,
            bytes_in: outcome.bytes_in,
            bytes_out: outcome.bytes_out,
            address: outcome.address.map(|address| address.to_string()),
            detail: outcome.detail.map(|detail| recorded_text(&detail, MAX_DETAIL_BYTES)),
        });
        reserved.finish(self.event, &self.subject, &record);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut outcome = Outcome::cancelled();
        if self.subject.detached.load(Ordering::Relaxed) {
            outcome = Outcome::new(Action::Error, Some(reason::DETACHED));
        }
        self.complete(outcome);
    }
}

fn encode(record: &Record) -> Vec<u8> {
    // A record is strings and numbers: serialising it into memory cannot fail.
    let mut line = serde_json::to_vec(record).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The completion of an event whose process died.
fn aborted_line(event: Ulid) -> Vec<u8> {
    encode(&Record::Completion(Completion {
        event_id: EventId::from_ulid(event).to_string(),
        time_us: now_us(),
        action: Action::Error,
        rejected_by: Some(reason::ABORTED.to_owned()),
        policy_id: None,
        rule_id: None,
        status_code: None,
        duration_us: 0,
        bytes_in: 0,
        bytes_out: 0,
        address: None,
        detail: None,
    }))
}

#[cfg(test)]
mod tests;
