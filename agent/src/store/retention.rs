//! Keeps the database as large as the host is wide, not as long as it lives.
//!
//! Owns what old rows become: a sandbox's deltas one row, ended executions and destroyed sandboxes nothing. The outbox
//! holds what it sends in full, so nothing here waits for the scheduler. What is folded adds up to the same.

use rusqlite::{Transaction, params};

use super::Error;

/// Sandboxes or executions of one transaction: others wait for it meanwhile.
pub const AT_ONCE: usize = 200;

/// Makes one row of the deltas from before `before_us` of each of the next sandboxes after `after`; returns the last
/// of those, if there were any, and how many rows went.
pub fn fold_usage(
    tx: &Transaction<'_>,
    after: &str,
    before_us: i64,
) -> Result<Option<(String, usize)>, Error> {
    let mut statement = tx.prepare_cached(
        "SELECT DISTINCT sandbox FROM usage_delta WHERE sandbox > ?1 ORDER BY sandbox LIMIT ?2",
    )?;
    let sandboxes = statement.query_map(params![after, AT_ONCE as i64], |row| row.get(0))?;
    let sandboxes: Vec<String> = sandboxes.collect::<Result<_, _>>()?;
    let mut gone = 0;
    for sandbox in &sandboxes {
        gone += fold_usage_of(tx, sandbox, before_us)?;
    }
    Ok(sandboxes.into_iter().next_back().map(|last| (last, gone)))
}

fn fold_usage_of(tx: &Transaction<'_>, sandbox: &str, before_us: i64) -> Result<usize, Error> {
    let mut statement = tx
        .prepare_cached("SELECT count(*), max(rowid) FROM usage_delta WHERE sandbox = ?1 AND from_us < ?2")?;
    let old = statement.query_row(params![sandbox, before_us], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (2.., Some(last)): (i64, Option<i64>) = old else { return Ok(0) };
    // The last one takes the others up.
    tx.execute(
        "UPDATE usage_delta SET (from_us, to_us, wall_us, vcpu_alloc_us, mem_alloc_mib_us, cpu_used_us, mem_used_mib_us,
           disk_mib_us, snapshot_mib_us, net_egress_bytes, net_ingress_bytes) =
         (SELECT min(from_us), max(to_us), sum(wall_us), sum(vcpu_alloc_us), sum(mem_alloc_mib_us), sum(cpu_used_us),
           sum(mem_used_mib_us), sum(disk_mib_us), sum(snapshot_mib_us), sum(net_egress_bytes),
           sum(net_ingress_bytes) FROM usage_delta WHERE sandbox = ?1 AND from_us < ?2)
         WHERE rowid = ?3",
        params![sandbox, before_us, last],
    )?;
    let others = "DELETE FROM usage_delta WHERE sandbox = ?1 AND from_us < ?2 AND rowid <> ?3";
    Ok(tx.execute(others, params![sandbox, before_us, last])?)
}

/// Forgets some of the executions that ended before `before_us`; returns how many. What they used stays.
pub fn forget_ended(tx: &Transaction<'_>, before_us: i64) -> Result<usize, Error> {
    let some = "DELETE FROM execution WHERE id IN (SELECT id FROM execution WHERE ended_us < ?1 LIMIT ?2)";
    Ok(tx.execute(some, params![before_us, AT_ONCE as i64])?)
}

/// Forgets some of the sandboxes that were destroyed before `before_us`, with all that is theirs; returns how many.
pub fn forget_destroyed(tx: &Transaction<'_>, before_us: i64) -> Result<usize, Error> {
    let mut statement =
        tx.prepare_cached("SELECT id FROM sandbox WHERE state = 'destroyed' AND changed_us < ?1 LIMIT ?2")?;
    let ids = statement.query_map(params![before_us, AT_ONCE as i64], |row| row.get(0))?;
    let ids: Vec<String> = ids.collect::<Result<_, _>>()?;
    for id in &ids {
        tx.execute("DELETE FROM usage_delta WHERE sandbox = ?1", [id])?;
        tx.execute("DELETE FROM execution WHERE sandbox = ?1", [id])?;
        tx.execute("DELETE FROM sandbox WHERE id = ?1", [id])?;
    }
    Ok(ids.len())
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    fn insert(
        tx: &Transaction<'_>,
        sandbox: &str,
        execution: &str,
        seq: i64,
        from_us: i64,
    ) -> Result<(), Error> {
        tx.execute(
            "INSERT INTO usage_delta VALUES (?1, ?2, ?3, ?4, ?4 + 10, 10, 20, 30, 40, 50, 60, 70, 80, 90)",
            params![execution, seq, sandbox, from_us],
        )?;
        Ok(())
    }

    /// Execution, seq, from, to, wall time, bytes in.
    type Delta = (String, i64, i64, i64, i64, i64);

    fn rows(tx: &Transaction<'_>) -> Result<Vec<Delta>, Error> {
        let mut statement = tx.prepare(
            "SELECT execution, seq, from_us, to_us, wall_us, net_ingress_bytes FROM usage_delta ORDER BY 1, 2",
        )?;
        let rows = statement.query_map([], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    #[tokio::test]
    async fn old_deltas_become_one_that_adds_up_to_the_same() {
        let store = Store::in_memory();
        let folded = store.write(|tx| {
            for seq in 1..=5 {
                insert(tx, "sbx_a", "exe_a", seq, seq * 10)?;
            }
            insert(tx, "sbx_a", "exe_b", 1, 10)?;
            insert(tx, "sbx_b", "exe_c", 1, 10)?;
            insert(tx, "sbx_b", "exe_c", 2, 20)?;
            let sums = "SELECT sum(wall_us), sum(net_ingress_bytes), sum(disk_mib_us) FROM usage_delta";
            let sum = |tx: &Transaction<'_>| -> Result<[i64; 3], Error> {
                Ok(tx.query_row(sums, [], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?]))?)
            };
            let before = sum(tx)?;
            assert_eq!(fold_usage(tx, "", 35)?, Some(("sbx_b".to_owned(), 4)));
            assert_eq!(
                fold_usage(tx, "", 35)?,
                Some(("sbx_b".to_owned(), 0)),
                "there is nothing left to fold"
            );
            assert_eq!(fold_usage(tx, "sbx_b", 35)?, None);
            assert_eq!(sum(tx)?, before);
            rows(tx)
        });
        let of = |execution: &str, seq, from_us, to_us, wall_us, bytes| {
            (execution.to_owned(), seq, from_us, to_us, wall_us, bytes)
        };
        let expected = vec![
            of("exe_a", 4, 40, 50, 10, 90),
            of("exe_a", 5, 50, 60, 10, 90),
            of("exe_b", 1, 10, 40, 40, 360),
            of("exe_c", 2, 10, 30, 20, 180),
        ];
        assert_eq!(folded.await.unwrap(), expected);
    }

    #[tokio::test]
    async fn only_what_was_destroyed_long_ago_is_forgotten_and_that_as_a_whole() {
        let store = Store::in_memory();
        let left = store.write(|tx| {
            for (id, state, changed_us) in [("sbx_old", "destroyed", 5), ("sbx_new", "destroyed", 50), ("sbx_up", "running", 5)] {
                tx.execute(
                    "INSERT INTO sandbox (id, origin, spec, lineage, run, generation, placement_epoch, fenced_epoch,
                       local_seq, state, guest_epoch, created_us, changed_us)
                     VALUES (?1, 'tenant', '{}', ?1, 'running', 1, 1, 0, 0, ?2, 1, 1, ?3)",
                    params![id, state, changed_us],
                )?;
                tx.execute(
                    "INSERT INTO execution (id, sandbox, phase, image, vmm_uid, token, epoch, boot_id, created_us, ended_us)
                     VALUES ('exe_' || ?1, ?1, 'ending', 'i', 1, 't', 1, 'b', 1, ?2)",
                    params![id, if id == "sbx_up" { 9 } else { 2 }],
                )?;
                insert(tx, id, &format!("exe_{id}"), 1, 1)?;
            }
            assert_eq!((forget_destroyed(tx, 10)?, forget_destroyed(tx, 10)?), (1, 0));
            assert_eq!((forget_ended(tx, 2)?, forget_ended(tx, 3)?), (0, 1), "that of the one that still runs was longer");
            let mut left = Vec::new();
            for table in ["sandbox", "execution", "usage_delta"] {
                let count = format!("SELECT count(*) FROM {table}");
                left.push(tx.query_row(&count, [], |row| row.get::<_, i64>(0))?);
            }
            Ok(left)
        });
        assert_eq!(left.await.unwrap(), [2, 1, 2]);
    }
}
