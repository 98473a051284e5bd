//! Taking stock at start-up: whatever bears this instance's names and has no open execution is removed.
//!
//! Runs before any actor, so nothing here races with a step. What does have a row is left to its actor, which finds
//! out by observing.

use std::collections::BTreeSet;

use roost_domain::id::ExecutionId;
use tracing::{info, warn};

use super::live::Host;
use crate::host::{off_worker, reclaim};
use crate::store::{self, Store};

/// Why the host could not be taken stock of.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading which executions are open")]
    Store(#[from] store::Error),
    #[error("listing what bears this instance's names")]
    List(#[from] reclaim::Error),
}

/// Removes leftovers; one that cannot be removed is logged and met again at the next start.
pub async fn run(host: &Host, store: &Store) -> Result<(), Error> {
    let open: BTreeSet<ExecutionId> = store.write(store::execution::list_open).await?.into_iter().collect();
    let instance = host.instance().clone();
    let found = off_worker(move || reclaim::list(&instance)).await?;
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
