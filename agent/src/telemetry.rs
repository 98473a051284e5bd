//! What the agent counts for `/metrics`. Read from the store when it is asked for, so that nothing can drift.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use roost_domain::lifecycle::State;
use tracing::warn;

use crate::sandbox::Manager;
use crate::store::{self, Store};

const REFRESH_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

type Count = Gauge<u64, AtomicU64>;

/// The agent's gauges.
#[derive(Debug, Clone)]
pub struct Metrics {
    sandboxes: Family<StateLabel, Count>,
    outbox_rows: Count,
}

impl Metrics {
    /// Makes the gauges and the registry that `/metrics` serves.
    pub fn register() -> (Self, Arc<Registry>) {
        let mut registry = Registry::with_prefix("roost_agent");
        let metrics = Self { sandboxes: Family::default(), outbox_rows: Count::default() };
        registry.register("sandboxes", "Sandboxes of this host by state", metrics.sandboxes.clone());
        let help = "Reports the scheduler has not acknowledged yet";
        registry.register("outbox_rows", help, metrics.outbox_rows.clone());
        (metrics, Arc::new(registry))
    }

    /// Keeps the gauges up to date, for ever.
    pub async fn keep_current(self, manager: Manager, store: Store) {
        loop {
            if let Err(error) = self.refresh(&manager, &store).await {
                warn!(error = %roost_daemon::telemetry::chain(&error), "the gauges are out of date");
            }
            tokio::time::sleep(REFRESH_EVERY).await;
        }
    }

    async fn refresh(&self, manager: &Manager, store: &Store) -> Result<(), crate::sandbox::Error> {
        let sandboxes = manager.list().await?;
        for state in State::ALL {
            let count = sandboxes.iter().filter(|sandbox| sandbox.state == *state).count() as u64;
            self.sandboxes.get_or_create(&StateLabel { state: state.text() }).set(count);
        }
        self.outbox_rows.set(store.write(store::outbox::count).await?);
        Ok(())
    }
}
