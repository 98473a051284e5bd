//! Adopting what hosts report: newer reports of the host that holds the placement count, everything else is ignored.
//!
//! A report changes the observed state, and with it what follows from it: reservations, quota in use, previews of
//! what is gone, the event. A host's own transition becomes what is wanted, by compare-and-set on the generation it
//! was made under; a tenant's call that raced with it has the greater generation and wins.

use roost_domain::desired::{Adoption, Desired, Local, Report, Row as DesiredRow, Run};
use roost_domain::id::ExecutionId;
use roost_domain::lifecycle::State;
use roost_domain::sabotage::Defence;
use roost_proto::host as proto;

use super::{event, wire};
use crate::store::quota::Amount;
use crate::store::sandbox::{Observed, Sandbox};
use crate::store::{Error, Tx, host, preview, quota, sandbox};

/// No host was ever told a generation near it; one that says so does not get the column to overflow.
const GENERATION_MAX: u64 = 1 << 62;

/// What came of some reports.
#[derive(Debug, Default)]
pub(super) struct Adopted {
    pub(super) changed: bool,
    /// Sandboxes whose host must hear of a new generation.
    pub(super) offers: Vec<String>,
}

impl Adopted {
    pub(super) fn add(&mut self, other: Adopted) {
        self.changed |= other.changed;
        self.offers.extend(other.offers);
    }
}

/// Adopts one report, inside the caller's transaction. Repeating it changes nothing.
pub(super) fn adopt(
    tx: &mut Tx<'_>,
    host_id: &str,
    status: &proto::SandboxStatus,
    now_us: i64,
) -> Result<Adopted, Error> {
    let ignored = Adopted::default();
    let Some(mut row) = sandbox::find_any(tx, &status.sandbox)? else { return Ok(ignored) };
    let is_placed = row.host_id.as_deref() == Some(host_id) && row.placement_epoch == status.placement_epoch
        || Defence::HostOwnReports.is_off();
    let Some(state) = wire::state(status.state()).filter(|_| is_placed) else { return Ok(ignored) };
    let mut adopted = Adopted::default();
    if let Some(recovered) = recover(tx, &row, status, now_us)? {
        adopted = Adopted { changed: true, offers: vec![row.id.clone()] };
        row = recovered;
    }
    let seen = observe(&row, host_id, status, state);
    if !is_news(&row, &seen) || !sandbox::record_observed(tx, &seen, now_us)? {
        return Ok(adopted);
    }
    if row.state != state.text() {
        follow(tx, &row, state)?;
        let actor = if seen.local_seq > 0 { "host" } else { row.actor.as_str() };
        let reason = if seen.local_seq > 0 { &seen.local_cause } else { &seen.state_reason };
        event::record(tx, &row, state, reason, actor, now_us)?;
    }
    adopted.changed = true;
    if adopt_local(tx, &row, status, now_us)? {
        adopted.offers.push(row.id.clone());
    }
    if state == State::Destroyed {
        preview::remove_all(tx, &row.id, now_us)?;
    }
    Ok(adopted)
}

/// Where the host was told more than this store remembers: the row as it is after deciding above that.
fn recover(
    tx: &mut Tx<'_>,
    row: &Sandbox,
    status: &proto::SandboxStatus,
    now_us: i64,
) -> Result<Option<Sandbox>, Error> {
    let (Some(wanted), Some(told)) = (Run::find(&row.desired_run), wire::run(status.wanted_run())) else {
        return Ok(None);
    };
    if status.generation > GENERATION_MAX {
        return Ok(None);
    }
    let (generation, placement_epoch) = (row.generation, row.placement_epoch);
    let known = DesiredRow {
        desired: Desired { run: wanted, generation, placement_epoch },
        adopted_seq: row.adopted_seq,
    };
    let told = Desired { run: told, generation: status.generation, placement_epoch: status.placement_epoch };
    let Some(new) = known.decide_recovery(told) else { return Ok(None) };
    let Desired { run, generation: new_generation, .. } = new.desired;
    if !sandbox::recover(tx, &row.id, generation, run.text(), new_generation, now_us)? {
        return Ok(None);
    }
    tracing::warn!(
        sandbox = row.id,
        known = generation,
        told = status.generation,
        "a host was told more than this store remembers: was it restored?"
    );
    count(tx, row, wanted, run)?;
    if run == Run::Destroyed {
        preview::remove_all(tx, &row.id, now_us)?;
    }
    sandbox::find_any(tx, &row.id)
}

/// False for an exact repetition, which needs no write.
fn is_news(row: &Sandbox, seen: &Observed) -> bool {
    row.state != seen.state
        || row.state_reason != seen.state_reason
        || row.observed_generation != seen.generation
        || row.local_seq != seen.local_seq
        || row.execution_id != seen.execution_id
        || row.changed_us != seen.changed_us
}

fn observe(row: &Sandbox, host_id: &str, status: &proto::SandboxStatus, state: State) -> Observed {
    let first = |known: Option<i64>, arrives: bool| known.or(arrives.then_some(status.changed_us));
    let running = state == State::Running;
    // An id that is none is not stored: what names an execution must be able to exist.
    let execution = ExecutionId::parse(&status.execution).ok().map(|id| id.to_string());
    Observed {
        id: row.id.clone(),
        host_id: host_id.to_owned(),
        placement_epoch: status.placement_epoch,
        state: state.text().to_owned(),
        state_reason: wire::stored_text(&status.state_reason),
        generation: status.generation,
        local_seq: status.local_seq,
        local_cause: if status.local_seq > 0 {
            wire::cause(&status.local_cause).text().to_owned()
        } else {
            String::new()
        },
        execution_id: execution
            .filter(|_| !matches!(state, State::Paused | State::Stopped | State::Destroyed)),
        changed_us: status.changed_us,
        boot_path: wire::stored_text(&status.boot_path),
        boot_us: (status.boot_us > 0).then_some(status.boot_us),
        started_us: if running && row.state != "running" { Some(status.changed_us) } else { row.started_us },
        ready_us: first(row.ready_us, running),
        destroyed_us: first(row.destroyed_us, state == State::Destroyed),
    }
}

/// Changes the reservation on the host to what the state takes: memory while a guest runs or starts, disk until the
/// sandbox is gone.
fn follow(tx: &mut Tx<'_>, row: &Sandbox, state: State) -> Result<(), Error> {
    let (memory_mib, disk_mib) = match state {
        State::Destroyed => (0, 0),
        State::Paused | State::Stopped if row.desired_run != "running" => (0, row.disk_mib),
        State::Paused | State::Stopped | State::Failed => (row.memory_reserved_mib, row.disk_reserved_mib),
        _ => (row.memory_mib, row.disk_mib),
    };
    set_reservation(tx, row, memory_mib, disk_mib)
}

fn set_reservation(tx: &mut Tx<'_>, row: &Sandbox, memory_mib: u64, disk_mib: u64) -> Result<(), Error> {
    let difference = |new: u64, old: u64| i64::try_from(i128::from(new) - i128::from(old)).unwrap_or(0);
    let memory = difference(memory_mib, row.memory_reserved_mib);
    let disk = difference(disk_mib, row.disk_reserved_mib);
    if let (Some(host_id), true) = (&row.host_id, memory != 0 || disk != 0) {
        host::adjust_reservation(tx, host_id, memory, disk)?;
        sandbox::set_reservation(tx, &row.id, memory_mib, disk_mib)?;
    }
    Ok(())
}

/// Makes the host's own transition what is wanted; true if it did.
fn adopt_local(
    tx: &mut Tx<'_>,
    row: &Sandbox,
    status: &proto::SandboxStatus,
    now_us: i64,
) -> Result<bool, Error> {
    let Some(run) = wire::run(status.local_run()).filter(|_| status.local_seq > 0) else { return Ok(false) };
    let Some(wanted) = Run::find(&row.desired_run) else { return Ok(false) };
    let generation = row.generation;
    let desired = Desired { run: wanted, generation, placement_epoch: row.placement_epoch };
    let local = Local {
        base_generation: status.local_base_generation,
        seq: status.local_seq,
        run,
        cause: wire::cause(&status.local_cause),
    };
    let report = Report { placement_epoch: status.placement_epoch, local };
    let decision = DesiredRow { desired, adopted_seq: row.adopted_seq }.decide_adoption(&report);
    let Adoption::Adopt(new) = decision else { return Ok(false) };
    if !sandbox::adopt_local(tx, &row.id, generation, new.desired.run.text(), new.adopted_seq, now_us)? {
        return Ok(false);
    }
    count(tx, row, wanted, run)?;
    // The reservation above was decided on what was wanted before; a rest that is wanted now frees the memory.
    if matches!(run, Run::Paused | Run::Stopped)
        && matches!(status.state(), proto::State::Paused | proto::State::Stopped)
        && let Some(row) = sandbox::find_any(tx, &row.id)?
    {
        set_reservation(tx, &row, 0, row.disk_mib)?;
    }
    if run == Run::Destroyed {
        preview::remove_all(tx, &row.id, now_us)?;
    }
    Ok(true)
}

/// Moves the quota in use from what was wanted to what is wanted now.
fn count(tx: &mut Tx<'_>, row: &Sandbox, was: Run, is: Run) -> Result<(), Error> {
    if was != Run::Running && is == Run::Running {
        quota::count(tx, row, Amount::running(row))?;
    }
    if was == Run::Running && is != Run::Running {
        quota::count(tx, row, -Amount::running(row))?;
    }
    if is == Run::Destroyed && was != Run::Destroyed {
        quota::count(tx, row, -Amount::resting(row))?;
    }
    Ok(())
}
