//! Rows of sandboxes: what is wanted of each and what this host last committed about it.

use roost_domain::desired::{Desired, Local, Offer, Receipt, Standing};
use roost_domain::id::SandboxId;
use roost_domain::lifecycle::State;
use rusqlite::{OptionalExtension, Row, Transaction};

use super::execution::parse;
use super::{Error, execution};
use crate::sandbox::record::{BootPath, Execution, GuestToken, Origin, Sandbox, Spec};
use crate::sandbox::step::Outcome;

/// A sandbox this host has not seen before.
#[derive(Debug, Clone)]
pub struct Draft {
    pub id: SandboxId,
    pub origin: Origin,
    pub spec: Spec,
    pub lineage: SandboxId,
    pub offer: Offer,
    pub now_us: i64,
}

/// Inserts a sandbox; an existing one is left alone.
pub fn ensure(tx: &Transaction<'_>, draft: &Draft) -> Result<(), Error> {
    let spec = serde_json::to_string(&draft.spec)
        .map_err(|error| Error::Unreadable { what: "spec", value: error.to_string() })?;
    tx.execute(
        "INSERT INTO sandbox (id, origin, spec, lineage, run, generation, placement_epoch, fenced_epoch, local_seq, state,
           guest_epoch, created_us, changed_us)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, 0, ?8, 0, ?9, ?9) ON CONFLICT (id) DO NOTHING",
        (
            draft.id.to_string(),
            draft.origin.text(),
            spec,
            draft.lineage.to_string(),
            draft.offer.desired.run.text(),
            draft.offer.desired.generation as i64,
            draft.offer.desired.placement_epoch as i64,
            State::Creating.text(),
            draft.now_us,
        ),
    )?;
    Ok(())
}

/// Takes a wish of the scheduler: a sandbox that is new gets its row, one that is not newer changes nothing. The wish
/// for one that is gone is answered through the outbox too, since a scheduler restored from an older state may have
/// forgotten that it is.
pub fn accept(tx: &Transaction<'_>, draft: &Draft) -> Result<Sandbox, Error> {
    ensure(tx, draft)?;
    receive(tx, draft.id, draft.offer)?;
    let sandbox = get(tx, draft.id)?;
    if sandbox.state == State::Destroyed {
        super::outbox::push_status(tx, draft.id)?;
    }
    Ok(sandbox)
}

/// Offers the sandbox a wish; what it is worth is decided by [`Standing::receive`] alone.
pub fn receive(tx: &Transaction<'_>, id: SandboxId, offer: Offer) -> Result<Receipt, Error> {
    let mut standing = get(tx, id)?.standing;
    let receipt = standing.receive(offer);
    record_standing(tx, id, &standing)?;
    Ok(receipt)
}

pub fn record_standing(tx: &Transaction<'_>, id: SandboxId, standing: &Standing) -> Result<(), Error> {
    let local = standing.local.as_ref();
    tx.execute(
        "UPDATE sandbox SET run = ?2, generation = ?3, placement_epoch = ?4, fenced_epoch = ?5, local_seq = ?6,
           local_base_generation = ?7, local_run = ?8, local_cause = ?9 WHERE id = ?1",
        (
            id.to_string(),
            standing.desired.run.text(),
            standing.desired.generation as i64,
            standing.desired.placement_epoch as i64,
            standing.fenced_epoch as i64,
            standing.local_seq as i64,
            local.map(|local| local.base_generation as i64),
            local.map(|local| local.run.text()),
            local.map(|local| local.cause.text()),
        ),
    )?;
    Ok(())
}

pub fn find(tx: &Transaction<'_>, id: SandboxId) -> Result<Option<Sandbox>, Error> {
    let found = tx
        .query_row("SELECT * FROM sandbox WHERE id = ?1", [id.to_string()], |row| Ok(read(row)))
        .optional()?;
    match found.transpose()? {
        Some((sandbox, current)) => Ok(Some(with_execution(tx, sandbox, current)?)),
        None => Ok(None),
    }
}

pub fn get(tx: &Transaction<'_>, id: SandboxId) -> Result<Sandbox, Error> {
    find(tx, id)?.ok_or_else(|| Error::Absent { what: "sandbox", id: id.to_string() })
}

/// Every sandbox that is not gone, oldest first.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<Sandbox>, Error> {
    let mut statement =
        tx.prepare_cached("SELECT * FROM sandbox WHERE state <> ?1 ORDER BY created_us, id")?;
    let rows = statement.query_map([State::Destroyed.text()], |row| Ok(read(row)))?;
    let mut sandboxes = Vec::new();
    for row in rows {
        let (sandbox, current) = row??;
        sandboxes.push(with_execution(tx, sandbox, current)?);
    }
    Ok(sandboxes)
}

fn with_execution(
    tx: &Transaction<'_>,
    mut sandbox: Sandbox,
    current: Option<String>,
) -> Result<Sandbox, Error> {
    if let Some(id) = current {
        sandbox.execution = execution::find(tx, parse("execution id", id)?)?;
    }
    Ok(sandbox)
}

pub fn record_state(
    tx: &Transaction<'_>,
    id: SandboxId,
    state: State,
    reason: Option<&str>,
    now_us: i64,
) -> Result<(), Error> {
    tx.execute(
        "UPDATE sandbox SET state = ?2, state_reason = ?3, changed_us = ?4 WHERE id = ?1",
        (id.to_string(), state.text(), reason, now_us),
    )?;
    Ok(())
}

/// The sandbox's new current execution, with the token and epoch its guest will answer to.
pub fn record_begun(
    tx: &Transaction<'_>,
    sandbox: &Sandbox,
    execution: &Execution,
    state: State,
    now_us: i64,
) -> Result<(), Error> {
    tx.execute(
        "UPDATE sandbox SET execution = ?2, image = ?3, guest_epoch = ?4, state = ?5, changed_us = ?6 WHERE id = ?1",
        (
            sandbox.id.to_string(),
            execution.id.to_string(),
            &execution.image,
            execution.epoch as i64,
            state.text(),
            now_us,
        ),
    )?;
    Ok(())
}

pub fn record_running(
    tx: &Transaction<'_>,
    sandbox: &Sandbox,
    execution: &Execution,
    path: BootPath,
    boot_us: i64,
    now_us: i64,
) -> Result<(), Error> {
    // What was lost on the way (a memory snapshot, say) stays to be read until the next change.
    tx.execute(
        "UPDATE sandbox SET state = ?2, guest_token = ?3, boot_path = ?4, boot_us = ?5, changed_us = ?6 WHERE id = ?1",
        (
            sandbox.id.to_string(),
            State::Running.text(),
            &execution.token.0,
            path.text(),
            boot_us,
            now_us,
        ),
    )?;
    Ok(())
}

pub fn record_ended(
    tx: &Transaction<'_>,
    sandbox: &Sandbox,
    outcome: &Outcome,
    keep_snapshot: bool,
    now_us: i64,
) -> Result<(), Error> {
    record_state(tx, sandbox.id, outcome.state, outcome.reason.as_deref(), now_us)?;
    tx.execute("UPDATE sandbox SET execution = NULL WHERE id = ?1", [sandbox.id.to_string()])?;
    if !keep_snapshot {
        tx.execute(
            "UPDATE sandbox SET snapshot = NULL, guest_token = NULL WHERE id = ?1",
            [sandbox.id.to_string()],
        )?;
    }
    record_standing(tx, sandbox.id, &outcome.standing)
}

/// A paused sandbox is stopped: its disk is what is left of it.
pub fn record_memory_dropped(tx: &Transaction<'_>, id: SandboxId, now_us: i64) -> Result<(), Error> {
    record_state(tx, id, State::Stopped, None, now_us)?;
    tx.execute("UPDATE sandbox SET snapshot = NULL, guest_token = NULL WHERE id = ?1", [id.to_string()])?;
    Ok(())
}

fn read(row: &Row<'_>) -> Result<(Sandbox, Option<String>), Error> {
    let text = |column: &str| row.get::<_, Option<String>>(column);
    let state: String = row.get("state")?;
    let origin: String = row.get("origin")?;
    let spec: String = row.get("spec")?;
    let count = |column: &str| row.get::<_, i64>(column).map(|value| value as u64);
    let local_seq = count("local_seq")?;
    let base: Option<i64> = row.get("local_base_generation")?;
    let local = match (base, text("local_run")?, text("local_cause")?) {
        (Some(base), Some(run), Some(cause)) => Some(Local {
            base_generation: base as u64,
            seq: local_seq,
            run: parse("run", run)?,
            cause: parse("cause", cause)?,
        }),
        _ => None,
    };
    let sandbox = Sandbox {
        id: parse("sandbox id", row.get("id")?)?,
        origin: Origin::find(&origin).ok_or(Error::Unreadable { what: "origin", value: origin })?,
        spec: serde_json::from_str::<Spec>(&spec)
            .map_err(|_| Error::Unreadable { what: "spec", value: spec.clone() })?,
        lineage: parse("lineage", row.get("lineage")?)?,
        standing: Standing {
            desired: Desired {
                run: parse("run", row.get("run")?)?,
                generation: count("generation")?,
                placement_epoch: count("placement_epoch")?,
            },
            local,
            local_seq,
            fenced_epoch: count("fenced_epoch")?,
        },
        state: parse("state", state)?,
        state_reason: text("state_reason")?,
        execution: None,
        snapshot: text("snapshot")?.map(|id| parse("snapshot id", id)).transpose()?,
        image: text("image")?,
        guest_token: text("guest_token")?.map(GuestToken),
        guest_epoch: count("guest_epoch")?,
        boot_path: text("boot_path")?.as_deref().and_then(BootPath::find),
        boot_us: row.get("boot_us")?,
        created_us: row.get("created_us")?,
        changed_us: row.get("changed_us")?,
    };
    Ok((sandbox, text("execution")?))
}
