//! Reads the counters of running executions at least once a minute, and keeps the books short.
//!
//! Owns when a reading is taken and how long its details are kept; what it is worth (deltas, splitting) is in the
//! domain and committed by `store`. A reading also ends every state (`sandbox::step`), so nothing depends on this being
//! punctual.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::sandbox::live::Live;
use crate::sandbox::record::Phase;
use crate::sandbox::world::World;
use crate::sandbox::{Manager, step};
use crate::store::{self, Store, retention};

/// A delta is never longer than a minute; reading a little more often keeps it so on a busy host.
const READ_EVERY: Duration = Duration::from_secs(50);

/// Then the deltas of a sandbox become one: on the host they are only ever added up.
const DETAILS_US: i64 = 24 * 3600 * 1_000_000;
/// Then a destroyed sandbox is forgotten. Until then a scheduler restored from a backup learns that it is gone.
const KEPT_US: i64 = 90 * DETAILS_US;
const TIDY_EVERY: Duration = Duration::from_secs(6 * 3600);

/// Tidies until the task is dropped.
pub async fn keep_short(store: Store) {
    let mut ticks = interval(TIDY_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match tidy(&store, roost_daemon::clock::now_us()).await {
            Ok((0, 0)) => {}
            Ok((rows, forgotten)) => {
                info!(rows, forgotten, "old usage folded, what ended long ago forgotten")
            }
            Err(error) => warn!(error = %roost_daemon::telemetry::chain(&error), "the books stay long"),
        }
    }
}

/// How many rows of usage were folded, and sandboxes and executions forgotten; in short transactions, since others wait
/// for each.
async fn tidy(store: &Store, now_us: i64) -> Result<(usize, usize), store::Error> {
    let (details_us, kept_us) = (now_us - DETAILS_US, now_us - KEPT_US);
    let (mut rows, mut forgotten, mut after) = (0, 0, String::new());
    loop {
        let some = store.write(move |tx| {
            Ok((retention::forget_destroyed(tx, kept_us)?, retention::forget_ended(tx, kept_us)?))
        });
        let (sandboxes, executions) = some.await?;
        forgotten += sandboxes + executions;
        if sandboxes.max(executions) < retention::AT_ONCE {
            break;
        }
    }
    while let Some((last, folded)) =
        store.write(move |tx| retention::fold_usage(tx, &after, details_us)).await?
    {
        rows += folded;
        after = last;
    }
    Ok((rows, forgotten))
}

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
