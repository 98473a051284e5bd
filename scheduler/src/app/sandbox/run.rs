//! What a sandbox is to do: run, rest, end. Each call is one decision with its quota, event and audit row.

use std::time::Duration;

use roost_api::sandbox::{Sandbox, State};
use roost_domain::id::EventId;
use serde_json::json;

use super::{Row, find, record, state, wait};
use crate::app::label::Attribution;
use crate::app::{App, Caller, Error, Scope, audit};
use crate::store::quota::{self, Amount, Subject};
use crate::store::{Tx, event, host, preview, sandbox as table};

/// How long a call waits for what it asked for before it answers with what is so far.
const PATIENCE: Duration = Duration::from_secs(20);

/// One kind of decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Pause,
    Stop,
    Resume,
    Destroy,
}

impl Decision {
    fn run(self) -> &'static str {
        match self {
            Decision::Pause => "paused",
            Decision::Stop => "stopped",
            Decision::Resume => "running",
            Decision::Destroy => "destroyed",
        }
    }

    fn action(self) -> &'static str {
        match self {
            Decision::Pause => "sandbox.paused",
            Decision::Stop => "sandbox.stopped",
            Decision::Resume => "sandbox.resumed",
            Decision::Destroy => "sandbox.destroyed",
        }
    }
}

/// Pauses, stops or resumes, and waits a while for it.
pub async fn change(
    app: &App,
    caller: &Caller,
    reference: &str,
    decision: Decision,
) -> Result<Sandbox, Error> {
    let row = decide(app, caller, reference, decision).await?;
    Ok(record(app, wait::until_settled(app, row, PATIENCE).await?))
}

/// Resumes on the way to something else.
pub async fn wake(app: &App, caller: &Caller, id: &str) -> Result<Row, Error> {
    let row = decide(app, caller, id, Decision::Resume).await?;
    wait::until_settled(app, row, PATIENCE).await
}

/// Destroys. The second answer is true once nothing is left of it.
pub async fn destroy(app: &App, caller: &Caller, reference: &str) -> Result<(Sandbox, bool), Error> {
    let row = decide(app, caller, reference, Decision::Destroy).await?;
    let gone = state(&row) == State::Destroyed;
    Ok((record(app, row), gone))
}

async fn decide(app: &App, caller: &Caller, reference: &str, decision: Decision) -> Result<Row, Error> {
    caller.require(Scope::SandboxesWrite)?;
    let (now_us, event_id) = (app.now_us(), event_id());
    let audited = audit::row(caller, now_us, decision.action(), "sandbox", reference);
    let (caller, reference) = (caller.clone(), reference.to_owned());
    let row = app
        .store
        .decide(move |tx| {
            let row = find(tx, &caller, &reference)?;
            if !is_due(&row, decision)? {
                return Ok(row);
            }
            apply(tx, &row, decision, now_us)?;
            let about = audited.clone().on(&row.id).about(&Attribution::from(&row));
            about.insert(tx)?;
            if decision == Decision::Destroy {
                insert_event(tx, &event_id, &row, "sandbox.destroying", Some("request"), now_us)?;
            }
            table::find(tx, &caller.tenant_id, &row.id)?.ok_or_else(Error::no_sandbox)
        })
        .await?;
    app.fleet.ensure_soon(&row.id);
    Ok(row)
}

/// Whether the decision changes anything; an error where it cannot be made.
fn is_due(row: &Row, decision: Decision) -> Result<bool, Error> {
    if row.desired_run == "destroyed" {
        return if decision == Decision::Destroy { Ok(false) } else { Err(Error::no_sandbox()) };
    }
    if row.desired_run == decision.run() && state(row) != State::Error {
        return Ok(false);
    }
    match (decision, state(row)) {
        (Decision::Pause, State::Creating | State::Resuming) => Err(Error::Starting { state: "starting" }),
        (Decision::Pause, State::Stopped | State::Stopping) => {
            Err(Error::WrongState { state: "stopped", advice: "it does not run" })
        }
        (Decision::Pause, State::Error) => {
            Err(Error::WrongState { state: "error", advice: "its state_reason says why" })
        }
        _ => Ok(true),
    }
}

/// Changes what is wanted and every count that depends on it, in the caller's transaction.
pub fn apply(tx: &mut Tx<'_>, row: &Row, decision: Decision, now_us: i64) -> Result<(), Error> {
    match (decision, row.desired_run.as_str()) {
        (Decision::Resume, "running") => {}
        (Decision::Resume, _) => reserve_again(tx, row)?,
        (_, "running") => quota::count(tx, row, -Amount::running(row))?,
        _ => {}
    }
    if decision == Decision::Destroy {
        quota::count(tx, row, -Amount::resting(row))?;
        preview::remove_all(tx, &row.id, now_us)?;
    }
    let deadline_us = match (decision, row.timeout_s) {
        (Decision::Resume, Some(seconds)) => Some(now_us + seconds * 1_000_000),
        _ => None,
    };
    let changes = table::Changes { deadline_us: Some(deadline_us), ..table::Changes::default() };
    table::update(tx, &row.tenant_id, &row.id, &changes, now_us)?;
    table::set_desired(tx, &row.id, decision.run(), now_us)?;
    Ok(())
}

/// Quota and, where the host gave its memory to others meanwhile, room on the host.
fn reserve_again(tx: &mut Tx<'_>, row: &Row) -> Result<(), Error> {
    reserve_quota(tx, row, Amount::running(row))?;
    let missing_mib = row.memory_mib.saturating_sub(row.memory_reserved_mib);
    if let (Some(host_id), true) = (&row.host_id, missing_mib > 0) {
        if !host::reserve(tx, host_id, missing_mib, 0)? {
            return Err(Error::NoCapacity { fail_fast: false });
        }
        table::set_reservation(tx, &row.id, row.memory_mib, row.disk_reserved_mib)?;
    }
    Ok(())
}

/// Counts a sandbox against everybody it belongs to; all of them must have room.
pub fn reserve_quota(tx: &mut Tx<'_>, row: &Row, amount: Amount) -> Result<(), Error> {
    for subject in quota::subjects(row) {
        if !quota::reserve(tx, &subject, amount)? {
            return Err(exceeded(tx, &subject, amount)?);
        }
    }
    Ok(())
}

/// Which limit of the subject it was.
fn exceeded(tx: &mut Tx<'_>, subject: &Subject, amount: Amount) -> Result<Error, Error> {
    let limits = quota::find(tx, subject)?;
    let used = quota::find_use(tx, subject)?;
    let (Some(limits), Some(used)) = (limits, used) else {
        return Ok(Error::internal("say which quota refused", "the quota is gone"));
    };
    let table = [
        ("max_sandboxes", limits.max_sandboxes, used.sandboxes, amount.sandboxes),
        ("max_concurrent", limits.max_concurrent, used.concurrent, amount.concurrent),
        ("max_vcpus", limits.max_vcpus, used.vcpus, amount.vcpus),
        ("max_memory_mb", limits.max_memory_mib, used.memory_mib, amount.memory_mib),
        ("max_disk_mb", limits.max_disk_mib, used.disk_mib, amount.disk_mib),
    ];
    let hit = table
        .into_iter()
        .find(|(_, limit, used, added)| limit.is_some_and(|limit| *added > 0 && used + added > limit));
    let (quota, limit, current) =
        hit.map_or(("quota", 0, 0), |(name, limit, used, _)| (name, limit.unwrap_or(0), used));
    let positive = |value: i64| u64::try_from(value).unwrap_or(0);
    let who = format!("{} {}", subject.subject, subject.subject_id);
    Ok(Error::QuotaExceeded { subject: who, quota, limit: positive(limit), current: positive(current) })
}

pub fn event_id() -> String {
    roost_daemon::ids::fresh::<EventId>().to_string()
}

/// An event of a sandbox, with everything a webhook shows of it.
pub fn insert_event(
    tx: &mut Tx<'_>,
    id: &str,
    row: &Row,
    kind: &str,
    reason: Option<&str>,
    now_us: i64,
) -> Result<(), Error> {
    let data = json!({
        "id": row.id,
        "state": state(row),
        "reason": reason,
        "actor": row.actor,
        "name": row.name,
        "slug": row.slug,
        "workspace_id": row.workspace_id,
        "project_id": row.project_id,
        "external_workspace_id": row.external_workspace_id,
        "external_user_id": row.external_user_id,
        "external_project_id": row.external_project_id,
        "metadata": row.metadata,
    });
    let event = event::Event {
        id: id.to_owned(),
        tenant_id: row.tenant_id.clone(),
        kind: kind.to_owned(),
        sandbox_id: Some(row.id.clone()),
        data,
        created_us: now_us,
    };
    event::insert(tx, &event).map_err(Error::from)
}
