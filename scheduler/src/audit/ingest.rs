//! Taking in a shipped piece of a segment: whole lines of JSON, each applied at most once.

use std::collections::{BTreeMap, HashMap};

use roost_domain::audit::{Completion, Intent, MAX_RECORD_BYTES, Record, recorded_text};

use super::days::Day;
use super::{Audit, Error};
use crate::store::egress_event::{self, EgressEvent, End};
use crate::store::sandbox::Sandbox;
use crate::store::{Store, sandbox, secret};

/// Event ids from further back or ahead are not believed: each day is a file.
const DAYS_BACK_MAX: i64 = 31;
const DAYS_AHEAD_MAX: i64 = 1;
const TEXT_BYTES_MAX: usize = 2048;

/// What became of a shipped piece.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    pub records: u32,
    /// Malformed, or about a sandbox that never was on that host.
    pub dropped: u32,
}

enum Change {
    Begin(Box<EgressEvent>),
    End(Box<End>),
}

impl Audit {
    /// Takes in records a host's egress shipped. Repeating it changes nothing.
    pub async fn ingest(
        &self,
        store: &Store,
        host_id: &str,
        records: &[u8],
        now_us: i64,
    ) -> Result<Taken, Error> {
        let mut taken = Taken::default();
        let mut parsed: Vec<(Day, Record)> = Vec::new();
        for line in records.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            taken.records += 1;
            match parse(line, now_us) {
                Some(found) => parsed.push(found),
                None => taken.dropped += 1,
            }
        }
        let owners = find_owners(store, host_id, &parsed).await?;
        note_uses(store, &owners, &parsed, now_us).await?;
        let mut days: BTreeMap<Day, Vec<Change>> = BTreeMap::new();
        for (day, record) in parsed {
            let change = match record {
                Record::Completion(done) => Some(Change::End(Box::new(end(done, host_id)))),
                Record::Intent(intent) => owners
                    .get(&intent.sandbox)
                    .map(|owner| Change::Begin(Box::new(begin(intent, owner, host_id)))),
            };
            match change {
                Some(change) => days.entry(day).or_default().push(change),
                None => taken.dropped += 1,
            }
        }
        for (day, changes) in days {
            let rows = self.ensure_day(day).await?;
            let written = rows.write(move |tx| {
                for change in &changes {
                    match change {
                        Change::Begin(event) => egress_event::begin(tx, event)?,
                        Change::End(end) => egress_event::end(tx, end)?,
                    };
                }
                Ok(())
            });
            written.await?;
        }
        Ok(taken)
    }
}

fn parse(line: &[u8], now_us: i64) -> Option<(Day, Record)> {
    if line.len() > MAX_RECORD_BYTES {
        return None;
    }
    let record: Record = serde_json::from_slice(line).ok()?;
    let day = Day::of_event(record.event_id())?;
    let age = Day::of_time(now_us).since(day);
    (-DAYS_AHEAD_MAX..=DAYS_BACK_MAX).contains(&age).then_some((day, record))
}

/// The scheduler's own rows of the sandboxes, as far as they ever were on this host.
async fn find_owners(
    store: &Store,
    host_id: &str,
    records: &[(Day, Record)],
) -> Result<HashMap<String, Sandbox>, Error> {
    let mut ids: Vec<String> = records
        .iter()
        .filter_map(|(_, record)| match record {
            Record::Intent(intent) => Some(intent.sandbox.clone()),
            Record::Completion(_) => None,
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    let host_id = host_id.to_owned();
    let read = store.read(move |tx| {
        let mut owners = HashMap::new();
        for id in &ids {
            if let Some(row) = sandbox::find_any(tx, id)?
                && (row.host_id.as_deref() == Some(&host_id) || sandbox::was_ever_placed(tx, id, &host_id)?)
            {
                owners.insert(id.clone(), row);
            }
        }
        Ok(owners)
    });
    Ok(read.await?)
}

/// Notes which secrets were really sent, once per piece.
async fn note_uses(
    store: &Store,
    owners: &HashMap<String, Sandbox>,
    records: &[(Day, Record)],
    now_us: i64,
) -> Result<(), Error> {
    let mut used: BTreeMap<(String, String), i64> = BTreeMap::new();
    for (_, record) in records {
        let Record::Intent(intent) = record else { continue };
        let Some(owner) = owners.get(&intent.sandbox) else { continue };
        for secret in intent.secrets.iter().filter(|secret| secret.swapped) {
            if let Some(id) = &secret.secret_id {
                let last = used.entry((owner.tenant_id.clone(), id.clone())).or_insert(0);
                *last = (*last).max(intent.time_us.min(now_us));
            }
        }
    }
    if used.is_empty() {
        return Ok(());
    }
    let noted = store.write(move |tx| {
        for ((tenant, id), time_us) in &used {
            secret::record_use(tx, tenant, id, *time_us)?;
        }
        Ok(())
    });
    Ok(noted.await?)
}

/// Text of a host, bounded again here: a host that was broken into writes what it likes.
fn text(text: &str) -> String {
    recorded_text(text, TEXT_BYTES_MAX)
}

fn begin(intent: Intent, owner: &Sandbox, host_id: &str) -> EgressEvent {
    let scheme = serde_json::to_value(intent.scheme).ok();
    EgressEvent {
        event_id: intent.event_id,
        time_us: intent.time_us,
        tenant_id: owner.tenant_id.clone(),
        workspace_id: owner.workspace_id.clone(),
        project_id: owner.project_id.clone(),
        external_workspace_id: owner.external_workspace_id.clone(),
        external_user_id: owner.external_user_id.clone(),
        external_project_id: owner.external_project_id.clone(),
        sandbox_id: owner.id.clone(),
        resource_type: owner.kind.clone(),
        execution_id: text(&intent.execution),
        host_id: host_id.to_owned(),
        scheme: scheme.and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default(),
        host: text(&intent.host),
        port: intent.port.into(),
        method: intent.method.as_deref().map(text),
        path: intent.path.as_deref().map(text),
        secrets: serde_json::to_value(&intent.secrets).unwrap_or_default(),
        completed_us: None,
        action: None,
        rejected_by: None,
        policy_id: None,
        rule_id: None,
        status_code: None,
        duration_us: None,
        bytes_in: None,
        bytes_out: None,
        address: None,
        detail: None,
    }
}

fn end(done: Completion, host_id: &str) -> End {
    let action = serde_json::to_value(done.action).ok();
    End {
        event_id: done.event_id,
        host_id: host_id.to_owned(),
        completed_us: done.time_us,
        action: action.and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default(),
        rejected_by: done.rejected_by.as_deref().map(text),
        policy_id: done.policy_id.as_deref().map(text),
        rule_id: done.rule_id.as_deref().map(text),
        status_code: done.status_code.map(i64::from),
        duration_us: done.duration_us,
        bytes_in: done.bytes_in,
        bytes_out: done.bytes_out,
        address: done.address.as_deref().map(text),
        detail: done.detail.as_deref().map(text),
    }
}
