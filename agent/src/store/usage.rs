//! Readings and the immutable deltas between them.
//!
//! A delta and the reading it ends at are one transaction, so each running moment belongs to exactly one delta,
//! whatever is killed when.

use roost_domain::id::{ExecutionId, SandboxId};
use roost_domain::usage::{Allocation, Counted, Delta, Network, Reading, advance};
use roost_proto::host::UsageDelta;
use roost_proto::local::UsageRow;
use rusqlite::{OptionalExtension, Transaction};

use super::Error;

/// The first reading of an execution, taken when it became the sandbox's. A repeat keeps the first.
pub fn insert_baseline(tx: &Transaction<'_>, execution: ExecutionId, reading: &Reading) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO reading (execution, seq, at_us, boottime_us, cpu_us, memory_mib, disk_mib, snapshot_mib,
           egress_bytes, ingress_bytes, egress_run, egress_from_guest_bytes, egress_to_guest_bytes,
           edge_run, edge_from_guest_bytes, edge_to_guest_bytes)
         VALUES (?1, 1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
         ON CONFLICT (execution) DO NOTHING",
        (
            execution.to_string(),
            reading.at_us,
            reading.boottime_us,
            reading.cpu_us as i64,
            reading.memory_mib as i64,
            reading.disk_mib as i64,
            reading.snapshot_mib as i64,
            reading.network.egress_bytes as i64,
            reading.network.ingress_bytes as i64,
            reading.network.egress.run as i64,
            reading.network.egress.from_guest_bytes as i64,
            reading.network.egress.to_guest_bytes as i64,
            reading.network.edge.run as i64,
            reading.network.edge.from_guest_bytes as i64,
            reading.network.edge.to_guest_bytes as i64,
        ),
    )?;
    Ok(())
}

/// Commits what was used between the last reading and this one; returns the new deltas for the outbox.
/// Without a last reading there is nothing to account for.
pub fn record_reading(
    tx: &Transaction<'_>,
    sandbox: SandboxId,
    execution: ExecutionId,
    allocation: Allocation,
    reading: &Reading,
) -> Result<Vec<UsageDelta>, Error> {
    let Some((seq, last)) = find_reading(tx, execution)? else {
        return Ok(Vec::new());
    };
    // A VMM whose end nobody saw is billed to the last reading that saw it alive, but for the CPU it has used since.
    let ended_unseen = reading.boottime_us <= last.boottime_us;
    let boottime_us = if ended_unseen { last.boottime_us + 1 } else { reading.boottime_us };
    let advanced = advance(&last, &Reading { boottime_us, ..*reading }, allocation, seq);
    let mut deltas = Vec::with_capacity(advanced.deltas.len());
    for delta in &advanced.deltas {
        insert_delta(tx, sandbox, execution, delta)?;
        deltas.push(to_wire(sandbox, execution, delta));
    }
    let next = advanced.next;
    tx.execute(
        "UPDATE reading SET seq = ?2, at_us = ?3, boottime_us = ?4, cpu_us = ?5, memory_mib = ?6, disk_mib = ?7,
           snapshot_mib = ?8, egress_bytes = ?9, ingress_bytes = ?10, egress_run = ?11,
           egress_from_guest_bytes = ?12, egress_to_guest_bytes = ?13, edge_run = ?14,
           edge_from_guest_bytes = ?15, edge_to_guest_bytes = ?16 WHERE execution = ?1",
        (
            execution.to_string(),
            advanced.next_seq as i64,
            next.at_us,
            next.boottime_us,
            next.cpu_us as i64,
            next.memory_mib as i64,
            next.disk_mib as i64,
            next.snapshot_mib as i64,
            next.network.egress_bytes as i64,
            next.network.ingress_bytes as i64,
            next.network.egress.run as i64,
            next.network.egress.from_guest_bytes as i64,
            next.network.egress.to_guest_bytes as i64,
            next.network.edge.run as i64,
            next.network.edge.from_guest_bytes as i64,
            next.network.edge.to_guest_bytes as i64,
        ),
    )?;
    Ok(deltas)
}

/// The last reading, and the number of the delta it will start.
pub fn find_reading(tx: &Transaction<'_>, execution: ExecutionId) -> Result<Option<(u64, Reading)>, Error> {
    let read = |row: &rusqlite::Row<'_>| {
        let count = |column: &str| row.get::<_, i64>(column).map(|value| value as u64);
        Ok((
            count("seq")?,
            Reading {
                at_us: row.get("at_us")?,
                boottime_us: row.get("boottime_us")?,
                cpu_us: count("cpu_us")?,
                memory_mib: count("memory_mib")?,
                disk_mib: count("disk_mib")?,
                snapshot_mib: count("snapshot_mib")?,
                network: Network {
                    egress_bytes: count("egress_bytes")?,
                    ingress_bytes: count("ingress_bytes")?,
                    egress: Counted {
                        run: count("egress_run")?,
                        from_guest_bytes: count("egress_from_guest_bytes")?,
                        to_guest_bytes: count("egress_to_guest_bytes")?,
                    },
                    edge: Counted {
                        run: count("edge_run")?,
                        from_guest_bytes: count("edge_from_guest_bytes")?,
                        to_guest_bytes: count("edge_to_guest_bytes")?,
                    },
                },
            },
        ))
    };
    Ok(tx
        .query_row("SELECT * FROM reading WHERE execution = ?1", [execution.to_string()], read)
        .optional()?)
}

/// Where the bytes of every execution that is not over are counted on from; one without a reading begins at zero.
pub fn list_network(tx: &Transaction<'_>) -> Result<Vec<(ExecutionId, Network)>, Error> {
    let network =
        |id| Ok((id, find_reading(tx, id)?.map_or_else(Network::default, |(_, last)| last.network)));
    super::execution::list_open(tx)?.into_iter().map(network).collect()
}

/// The execution is over: no delta starts from its last reading any more.
pub fn close(tx: &Transaction<'_>, execution: ExecutionId) -> Result<(), Error> {
    tx.execute("DELETE FROM reading WHERE execution = ?1", [execution.to_string()])?;
    Ok(())
}

fn insert_delta(
    tx: &Transaction<'_>,
    sandbox: SandboxId,
    execution: ExecutionId,
    delta: &Delta,
) -> Result<(), Error> {
    let amounts = &delta.amounts;
    tx.execute(
        "INSERT INTO usage_delta (execution, seq, sandbox, from_us, to_us, wall_us, vcpu_alloc_us, mem_alloc_mib_us,
           cpu_used_us, mem_used_mib_us, disk_mib_us, snapshot_mib_us, net_egress_bytes, net_ingress_bytes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        (
            execution.to_string(),
            delta.seq as i64,
            sandbox.to_string(),
            delta.from_us,
            delta.to_us,
            amounts.wall_us as i64,
            amounts.vcpu_alloc_us as i64,
            amounts.mem_alloc_mib_us as i64,
            amounts.cpu_used_us as i64,
            amounts.mem_used_mib_us as i64,
            amounts.disk_mib_us as i64,
            amounts.snapshot_mib_us as i64,
            amounts.net_egress_bytes as i64,
            amounts.net_ingress_bytes as i64,
        ),
    )?;
    Ok(())
}

fn to_wire(sandbox: SandboxId, execution: ExecutionId, delta: &Delta) -> UsageDelta {
    let amounts = &delta.amounts;
    UsageDelta {
        execution: execution.to_string(),
        seq: delta.seq,
        sandbox: sandbox.to_string(),
        from_us: delta.from_us,
        to_us: delta.to_us,
        wall_us: amounts.wall_us,
        vcpu_alloc_us: amounts.vcpu_alloc_us,
        mem_alloc_mib_us: amounts.mem_alloc_mib_us,
        cpu_used_us: amounts.cpu_used_us,
        mem_used_mib_us: amounts.mem_used_mib_us,
        disk_mib_us: amounts.disk_mib_us,
        snapshot_mib_us: amounts.snapshot_mib_us,
        net_egress_bytes: amounts.net_egress_bytes,
        net_ingress_bytes: amounts.net_ingress_bytes,
    }
}

/// What each sandbox (or the one) has used, up to its last reading: by id, those after `after`, `at_most` of them.
pub fn sum_by_sandbox(
    tx: &Transaction<'_>,
    only: Option<SandboxId>,
    after: &str,
    at_most: usize,
) -> Result<Vec<UsageRow>, Error> {
    let mut statement = tx.prepare_cached(
        "SELECT sandbox, sum(wall_us), sum(vcpu_alloc_us), sum(cpu_used_us), sum(mem_alloc_mib_us),
           sum(mem_used_mib_us), sum(disk_mib_us), sum(net_egress_bytes), sum(net_ingress_bytes), sum(snapshot_mib_us)
         FROM usage_delta WHERE (?1 IS NULL OR sandbox = ?1) AND sandbox > ?2
         GROUP BY sandbox ORDER BY sandbox LIMIT ?3",
    )?;
    let params = (only.map(|id| id.to_string()), after, at_most as i64);
    let rows = statement.query_map(params, |row| {
        let sum = |index: usize| row.get::<_, i64>(index).map(|value| value as u64);
        Ok(UsageRow {
            sandbox: row.get(0)?,
            wall_us: sum(1)?,
            vcpu_alloc_us: sum(2)?,
            cpu_used_us: sum(3)?,
            mem_alloc_mib_us: sum(4)?,
            mem_used_mib_us: sum(5)?,
            disk_mib_us: sum(6)?,
            net_egress_bytes: sum(7)?,
            net_ingress_bytes: sum(8)?,
            snapshot_mib_us: sum(9)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use roost_domain::usage::Amounts;

    #[tokio::test]
    async fn sums_come_page_by_page_without_gap_or_repeat() {
        let store = super::super::Store::in_memory();
        let ids: Vec<SandboxId> = (1..=5).map(|id| SandboxId::from_ulid(roost_domain::Ulid(id))).collect();
        let made = ids.clone();
        let insert = store.write(move |tx| {
            for (sandbox, seq) in made.iter().flat_map(|sandbox| [(sandbox, 1), (sandbox, 2)]) {
                let execution = ExecutionId::from_ulid(sandbox.ulid());
                let amounts = Amounts { wall_us: 10 * seq, ..Amounts::default() };
                let delta = Delta { seq, from_us: 0, to_us: 1, amounts };
                insert_delta(tx, *sandbox, execution, &delta)?;
            }
            Ok(())
        });
        insert.await.unwrap();
        let mut seen: Vec<UsageRow> = Vec::new();
        loop {
            let after = seen.last().map(|row| row.sandbox.clone()).unwrap_or_default();
            let page = store.write(move |tx| sum_by_sandbox(tx, None, &after, 2)).await.unwrap();
            if page.is_empty() {
                break;
            }
            seen.extend(page);
        }
        let sandboxes: Vec<_> = seen.iter().map(|row| row.sandbox.clone()).collect();
        assert_eq!(sandboxes, ids.iter().map(SandboxId::to_string).collect::<Vec<_>>());
        assert!(seen.iter().all(|row| row.wall_us == 30));
        let only = store.write(move |tx| sum_by_sandbox(tx, Some(ids[3]), "", 9)).await.unwrap();
        assert_eq!(only.len(), 1);
    }

    #[tokio::test]
    async fn what_each_process_had_counted_is_kept_with_the_sums() {
        let store = super::super::Store::in_memory();
        let [execution, unread, over] = [1, 2, 3].map(|id| ExecutionId::from_ulid(roost_domain::Ulid(id)));
        let counted = |run, bytes| Counted { run, from_guest_bytes: bytes, to_guest_bytes: bytes + 1 };
        let network = move |run, bytes| Network {
            egress_bytes: 2 * bytes,
            ingress_bytes: 2 * bytes + 2,
            egress: counted(run, bytes),
            edge: counted(run - 1, bytes + 1),
        };
        let kept = store.write(move |tx| {
            // One that runs, one that has no reading yet, one that is over.
            for (id, ended_us) in [(execution, None), (unread, None), (over, Some(1))] {
                tx.execute(
                    "INSERT INTO execution (id, phase, image, vmm_uid, token, epoch, boot_id, created_us, ended_us)
                     VALUES (?1, 'running', 'i', 1 + (SELECT count(*) FROM execution), 't', 1, 'b', 1, ?2)",
                    (id.to_string(), ended_us),
                )?;
            }
            let first = Reading { network: network(u64::MAX, 10), ..Reading::default() };
            insert_baseline(tx, execution, &first)?;
            let begun = find_reading(tx, execution)?;
            let next = Reading { boottime_us: 1_000_000, network: network(7, 30), ..Reading::default() };
            let allocation = Allocation { vcpus: 1, memory_mib: 1 };
            let sandbox = SandboxId::from_ulid(execution.ulid());
            let deltas = record_reading(tx, sandbox, execution, allocation, &next)?;
            Ok((begun, deltas, list_network(tx)?))
        });
        let (begun, deltas, mut open) = kept.await.unwrap();
        assert_eq!(begun.unwrap().1.network, network(u64::MAX, 10));
        open.sort_unstable_by_key(|(execution, _)| *execution);
        assert_eq!(open, [(execution, network(7, 30)), (unread, Network::default())]);
        let [delta] = &deltas[..] else { panic!("{deltas:?}") };
        assert_eq!((delta.net_egress_bytes, delta.net_ingress_bytes), (40, 40));
    }
}
