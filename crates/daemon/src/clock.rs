//! Time: the wall clock for what is shown and compared between machines, the boot clock for durations.
//!
//! Code whose behaviour depends on the time takes a [`Clock`], so that its tests set it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Where a component reads the time.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Microseconds since 1970 UTC. May be stepped by the operator.
    fn now_us(&self) -> i64;
    /// Microseconds since the machine booted, suspension included. Never goes back.
    fn boottime_us(&self) -> i64;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Clock for System {
    fn now_us(&self) -> i64 {
        now_us()
    }

    fn boottime_us(&self) -> i64 {
        boottime_us()
    }
}

/// Microseconds since 1970 UTC by the machine's wall clock; negative before it.
pub fn now_us() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |us| -us),
    }
}

/// Microseconds since the machine booted.
pub fn boottime_us() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME exists since Linux 2.6.39");
    now.tv_sec() * 1_000_000 + now.tv_nsec() / 1_000
}

/// A clock that stands until it is moved; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Manual {
    now_us: Arc<AtomicI64>,
    boottime_us: Arc<AtomicI64>,
}

impl Manual {
    pub fn at(now_us: i64) -> Self {
        let clock = Self::default();
        clock.now_us.store(now_us, Ordering::SeqCst);
        clock
    }

    /// Lets time pass on both clocks.
    pub fn advance_us(&self, duration_us: i64) {
        self.now_us.fetch_add(duration_us, Ordering::SeqCst);
        self.boottime_us.fetch_add(duration_us, Ordering::SeqCst);
    }

    /// Sets the wall clock alone, as an operator or NTP does.
    pub fn step_to_us(&self, now_us: i64) {
        self.now_us.store(now_us, Ordering::SeqCst);
    }
}

impl Clock for Manual {
    fn now_us(&self) -> i64 {
        self.now_us.load(Ordering::SeqCst)
    }

    fn boottime_us(&self) -> i64 {
        self.boottime_us.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_clocks_are_plausible() {
        let year_2026_us = 1_767_225_600_000_000;
        assert!(System.now_us() > year_2026_us);
        let before = System.boottime_us();
        assert!(before > 0 && System.boottime_us() >= before);
    }

    #[test]
    fn a_step_leaves_durations_alone() {
        let clock = Manual::at(1_000_000);
        clock.advance_us(500);
        assert_eq!((clock.now_us(), clock.boottime_us()), (1_000_500, 500));
        clock.clone().step_to_us(7);
        assert_eq!((clock.now_us(), clock.boottime_us()), (7, 500));
    }
}
