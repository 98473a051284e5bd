//! How fast the durable paths are. Run with `--run-ignored only`; figures are printed, loose floors asserted.

use std::time::{Duration, Instant};

use roost_domain::id::ExecutionId;
use roost_scheduler::store::execution::{self, Execution};
use roost_scheduler::store::{Settings, Store, host, sandbox, usage};

use crate::engines::runtime;
use crate::rows::{self, NOW_US};

/// Runs `count` calls of `work` from `callers` tasks and prints rate and latencies.
async fn measure<F, W>(what: &str, callers: usize, count: usize, work: W) -> f64
where
    W: Fn(usize) -> F + Send + Sync + Clone + 'static,
    F: Future<Output = ()> + Send,
{
    let begun = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let work = work.clone();
            tokio::spawn(async move {
                let mut taken = Vec::new();
                for at in (caller..count).step_by(callers) {
                    let begun = Instant::now();
                    work(at).await;
                    taken.push(begun.elapsed());
                }
                taken
            })
        })
        .collect();
    let mut taken: Vec<Duration> = Vec::new();
    for task in tasks {
        taken.extend(task.await.unwrap());
    }
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    taken.sort();
    let at = |share: f64| taken[((taken.len() - 1) as f64 * share) as usize];
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    println!(
        "{what}: n={count} callers={callers} {rate:.0}/s p50={:?} p95={:?} p99={:?} load={}",
        at(0.5),
        at(0.95),
        at(0.99),
        load.split(' ').next().unwrap()
    );
    rate
}

#[test]
#[ignore = "a measurement, not a check"]
fn placements_and_usage_rows_per_second() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(Settings::Sqlite { path: directory.path().join("scheduler.db") }).unwrap();
    runtime().block_on(async {
        let owner = rows::owner(&store).await;
        let mut host = rows::host();
        (host.memory_mib, host.disk_mib) = (1 << 40, 1 << 40);
        rows::insert_host(&store, &host).await;
        let (placing, template, id) = (store.clone(), rows::sandbox(&owner), host.id.clone());
        let rate = measure("placements (reserve + insert, durable)", 256, 20_000, move |at| {
            let (store, id) = (placing.clone(), id.clone());
            let mut row = template.clone();
            row.id = roost_daemon::ids::fresh::<roost_domain::id::SandboxId>().to_string();
            row.slug = format!("s{at}");
            row.host_id = Some(id.clone());
            async move {
                let placed = store.write(move |tx| {
                    assert!(host::reserve(tx, &id, row.memory_mib, row.disk_mib)?);
                    sandbox::insert(tx, &row)
                });
                assert!(placed.await.unwrap());
            }
        })
        .await;
        assert!(rate > 1000.0);
        let row = rows::running_sandbox(&store, &owner, &host.id, |_| ()).await;
        let execution_id = roost_daemon::ids::fresh::<ExecutionId>().to_string();
        let execution = Execution {
            id: execution_id.clone(),
            sandbox_id: row.id.clone(),
            tenant_id: row.tenant_id.clone(),
            host_id: host.id.clone(),
            placement_epoch: 1,
            started_us: NOW_US,
            ended_us: None,
            end_cause: String::new(),
        };
        store.write(move |tx| execution::record(tx, &execution)).await.unwrap();
        const BATCH: u64 = 100;
        let (ingesting, sandbox) = (store.clone(), row.clone());
        let batches = measure("usage batches of 100 deltas", 16, 300, move |at| {
            let (store, sandbox, execution_id) = (ingesting.clone(), sandbox.clone(), execution_id.clone());
            async move {
                let ingested = store.write(move |tx| {
                    for seq in 0..BATCH {
                        let seq = at as u64 * BATCH + seq;
                        let from_us = NOW_US + i64::try_from(seq).unwrap() * 60_000_000;
                        let delta = usage::Delta {
                            execution_id: execution_id.clone(),
                            seq,
                            sandbox_id: sandbox.id.clone(),
                            tenant_id: sandbox.tenant_id.clone(),
                            from_us,
                            to_us: from_us + 60_000_000,
                            wall_us: 60_000_000,
                            vcpu_alloc_us: 60_000_000,
                            mem_alloc_mib_us: 1,
                            cpu_used_us: 1,
                            mem_used_mib_us: 1,
                            disk_mib_us: 1,
                            snapshot_mib_us: 0,
                            net_egress_bytes: 1,
                            net_ingress_bytes: 1,
                        };
                        usage::ingest(tx, &delta, &sandbox)?;
                    }
                    Ok(())
                });
                ingested.await.unwrap();
            }
        })
        .await;
        println!("usage rows: {:.0}/s", batches * BATCH as f64);
        assert!(batches > 10.0);
        let (reading, tenant, id) = (store.clone(), row.tenant_id.clone(), row.id.clone());
        measure("reads of one sandbox", 32, 20_000, move |_| {
            let (store, tenant, id) = (reading.clone(), tenant.clone(), id.clone());
            async move {
                let found = store.read(move |tx| sandbox::find(tx, &tenant, &id)).await.unwrap();
                assert!(found.is_some());
            }
        })
        .await;
    });
}
