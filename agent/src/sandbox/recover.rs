//! Taking stock at start-up: whatever bears this instance's names and has no open execution is removed.
//!
//! Runs before any actor, so nothing here races with a step. What does have a row is left to its actor, which finds
//! out by observing.

use std::collections::BTreeSet;

use roost_domain::id::{ExecutionId, SnapshotId};
use tracing::{info, warn};

use super::live::Host;
use crate::host::{off_worker, reclaim};
use crate::plane::Traffic;
use crate::snapshot;
use crate::store::{self, Store};

/// Why the host could not be taken stock of.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading which executions are open")]
    Store(#[from] store::Error),
    #[error("going through the memory snapshots")]
    Snapshots(#[from] snapshot::Error),
    #[error("listing what bears this instance's names")]
    List(#[from] reclaim::Error),
}

/// Removes leftovers; one that cannot be removed is logged and met again at the next start.
pub async fn run(host: &Host, store: &Store) -> Result<(), Error> {
    let open: BTreeSet<ExecutionId> = store.write(store::execution::list_open).await?.into_iter().collect();
    let instance = host.instance().clone();
    let found = off_worker(move || reclaim::list(&instance)).await?;
    remove_unnamed_snapshots(host, store).await?;
    for id in found.difference(&open) {
        let names = host.names(id);
        match off_worker(move || reclaim::remove(&names)).await {
            Ok(()) => info!(execution = %id, "removed what was left of an execution without a row"),
            Err(error) => {
                warn!(execution = %id, error = %roost_daemon::telemetry::chain(&error), "a leftover stays");
            }
        }
    }
    Ok(())
}

/// The byte counters of every open execution, as its last reading left them: before a session can bring a report, so
/// that what a process counts on from is known.
pub async fn restore_traffic(store: &Store) -> Result<Traffic, store::Error> {
    let traffic = Traffic::default();
    for (execution, network) in store.write(store::usage::list_network).await? {
        traffic.open(&execution.to_string(), network);
    }
    Ok(traffic)
}

/// A snapshot that no row names was being written, or being removed, when the agent ended.
async fn remove_unnamed_snapshots(host: &Host, store: &Store) -> Result<(), Error> {
    let sandboxes = store.write(store::sandbox::list).await?;
    let mut named = BTreeSet::new();
    for sandbox in &sandboxes {
        named.extend(sandbox.snapshot);
        if let Some(execution) = &sandbox.execution {
            // One that is being saved writes its own again; one that is being restored reads where it came from.
            named.insert(SnapshotId::from_ulid(execution.id.ulid()));
            named.extend(execution.restore);
        }
    }
    let removed = host.clone();
    let removed = off_worker(move || removed.remove_snapshots_but(&named)).await?;
    if removed > 0 {
        info!(removed, "removed memory snapshots without a row");
    }
    Ok(())
}
