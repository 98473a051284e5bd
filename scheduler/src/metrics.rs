//! What /metrics shows beside the counters modules keep themselves: how much there is of what, looked at now and then.

use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use roost_daemon::shutdown::Shutdown;

use crate::store::{self, Store, host, sandbox};

const PERIOD: Duration = Duration::from_secs(10);

type Labels = Vec<(&'static str, String)>;

/// The gauges; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    sandboxes: Family<Labels, Gauge>,
    hosts: Family<Labels, Gauge>,
    memory_mib: Family<Labels, Gauge>,
    disk_mib: Family<Labels, Gauge>,
    waiting: Family<Labels, Gauge>,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        let mut add = |name: &str, help: &str, family: &Family<Labels, Gauge>| {
            registry.register(name, help, family.clone());
        };
        add("roost_sandboxes", "Sandboxes that are not destroyed, by observed state", &metrics.sandboxes);
        add("roost_hosts", "Hosts, by state", &metrics.hosts);
        add("roost_hosts_memory_mib", "Memory of active hosts: offered and reserved", &metrics.memory_mib);
        add("roost_hosts_disk_mib", "Disk of active hosts: offered and reserved", &metrics.disk_mib);
        add("roost_store_waiting", "Transactions waiting for the store, by kind", &metrics.waiting);
        metrics
    }

    /// Looks until shutdown is requested.
    pub(crate) async fn run(self, store: Store, shutdown: Shutdown) {
        loop {
            // The sweep reports a store that does not answer; here the figures just stay.
            let _ = self.look(&store).await;
            tokio::select! {
                () = shutdown.requested() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }

    async fn look(&self, store: &Store) -> Result<(), store::Error> {
        let (writes, reads) = store.waiting();
        set(&self.waiting, "kind", "write", writes as u64);
        set(&self.waiting, "kind", "read", reads as u64);
        let (states, hosts) = store.read(|tx| Ok((sandbox::count_live(tx)?, host::list(tx)?))).await?;
        self.sandboxes.clear();
        for (state, count) in states {
            set(&self.sandboxes, "state", &state, u64::try_from(count).unwrap_or(0));
        }
        self.hosts.clear();
        for host in &hosts {
            self.hosts.get_or_create(&vec![("state", host.state.clone())]).inc();
        }
        let active = || hosts.iter().filter(|host| host.state == "active");
        set(&self.memory_mib, "kind", "offered", active().map(|host| host.memory_mib).sum());
        set(&self.memory_mib, "kind", "reserved", active().map(|host| host.memory_reserved_mib).sum());
        set(&self.disk_mib, "kind", "offered", active().map(|host| host.disk_mib).sum());
        set(&self.disk_mib, "kind", "reserved", active().map(|host| host.disk_reserved_mib).sum());
        Ok(())
    }
}

fn set(family: &Family<Labels, Gauge>, label: &'static str, value: &str, number: u64) {
    family.get_or_create(&vec![(label, value.to_owned())]).set(i64::try_from(number).unwrap_or(i64::MAX));
}
