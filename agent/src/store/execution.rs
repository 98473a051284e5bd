//! Rows of executions: one per VMM launch, written before the first host effect, never reused.

use roost_domain::id::{ExecutionId, SandboxId, SnapshotId};
use roost_domain::lifecycle::State;
use rusqlite::{OptionalExtension, Row, Transaction};

use super::Error;
use crate::host::process::VmmProcess;
use crate::sandbox::record::{EndCause, Execution, GuestToken, Phase};

/// An execution about to be committed.
#[derive(Debug)]
pub struct Draft {
    pub id: ExecutionId,
    pub sandbox: SandboxId,
    pub image: String,
    pub restore: Option<SnapshotId>,
    pub token: GuestToken,
    pub old_token: Option<GuestToken>,
    pub epoch: u64,
    pub boot_id: String,
    pub created_us: i64,
    pub state: State,
    pub vmm_uids: (u32, u32),
}

const COLUMNS: &str =
    "id, phase, image, vmm_uid, vmm_pid, vmm_start_time, restore, token, old_token, epoch, boot_id,
    created_us, started_us, end_cause";

/// Commits a new execution under the lowest VMM user id that no open execution has.
pub fn insert(tx: &Transaction<'_>, draft: Draft) -> Result<Execution, Error> {
    let (first, last) = draft.vmm_uids;
    let vmm_uid: Option<u32> = tx
        .query_row(
            "WITH RECURSIVE candidate (uid) AS (SELECT ?1 UNION ALL SELECT uid + 1 FROM candidate WHERE uid < ?2)
             SELECT uid FROM candidate
             WHERE uid NOT IN (SELECT vmm_uid FROM execution WHERE ended_us IS NULL) LIMIT 1",
            (first, last),
            |row| row.get(0),
        )
        .optional()?;
    let vmm_uid = vmm_uid.ok_or(Error::NoFreeUid { first, last })?;
    tx.execute(
        "INSERT INTO execution (id, sandbox, phase, image, vmm_uid, restore, token, old_token, epoch, boot_id, created_us)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        (
            draft.id.to_string(),
            draft.sandbox.to_string(),
            Phase::Recorded.text(),
            &draft.image,
            vmm_uid,
            draft.restore.map(|id| id.to_string()),
            &draft.token.0,
            draft.old_token.as_ref().map(|token| &token.0),
            draft.epoch as i64,
            &draft.boot_id,
            draft.created_us,
        ),
    )?;
    get(tx, draft.id)
}

pub fn find(tx: &Transaction<'_>, id: ExecutionId) -> Result<Option<Execution>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM execution WHERE id = ?1");
    tx.query_row(&sql, [id.to_string()], |row| Ok(read(row))).optional()?.transpose()
}

fn get(tx: &Transaction<'_>, id: ExecutionId) -> Result<Execution, Error> {
    find(tx, id)?.ok_or_else(|| Error::Absent { what: "execution", id: id.to_string() })
}

/// Ids of every execution that is not over: whatever else bears this instance's names is a leftover.
pub fn list_open(tx: &Transaction<'_>) -> Result<Vec<ExecutionId>, Error> {
    let mut statement = tx.prepare_cached("SELECT id FROM execution WHERE ended_us IS NULL")?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    rows.map(|id| parse("execution id", id?)).collect()
}

pub fn record_phase(tx: &Transaction<'_>, id: ExecutionId, phase: Phase) -> Result<(), Error> {
    tx.execute("UPDATE execution SET phase = ?2 WHERE id = ?1", (id.to_string(), phase.text()))?;
    Ok(())
}

pub fn record_launched(tx: &Transaction<'_>, id: ExecutionId, vmm: VmmProcess) -> Result<(), Error> {
    tx.execute(
        "UPDATE execution SET phase = ?2, vmm_pid = ?3, vmm_start_time = ?4 WHERE id = ?1",
        (id.to_string(), Phase::Launched.text(), vmm.pid, vmm.start_time as i64),
    )?;
    Ok(())
}

/// Both data-plane processes hold it; from here on the disk moves away from the memory snapshot.
pub fn record_attached(tx: &Transaction<'_>, sandbox: SandboxId, id: ExecutionId) -> Result<(), Error> {
    record_phase(tx, id, Phase::Attached)?;
    tx.execute("UPDATE sandbox SET snapshot = NULL WHERE id = ?1", [sandbox.to_string()])?;
    Ok(())
}

pub fn record_running(tx: &Transaction<'_>, execution: &Execution, started_us: i64) -> Result<(), Error> {
    tx.execute(
        "UPDATE execution SET phase = ?2, started_us = coalesce(started_us, ?3) WHERE id = ?1",
        (execution.id.to_string(), Phase::Running.text(), started_us),
    )?;
    Ok(())
}

pub fn record_saved(
    tx: &Transaction<'_>,
    sandbox: SandboxId,
    id: ExecutionId,
    snapshot: SnapshotId,
) -> Result<(), Error> {
    record_phase(tx, id, Phase::Saved)?;
    tx.execute(
        "UPDATE sandbox SET snapshot = ?2 WHERE id = ?1",
        (sandbox.to_string(), snapshot.to_string()),
    )?;
    Ok(())
}

pub fn record_ending(tx: &Transaction<'_>, id: ExecutionId, cause: EndCause) -> Result<(), Error> {
    tx.execute(
        "UPDATE execution SET phase = ?2, end_cause = ?3 WHERE id = ?1",
        (id.to_string(), Phase::Ending.text(), cause.text()),
    )?;
    Ok(())
}

pub fn record_ended(
    tx: &Transaction<'_>,
    id: ExecutionId,
    cause: EndCause,
    now_us: i64,
) -> Result<(), Error> {
    // The token dies with the execution unless a snapshot keeps its init asleep; then the sandbox's row has it.
    tx.execute(
        "UPDATE execution SET ended_us = ?2, end_cause = ?3, token = '', old_token = NULL WHERE id = ?1",
        (id.to_string(), now_us, cause.text()),
    )?;
    Ok(())
}

/// The row as the scheduler wants it.
pub fn find_report(
    tx: &Transaction<'_>,
    id: ExecutionId,
) -> Result<Option<roost_proto::host::ExecutionRow>, Error> {
    Ok(tx
        .query_row(
            "SELECT execution.id, sandbox, placement_epoch, started_us, ended_us, end_cause
             FROM execution JOIN sandbox ON sandbox.id = execution.sandbox WHERE execution.id = ?1",
            [id.to_string()],
            |row| {
                Ok(roost_proto::host::ExecutionRow {
                    execution: row.get(0)?,
                    sandbox: row.get(1)?,
                    placement_epoch: row.get::<_, i64>(2)? as u64,
                    started_us: row.get::<_, Option<i64>>(3)?.unwrap_or_default(),
                    ended_us: row.get::<_, Option<i64>>(4)?.unwrap_or_default(),
                    end_cause: row.get::<_, Option<String>>(5)?.unwrap_or_default(),
                })
            },
        )
        .optional()?)
}

fn read(row: &Row<'_>) -> Result<Execution, Error> {
    let pid: Option<u32> = row.get("vmm_pid")?;
    let start_time: Option<i64> = row.get("vmm_start_time")?;
    let restore: Option<String> = row.get("restore")?;
    let cause: Option<String> = row.get("end_cause")?;
    let phase: String = row.get("phase")?;
    Ok(Execution {
        id: parse("execution id", row.get("id")?)?,
        phase: Phase::find(&phase).ok_or(Error::Unreadable { what: "phase", value: phase })?,
        image: row.get("image")?,
        vmm_uid: row.get("vmm_uid")?,
        vmm: pid.zip(start_time).map(|(pid, start_time)| VmmProcess { pid, start_time: start_time as u64 }),
        restore: restore.map(|id| parse("snapshot id", id)).transpose()?,
        token: GuestToken(row.get("token")?),
        old_token: row.get::<_, Option<String>>("old_token")?.map(GuestToken),
        epoch: row.get::<_, i64>("epoch")? as u64,
        boot_id: row.get("boot_id")?,
        created_us: row.get("created_us")?,
        started_us: row.get("started_us")?,
        end_cause: match cause {
            Some(text) => {
                Some(EndCause::find(&text).ok_or(Error::Unreadable { what: "end cause", value: text })?)
            }
            None => None,
        },
    })
}

pub(super) fn parse<T: std::str::FromStr>(what: &'static str, value: String) -> Result<T, Error> {
    value.parse().map_err(|_| Error::Unreadable { what, value })
}
