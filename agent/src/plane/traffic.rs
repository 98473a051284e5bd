//! Byte counters of executions, added up over the processes and runs of processes that report them.
//!
//! Owns the sums of open executions and what is known of each process's own counters. A process counts from zero in
//! each of its runs; the sum only grows. Must not invent an execution: what nobody opened, nobody would forget.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use roost_domain::usage::{Counted, Network};

use super::Role;

/// A shared table of counters.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    open: Arc<Mutex<HashMap<String, Network>>>,
}

impl Traffic {
    /// Counts for `execution` from here on, beginning at `seed`; one that is open stays as it is.
    pub fn open(&self, execution: &str, seed: Network) {
        self.lock().entry(execution.to_owned()).or_insert(seed);
    }

    /// Takes over the cumulative counters of one process. A report that is repeated, or comes after a later one of the
    /// same run, adds nothing.
    pub fn record(&self, execution: &str, role: Role, reported: Counted) {
        let mut open = self.lock();
        let Some(network) = open.get_mut(execution) else { return };
        let seen = match role {
            Role::Egress => &mut network.egress,
            Role::Edge => &mut network.edge,
        };
        if seen.run != reported.run {
            *seen = Counted { run: reported.run, ..Counted::default() };
        }
        let from_guest = reported.from_guest_bytes.saturating_sub(seen.from_guest_bytes);
        let to_guest = reported.to_guest_bytes.saturating_sub(seen.to_guest_bytes);
        seen.from_guest_bytes += from_guest;
        seen.to_guest_bytes += to_guest;
        // A process may report anything; the sum stays at the greatest number instead of starting anew.
        network.egress_bytes = network.egress_bytes.saturating_add(from_guest);
        network.ingress_bytes = network.ingress_bytes.saturating_add(to_guest);
    }

    /// The sums and what they consist of; nothing for an execution that is not open.
    pub fn of(&self, execution: &str) -> Network {
        self.lock().get(execution).copied().unwrap_or_default()
    }

    pub fn forget(&self, execution: &str) {
        self.lock().remove(execution);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Network>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use roost_domain::usage::{Allocation, Reading, advance};

    fn counted(run: u64, from_guest_bytes: u64, to_guest_bytes: u64) -> Counted {
        Counted { run, from_guest_bytes, to_guest_bytes }
    }

    fn sums(traffic: &Traffic, execution: &str) -> (u64, u64) {
        let network = traffic.of(execution);
        (network.egress_bytes, network.ingress_bytes)
    }

    #[test]
    fn a_restarted_process_does_not_lose_what_was_counted() {
        let traffic = Traffic::default();
        traffic.open("exe_a", Network::default());
        traffic.open("exe_b", Network::default());
        traffic.record("exe_a", Role::Egress, counted(1, 100, 10));
        traffic.record("exe_a", Role::Egress, counted(1, 150, 20));
        traffic.record("exe_a", Role::Egress, counted(2, 5, 1));
        traffic.record("exe_a", Role::Edge, counted(3, 1000, 7));
        traffic.record("exe_b", Role::Edge, counted(3, 9, 9));
        assert_eq!(sums(&traffic, "exe_a"), (1155, 28));
        traffic.forget("exe_a");
        assert_eq!(traffic.of("exe_a"), Network::default());
        assert_eq!(sums(&traffic, "exe_b"), (9, 9));
    }

    #[test]
    fn a_report_that_comes_late_or_of_a_stranger_changes_nothing() {
        let traffic = Traffic::default();
        traffic.open("exe_a", Network::default());
        for (from_guest, to_guest) in [(100, 10), (90, 9), (100, 10), (80, 12)] {
            traffic.record("exe_a", Role::Edge, counted(7, from_guest, to_guest));
        }
        traffic.open("exe_a", Network::default());
        traffic.record("exe_stranger", Role::Edge, counted(7, 5, 5));
        assert_eq!(sums(&traffic, "exe_a"), (100, 12), "each direction for itself");
        assert_eq!(traffic.of("exe_stranger"), Network::default());
        traffic.record("exe_a", Role::Edge, counted(7, u64::MAX, u64::MAX));
        traffic.record("exe_a", Role::Edge, counted(8, u64::MAX, 1));
        assert_eq!(sums(&traffic, "exe_a"), (u64::MAX, u64::MAX));
    }

    #[test]
    fn another_agent_goes_on_where_the_last_reading_was() {
        let traffic = Traffic::default();
        traffic.open("exe_a", Network::default());
        traffic.record("exe_a", Role::Edge, counted(7, 100, 10));
        let reading = traffic.of("exe_a");
        traffic.record("exe_a", Role::Edge, counted(7, 130, 13));
        let next = Traffic::default();
        next.open("exe_a", reading);
        next.record("exe_a", Role::Edge, counted(7, 140, 14));
        next.record("exe_a", Role::Egress, counted(9, 1, 1));
        assert_eq!(sums(&next, "exe_a"), (141, 15));
    }

    #[derive(Debug, Clone)]
    enum Event {
        /// The guest sends and receives through the process.
        Pass(usize, u64, u64),
        Report(usize),
        /// A report of the present run that was made long ago, or was there before.
        Late(usize, usize),
        RestartProcess(usize),
        Commit,
        KillAgent,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0usize..2, 0u64..1000, 0u64..1000).prop_map(|(role, up, down)| Event::Pass(role, up, down)),
            4 => (0usize..2).prop_map(Event::Report),
            3 => (0usize..2, any::<prop::sample::Index>()).prop_map(|(role, which)| Event::Late(role, which.index(64))),
            1 => (0usize..2).prop_map(Event::RestartProcess),
            3 => Just(Event::Commit),
            1 => Just(Event::KillAgent),
        ]
    }

    /// One process: its counters, and every report of its present run.
    #[derive(Debug, Default)]
    struct Process {
        now: Counted,
        reports: Vec<Counted>,
    }

    const ROLES: [Role; 2] = [Role::Egress, Role::Edge];

    /// The agent with its database, and both processes.
    #[derive(Debug, Default)]
    struct Plant {
        traffic: Traffic,
        processes: [Process; 2],
        last: Reading,
        billed: (u64, u64),
        /// Reported by runs that are over.
        former: (u64, u64),
        runs: u64,
    }

    impl Plant {
        fn start() -> Self {
            let mut plant = Self::default();
            plant.traffic.open("exe_a", Network::default());
            for role in 0..2 {
                plant.restart_process(role);
            }
            plant
        }

        fn restart_process(&mut self, role: usize) {
            self.runs += 1;
            let most = self.processes[role].most();
            self.former = (self.former.0 + most.0, self.former.1 + most.1);
            self.processes[role] = Process { now: counted(self.runs, 0, 0), reports: Vec::new() };
        }

        fn commit(&mut self) {
            let boottime_us = self.last.boottime_us + 1;
            let reading = Reading { boottime_us, network: self.traffic.of("exe_a"), ..Reading::default() };
            let done = advance(&self.last, &reading, Allocation { vcpus: 1, memory_mib: 1 }, 1);
            for delta in done.deltas {
                self.billed.0 += delta.amounts.net_egress_bytes;
                self.billed.1 += delta.amounts.net_ingress_bytes;
            }
            self.last = done.next;
        }

        fn happen(&mut self, event: Event) {
            match event {
                Event::Pass(role, up, down) => {
                    self.processes[role].now.from_guest_bytes += up;
                    self.processes[role].now.to_guest_bytes += down;
                }
                Event::Report(role) => {
                    let process = &mut self.processes[role];
                    process.reports.push(process.now);
                    self.traffic.record("exe_a", ROLES[role], process.now);
                }
                Event::Late(role, which) => {
                    let reports = &self.processes[role].reports;
                    if let Some(report) = reports.get(which % reports.len().max(1)) {
                        self.traffic.record("exe_a", ROLES[role], *report);
                    }
                }
                Event::RestartProcess(role) => self.restart_process(role),
                Event::Commit => self.commit(),
                Event::KillAgent => {
                    self.traffic = Traffic::default();
                    self.traffic.open("exe_a", self.last.network);
                }
            }
        }

        fn reported(&self) -> (u64, u64) {
            let [egress, edge] = [0, 1].map(|role: usize| self.processes[role].most());
            (self.former.0 + egress.0 + edge.0, self.former.1 + egress.1 + edge.1)
        }
    }

    impl Process {
        fn most(&self) -> (u64, u64) {
            let last = self.reports.last().copied().unwrap_or_default();
            (last.from_guest_bytes, last.to_guest_bytes)
        }
    }

    proptest! {
        #[test]
        fn what_the_processes_reported_is_billed_once(is_clean in any::<bool>(), events in vec(event(), 0..120)) {
            let mut plant = Plant::start();
            for event in events {
                // Otherwise what only an agent heard that was killed as well is lost.
                if let (true, Event::RestartProcess(role)) = (is_clean, &event) {
                    plant.happen(Event::Report(*role));
                    plant.commit();
                }
                plant.happen(event);
                prop_assert!(plant.billed.0 <= plant.reported().0 && plant.billed.1 <= plant.reported().1);
            }
            for role in 0..2 {
                plant.happen(Event::Report(role));
            }
            plant.commit();
            prop_assert!(plant.billed.0 <= plant.reported().0 && plant.billed.1 <= plant.reported().1);
            if is_clean {
                prop_assert_eq!(plant.billed, plant.reported());
            }
        }
    }
}
