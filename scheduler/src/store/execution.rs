//! Table `execution`: which VMM launch belonged to which sandbox, on which host.

use super::record::{self, record};
use super::{Error, Tx, params};

record! {
    pub struct Execution in "execution" {
        id: String,
        sandbox_id: String,
        tenant_id: String,
        host_id: String,
        placement_epoch: i64,
        /// 0 until it has been reported running.
        started_us: i64,
        ended_us: Option<i64>,
        end_cause: String,
    }
}

/// Inserts it, or notes its start and its end; what is known already stays. An execution never changes its sandbox or
/// host.
pub fn record(tx: &mut Tx<'_>, execution: &Execution) -> Result<(), Error> {
    record::insert_if_absent(tx, execution)?;
    let (id, sandbox, host) = (&execution.id, &execution.sandbox_id, &execution.host_id);
    let started = "UPDATE execution SET started_us = ?4
        WHERE id = ?1 AND sandbox_id = ?2 AND host_id = ?3 AND started_us = 0";
    tx.execute(started, params![id, sandbox, host, execution.started_us])?;
    if execution.ended_us.is_some() {
        let ended = "UPDATE execution SET ended_us = ?4, end_cause = ?5
            WHERE id = ?1 AND sandbox_id = ?2 AND host_id = ?3 AND ended_us IS NULL";
        tx.execute(ended, params![id, sandbox, host, &execution.ended_us, &execution.end_cause])?;
    }
    Ok(())
}

pub fn find(tx: &mut Tx<'_>, id: &str) -> Result<Option<Execution>, Error> {
    record::find(tx, "WHERE id = ?1", params![id])
}

pub fn list(tx: &mut Tx<'_>, sandbox: &str) -> Result<Vec<Execution>, Error> {
    record::list(tx, "WHERE sandbox_id = ?1 ORDER BY started_us, id", params![sandbox])
}

/// How many launches a sandbox has had.
pub fn count(tx: &mut Tx<'_>, sandbox: &str) -> Result<i64, Error> {
    let sql = "SELECT COUNT(*) AS n FROM execution WHERE sandbox_id = ?1";
    tx.query_one("execution count", sql, params![sandbox])?.int("n")
}
