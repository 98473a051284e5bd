//! What the scheduler has not acknowledged yet, in order.
//!
//! A row is written in the transaction of what it reports and deleted only when the scheduler has committed it, so
//! nothing acknowledged is lost and resending is harmless. Sandboxes of origin `local` never get here.

use prost::Message;
use roost_domain::id::{ExecutionId, SandboxId};
use roost_proto::host::outbox_row::Row as Body;
use roost_proto::host::{OutboxRow, SandboxStatus, UsageDelta};
use rusqlite::Transaction;

use super::{Error, execution, sandbox};
use crate::sandbox::record::Origin;

/// Rows sent in one upload.
pub const BATCH_ROWS: usize = 256;

pub fn push_status(tx: &Transaction<'_>, id: SandboxId) -> Result<(), Error> {
    let sandbox = sandbox::get(tx, id)?;
    if sandbox.origin == Origin::Local {
        return Ok(());
    }
    push(tx, Body::Status(SandboxStatus::from(&sandbox)))
}

pub fn push_usage(tx: &Transaction<'_>, delta: UsageDelta) -> Result<(), Error> {
    push(tx, Body::Usage(delta))
}

pub fn push_execution(tx: &Transaction<'_>, id: ExecutionId) -> Result<(), Error> {
    match execution::find_report(tx, id)? {
        Some(row) => push(tx, Body::Execution(row)),
        None => Ok(()),
    }
}

pub fn push_operator(tx: &Transaction<'_>, action: roost_proto::host::OperatorAction) -> Result<(), Error> {
    push(tx, Body::Operator(action))
}

fn push(tx: &Transaction<'_>, body: Body) -> Result<(), Error> {
    let row = OutboxRow { seq: 0, row: Some(body) };
    tx.execute("INSERT INTO outbox (body) VALUES (?1)", [row.encode_to_vec()])?;
    Ok(())
}

/// The oldest rows, at most [`BATCH_ROWS`].
pub fn list_batch(tx: &Transaction<'_>) -> Result<Vec<OutboxRow>, Error> {
    let mut statement = tx.prepare_cached("SELECT seq, body FROM outbox ORDER BY seq LIMIT ?1")?;
    let rows = statement
        .query_map([BATCH_ROWS as i64], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
    let mut batch = Vec::new();
    for row in rows {
        let (seq, body) = row?;
        let mut message = OutboxRow::decode(body.as_slice())
            .map_err(|_| Error::Unreadable { what: "outbox row", value: seq.to_string() })?;
        message.seq = seq as u64;
        batch.push(message);
    }
    Ok(batch)
}

pub fn remove_acked(tx: &Transaction<'_>, acked_seq: u64) -> Result<(), Error> {
    tx.execute("DELETE FROM outbox WHERE seq <= ?1", [acked_seq as i64])?;
    Ok(())
}

pub fn count(tx: &Transaction<'_>) -> Result<u64, Error> {
    Ok(tx.query_row("SELECT count(*) FROM outbox", [], |row| row.get::<_, i64>(0))? as u64)
}
