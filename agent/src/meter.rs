//! Reads the counters of running executions at least once a minute.
//!
//! Owns when a reading is taken; what it is worth (deltas, splitting) is in the domain and committed by `store`. A
//! reading also ends every state (`sandbox::step`), so nothing depends on this being punctual.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::sandbox::live::Live;
use crate::sandbox::record::Phase;
use crate::sandbox::world::World;
use crate::sandbox::{Manager, step};
use crate::store::Store;

/// A delta is never longer than a minute; reading a little more often keeps it so on a busy host.
const READ_EVERY: Duration = Duration::from_secs(50);

/// Reads until the task is dropped.
pub async fn run(world: Arc<Live>, manager: Manager, store: Store) {
    let mut ticks = interval(READ_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = read_all(world.as_ref(), &manager, &store).await {
            warn!(error = %roost_daemon::telemetry::chain(&error), "usage could not be read");
        }
    }
}

/// One reading of every running execution; one that fails does not keep the others from being read.
pub async fn read_all(
    world: &dyn World,
    manager: &Manager,
    store: &Store,
) -> Result<(), crate::sandbox::Error> {
    for sandbox in manager.list().await? {
        let Some(execution) =
            sandbox.execution.as_ref().filter(|execution| execution.phase == Phase::Running)
        else {
            continue;
        };
        let read = async {
            if let Some(reading) = world.read_usage(&sandbox, execution).await? {
                step::record_reading(&sandbox, execution, reading, store).await?;
            }
            Ok::<_, step::Error>(())
        };
        if let Err(error) = read.await {
            warn!(sandbox = %sandbox.id, error = %roost_daemon::telemetry::chain(&error), "usage was not read");
        }
    }
    manager.committed().notify_one();
    Ok(())
}
