//! Keeps the database as large as the host's life is wide, not as it is long.
//!
//! Owns what old rows become: deltas of usage one row per execution, destroyed sandboxes nothing. The outbox holds what
//! it sends in full, so nothing here waits for the scheduler. What is folded adds up to the same.

use rusqlite::{Transaction, params};

use super::Error;

/// One transaction's worth: others wait for it meanwhile.
pub const FORGOTTEN_AT_ONCE: usize = 50;

/// Sandboxes that may have something to fold.
pub fn list_metered(tx: &Transaction<'_>) -> Result<Vec<String>, Error> {
    let mut statement = tx.prepare_cached("SELECT id FROM sandbox")?;
    let ids = statement.query_map([], |row| row.get(0))?;
    Ok(ids.collect::<Result<_, _>>()?)
}

/// Makes one row of each execution's deltas from before `before_us`; returns how many rows went.
pub fn fold_usage(tx: &Transaction<'_>, sandbox: &str, before_us: i64) -> Result<usize, Error> {
    let mut statement = tx.prepare_cached(
        "SELECT execution, max(seq) FROM usage_delta WHERE sandbox = ?1 AND from_us < ?2
         GROUP BY execution HAVING count(*) > 1",
    )?;
    let found = statement.query_map(params![sandbox, before_us], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let found: Vec<(String, i64)> = found.collect::<Result<_, _>>()?;
    let mut gone = 0;
    for (execution, last) in found {
        // The last one takes the others up.
        tx.execute(
            "UPDATE usage_delta SET (from_us, wall_us, vcpu_alloc_us, mem_alloc_mib_us, cpu_used_us, mem_used_mib_us,
               disk_mib_us, snapshot_mib_us, net_egress_bytes, net_ingress_bytes) =
             (SELECT min(from_us), sum(wall_us), sum(vcpu_alloc_us), sum(mem_alloc_mib_us), sum(cpu_used_us),
               sum(mem_used_mib_us), sum(disk_mib_us), sum(snapshot_mib_us), sum(net_egress_bytes),
               sum(net_ingress_bytes) FROM usage_delta WHERE execution = ?1 AND seq <= ?2)
             WHERE execution = ?1 AND seq = ?2",
            params![execution, last],
        )?;
        gone += tx
            .execute("DELETE FROM usage_delta WHERE execution = ?1 AND seq < ?2", params![execution, last])?;
    }
    Ok(gone)
}

/// Forgets some of the sandboxes that were destroyed before `before_us`; returns which.
pub fn forget_destroyed(tx: &Transaction<'_>, before_us: i64) -> Result<Vec<String>, Error> {
    let mut statement =
        tx.prepare_cached("SELECT id FROM sandbox WHERE state = 'destroyed' AND changed_us < ?1 LIMIT ?2")?;
    let ids = statement.query_map(params![before_us, FORGOTTEN_AT_ONCE as i64], |row| row.get(0))?;
    let ids: Vec<String> = ids.collect::<Result<_, _>>()?;
    for id in &ids {
        for table in ["usage_delta", "execution"] {
            tx.execute(&format!("DELETE FROM {table} WHERE sandbox = ?1"), [id])?;
        }
        tx.execute("DELETE FROM sandbox WHERE id = ?1", [id])?;
    }
    Ok(ids)
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
            let sum = |tx: &Transaction<'_>| {
                tx.query_row(sums, [], |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
                })
            };
            let before = sum(tx)?;
            assert_eq!(fold_usage(tx, "sbx_a", 35)?, 2);
            assert_eq!(fold_usage(tx, "sbx_a", 35)?, 0, "there is nothing left to fold");
            assert_eq!(sum(tx)?, before);
            rows(tx)
        });
        let of = |execution: &str, seq, from_us, wall_us, bytes| {
            (execution.to_owned(), seq, from_us, seq * 10 + 10, wall_us, bytes)
        };
        let expected = vec![
            of("exe_a", 3, 10, 30, 270),
            of("exe_a", 4, 40, 10, 90),
            of("exe_a", 5, 50, 10, 90),
            of("exe_b", 1, 10, 10, 90),
            of("exe_c", 1, 10, 10, 90),
            of("exe_c", 2, 20, 10, 90),
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
                     VALUES ('exe_' || ?1, ?1, 'ending', 'i', 1, 't', 1, 'b', 1, 2)",
                    [id],
                )?;
                insert(tx, id, &format!("exe_{id}"), 1, 1)?;
            }
            assert_eq!(forget_destroyed(tx, 10)?, ["sbx_old"]);
            assert!(forget_destroyed(tx, 10)?.is_empty());
            let mut left = Vec::new();
            for table in ["sandbox", "execution", "usage_delta"] {
                let count = format!("SELECT count(*) FROM {table}");
                left.push(tx.query_row(&count, [], |row| row.get::<_, i64>(0))?);
            }
            Ok(left)
        });
        assert_eq!(left.await.unwrap(), [2, 2, 2]);
    }
}
