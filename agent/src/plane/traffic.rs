//! Byte counters of executions, as the data plane reports them.
//!
//! A process counts from zero after its own restart; what it had counted before is kept here, so that the sum only
//! grows. Lost with the agent: the meter treats a smaller value as a new start.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Role;

/// Bytes since the execution was first attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// From the guest to the world.
    pub egress_bytes: u64,
    /// From the world to the guest.
    pub ingress_bytes: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    before: Counters,
    current: Counters,
}

/// A shared table of counters.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    kept: Arc<Mutex<HashMap<(String, Role), Kept>>>,
}

impl Traffic {
    /// Takes over the cumulative counters of one process.
    pub fn record(&self, execution: &str, role: Role, reported: Counters) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = kept.entry((execution.to_owned(), role)).or_default();
        if reported.egress_bytes < entry.current.egress_bytes
            || reported.ingress_bytes < entry.current.ingress_bytes
        {
            entry.before.egress_bytes += entry.current.egress_bytes;
            entry.before.ingress_bytes += entry.current.ingress_bytes;
        }
        entry.current = reported;
    }

    /// The sum over both processes.
    pub fn of(&self, execution: &str) -> Counters {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = Counters::default();
        for role in [Role::Egress, Role::Edge] {
            if let Some(entry) = kept.get(&(execution.to_owned(), role)) {
                sum.egress_bytes += entry.before.egress_bytes + entry.current.egress_bytes;
                sum.ingress_bytes += entry.before.ingress_bytes + entry.current.ingress_bytes;
            }
        }
        sum
    }

    pub fn forget(&self, execution: &str) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for role in [Role::Egress, Role::Edge] {
            kept.remove(&(execution.to_owned(), role));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restarted_process_does_not_lose_what_was_counted() {
        let traffic = Traffic::default();
        let counters = |egress_bytes, ingress_bytes| Counters { egress_bytes, ingress_bytes };
        traffic.record("exe_a", Role::Egress, counters(100, 10));
        traffic.record("exe_a", Role::Egress, counters(150, 20));
        traffic.record("exe_a", Role::Egress, counters(5, 1));
        traffic.record("exe_a", Role::Edge, counters(1000, 7));
        traffic.record("exe_b", Role::Edge, counters(9, 9));
        assert_eq!(traffic.of("exe_a"), counters(1155, 28));
        traffic.forget("exe_a");
        assert_eq!(traffic.of("exe_a"), Counters::default());
        assert_eq!(traffic.of("exe_b"), counters(9, 9));
    }
}
