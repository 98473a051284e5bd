//! Usage: what lies between two readings of one execution, cut into immutable deltas, and their sums.
//!
//! A delta ends at every reading (so at every change of state), at a UTC hour, and after 60 s. Consecutive deltas
//! touch: no gap, no overlap, and the pieces of a cut sum up to the whole exactly. Lengths come from the boot
//! clock; the wall clock only says where on the calendar the execution's first reading lies, so a stepped clock
//! neither bills a second twice nor loses one.

use serde::{Deserialize, Serialize};

/// Longest delta.
pub const DELTA_US_MAX: i64 = 60 * 1_000_000;
/// Deltas do not cross a boundary of this.
pub const HOUR_US: i64 = 3_600 * 1_000_000;

/// What a host reads of an execution at one moment. Counters only grow; a smaller one was read earlier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// Place on the ledger: wall clock for the first reading of an execution, continued by the boot clock.
    pub at_us: i64,
    pub boottime_us: i64,
    /// CPU time used since the execution began.
    pub cpu_us: u64,
    /// In use now: anonymous and shared memory of the VMM.
    pub memory_mib: u64,
    pub disk_mib: u64,
    pub snapshot_mib: u64,
    pub network: Network,
}

/// Bytes since the execution began, and how far each process that counts them had got by then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// From the guest to the world.
    pub egress_bytes: u64,
    /// From the world to the guest.
    pub ingress_bytes: u64,
    pub egress: Counted,
    pub edge: Counted,
}

/// What one process had counted of an execution when that was last added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Tells the process from one that ran before it and counted for itself.
    pub run: u64,
    pub from_guest_bytes: u64,
    pub to_guest_bytes: u64,
}

/// What is reserved for the sandbox, used or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    pub vcpus: u32,
    pub memory_mib: u64,
}

/// One immutable row of usage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    pub seq: u64,
    pub from_us: i64,
    pub to_us: i64,
    #[serde(flatten)]
    pub amounts: Amounts,
}

/// The columns of a delta, a roll-up and a report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    pub wall_us: u64,
    pub vcpu_alloc_us: u64,
    pub mem_alloc_mib_us: u64,
    pub cpu_used_us: u64,
    pub mem_used_mib_us: u64,
    pub disk_mib_us: u64,
    pub snapshot_mib_us: u64,
    pub net_egress_bytes: u64,
    pub net_ingress_bytes: u64,
}

/// The deltas between two readings, and the reading the next ones start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    pub deltas: Vec<Delta>,
    /// The later reading at its place on the ledger: to be kept instead of what was read.
    pub next: Reading,
    pub next_seq: u64,
}

/// Accounts for the time from `from` to `to`.
pub fn advance(from: &Reading, to: &Reading, allocation: Allocation, first_seq: u64) -> Advance {
    // The boot clock starts anew when the host does; what ran before ended with its last reading.
    let duration_us = to.boottime_us.saturating_sub(from.boottime_us).max(0);
    let end_us = from.at_us.saturating_add(duration_us);
    // Two that read at once may commit in either order: what is billed stays billed.
    let is_late = to.network.egress_bytes < from.network.egress_bytes
        || to.network.ingress_bytes < from.network.ingress_bytes;
    let network = if is_late { from.network } else { to.network };
    let next = Reading { at_us: end_us, cpu_us: to.cpu_us.max(from.cpu_us), network, ..*to };
    let whole = amounts_between(from, to, allocation, duration_us.unsigned_abs());
    let mut deltas = Vec::new();
    let mut start_us = from.at_us;
    let mut before = Amounts::default();
    while start_us < end_us {
        let stop_us = end_us.min(start_us + DELTA_US_MAX).min(hour_start(start_us) + HOUR_US);
        let elapsed = (stop_us - from.at_us).unsigned_abs();
        // Rounding the running total, not each piece, makes the pieces sum up to the whole.
        let upto = whole.map(|total| share(total, elapsed, duration_us.unsigned_abs()));
        deltas.push(Delta {
            seq: first_seq + deltas.len() as u64,
            from_us: start_us,
            to_us: stop_us,
            amounts: upto.zip(&before, |after, before| after - before),
        });
        before = upto;
        start_us = stop_us;
    }
    let next_seq = first_seq + deltas.len() as u64;
    Advance { deltas, next, next_seq }
}

fn amounts_between(from: &Reading, to: &Reading, allocation: Allocation, duration_us: u64) -> Amounts {
    // The mean of both ends, as what lies between was not seen.
    let held = |from: u64, to: u64| {
        let doubled = (u128::from(from) + u128::from(to)) * u128::from(duration_us);
        u64::try_from(doubled / 2).unwrap_or(u64::MAX)
    };
    Amounts {
        wall_us: duration_us,
        vcpu_alloc_us: u64::from(allocation.vcpus).saturating_mul(duration_us),
        mem_alloc_mib_us: allocation.memory_mib.saturating_mul(duration_us),
        cpu_used_us: to.cpu_us.saturating_sub(from.cpu_us),
        mem_used_mib_us: held(from.memory_mib, to.memory_mib),
        disk_mib_us: held(from.disk_mib, to.disk_mib),
        snapshot_mib_us: held(from.snapshot_mib, to.snapshot_mib),
        net_egress_bytes: to.network.egress_bytes.saturating_sub(from.network.egress_bytes),
        net_ingress_bytes: to.network.ingress_bytes.saturating_sub(from.network.ingress_bytes),
    }
}

fn share(total: u64, elapsed: u64, duration: u64) -> u64 {
    let part = u128::from(total) * u128::from(elapsed) / u128::from(duration.max(1));
    u64::try_from(part).unwrap_or(u64::MAX)
}

/// The UTC hour a moment lies in.
pub fn hour_start(at_us: i64) -> i64 {
    at_us - at_us.rem_euclid(HOUR_US)
}

impl Amounts {
    fn map(self, change: impl Fn(u64) -> u64) -> Self {
        self.zip(&Self::default(), |value, _| change(value))
    }

    fn zip(self, other: &Self, join: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            wall_us: join(self.wall_us, other.wall_us),
            vcpu_alloc_us: join(self.vcpu_alloc_us, other.vcpu_alloc_us),
            mem_alloc_mib_us: join(self.mem_alloc_mib_us, other.mem_alloc_mib_us),
            cpu_used_us: join(self.cpu_used_us, other.cpu_used_us),
            mem_used_mib_us: join(self.mem_used_mib_us, other.mem_used_mib_us),
            disk_mib_us: join(self.disk_mib_us, other.disk_mib_us),
            snapshot_mib_us: join(self.snapshot_mib_us, other.snapshot_mib_us),
            net_egress_bytes: join(self.net_egress_bytes, other.net_egress_bytes),
            net_ingress_bytes: join(self.net_ingress_bytes, other.net_ingress_bytes),
        }
    }

    /// The sum of both; stays at the greatest number instead of starting anew.
    #[must_use]
    pub fn plus(self, other: &Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    /// Allocated vCPU time.
    pub fn vcpu_seconds(&self) -> f64 {
        seconds(self.vcpu_alloc_us)
    }

    /// Measured CPU time.
    pub fn cpu_seconds(&self) -> f64 {
        seconds(self.cpu_used_us)
    }

    pub fn wall_seconds(&self) -> f64 {
        seconds(self.wall_us)
    }

    /// Allocated memory.
    pub fn memory_gib_seconds(&self) -> f64 {
        gib_seconds(self.mem_alloc_mib_us)
    }

    /// Measured memory.
    pub fn memory_used_gib_seconds(&self) -> f64 {
        gib_seconds(self.mem_used_mib_us)
    }

    pub fn disk_gib_seconds(&self) -> f64 {
        gib_seconds(self.disk_mib_us)
    }

    pub fn snapshot_gib_seconds(&self) -> f64 {
        gib_seconds(self.snapshot_mib_us)
    }
}

impl std::iter::Sum for Amounts {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::default(), |sum, one| sum.plus(&one))
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn gib_seconds(mib_us: u64) -> f64 {
    mib_us as f64 / 1024.0 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const XS: Allocation = Allocation { vcpus: 1, memory_mib: 2048 };

    fn reading(at_us: i64, boottime_us: i64, cpu_us: u64) -> Reading {
        Reading { at_us, boottime_us, cpu_us, memory_mib: 100, ..Reading::default() }
    }

    #[test]
    fn a_minute_is_one_delta() {
        let from = reading(HOUR_US, 5_000_000, 1_000);
        let done = advance(&from, &reading(0, 65_000_000, 31_000), XS, 7);
        let [delta] = done.deltas[..] else { panic!("{:?}", done.deltas) };
        assert_eq!((delta.seq, delta.from_us, delta.to_us), (7, HOUR_US, HOUR_US + DELTA_US_MAX));
        assert_eq!(delta.amounts.vcpu_seconds(), 60.0);
        assert_eq!(delta.amounts.memory_gib_seconds(), 120.0);
        assert_eq!((delta.amounts.cpu_used_us, delta.amounts.mem_used_mib_us), (30_000, 100 * 60_000_000));
        assert_eq!((done.next.at_us, done.next_seq), (delta.to_us, 8));
    }

    #[test]
    fn an_hour_ends_a_delta() {
        let from = reading(2 * HOUR_US - 10_000_000, 0, 0);
        let done = advance(&from, &reading(0, 30_000_000, 3_000), XS, 1);
        let spans: Vec<_> = done.deltas.iter().map(|delta| (delta.from_us, delta.to_us)).collect();
        let hour = 2 * HOUR_US;
        assert_eq!(spans, [(hour - 10_000_000, hour), (hour, hour + 20_000_000)]);
        assert_eq!(
            done.deltas.iter().map(|delta| delta.amounts.cpu_used_us).collect::<Vec<_>>(),
            [1_000, 2_000]
        );
    }

    #[test]
    fn a_stepped_wall_clock_changes_no_length() {
        let from = reading(1_000_000, 1_000_000, 0);
        let done = advance(&from, &reading(900_000_000_000, 31_000_000, 0), XS, 1);
        assert_eq!(done.deltas.len(), 1);
        assert_eq!(done.deltas[0].amounts.wall_us, 30_000_000);
        assert_eq!(done.next.at_us, 31_000_000);
    }

    #[test]
    fn a_restarted_host_and_a_late_reading_bill_nothing_twice() {
        let from = reading(1_000_000, 50_000_000, 700);
        let rebooted = advance(&from, &reading(2_000_000, 3_000_000, 9), XS, 4);
        assert_eq!((rebooted.deltas.len(), rebooted.next_seq), (0, 4));
        let network = Network { egress_bytes: 30, ingress_bytes: 5, ..Network::default() };
        let from = Reading { network, ..from };
        let late = Network { ingress_bytes: 4, ..network };
        let late = advance(&from, &Reading { network: late, ..reading(0, 51_000_000, 9) }, XS, 4);
        let [delta] = late.deltas[..] else { panic!("{:?}", late.deltas) };
        assert_eq!((delta.amounts.cpu_used_us, delta.amounts.net_ingress_bytes), (0, 0));
        assert_eq!((late.next.cpu_us, late.next.network), (700, network));
    }

    /// How long until the next reading, CPU used, memory held, bytes sent.
    type Interval = (i64, u64, u64, u64);

    fn intervals() -> impl Strategy<Value = Vec<Interval>> {
        vec((0i64..7_300_000_000, 0u64..1 << 40, 0u64..100_000, 0u64..1 << 50), 1..8)
    }

    proptest! {
        #[test]
        fn no_gap_no_overlap_and_nothing_lost(
            start_us in 0i64..2_000_000_000_000_000,
            intervals in intervals(),
        ) {
            let mut standing = reading(start_us, 77, 0);
            let first = standing;
            let (mut deltas, mut seq) = (Vec::new(), 1);
            for (duration_us, cpu, memory_mib, bytes) in intervals {
                let seen = Reading {
                    at_us: -1,
                    boottime_us: standing.boottime_us + duration_us,
                    cpu_us: standing.cpu_us + cpu,
                    memory_mib,
                    network: Network {
                        egress_bytes: standing.network.egress_bytes + bytes,
                        ..standing.network
                    },
                    ..standing
                };
                let done = advance(&standing, &seen, XS, seq);
                let wanted = amounts_between(&standing, &seen, XS, duration_us.unsigned_abs());
                if duration_us > 0 {
                    prop_assert_eq!(done.deltas.iter().map(|delta| delta.amounts).sum::<Amounts>(), wanted);
                }
                deltas.extend(done.deltas);
                (standing, seq) = (done.next, done.next_seq);
            }
            let mut at_us = first.at_us;
            for (index, delta) in deltas.iter().enumerate() {
                prop_assert_eq!((delta.seq, delta.from_us), (index as u64 + 1, at_us));
                prop_assert!(delta.to_us > delta.from_us && delta.to_us - delta.from_us <= DELTA_US_MAX);
                prop_assert_eq!(hour_start(delta.from_us), hour_start(delta.to_us - 1));
                prop_assert_eq!(delta.amounts.wall_us, delta.to_us.abs_diff(delta.from_us));
                at_us = delta.to_us;
            }
            prop_assert_eq!(at_us - first.at_us, standing.boottime_us - first.boottime_us);
            prop_assert_eq!(at_us, standing.at_us);
        }

        #[test]
        fn sums_do_not_depend_on_the_order(cpu in vec(0u64..1 << 50, 0..9)) {
            let amounts = |cpu_used_us: &u64| Amounts { cpu_used_us: *cpu_used_us, ..Amounts::default() };
            let forward: Amounts = cpu.iter().map(amounts).sum();
            let backward: Amounts = cpu.iter().rev().map(amounts).sum();
            prop_assert_eq!(forward, backward);
            prop_assert_eq!(forward.cpu_used_us, cpu.iter().sum::<u64>());
        }
    }
}
