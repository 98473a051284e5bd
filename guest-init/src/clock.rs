//! The guest's wall clock: read, and set by the host, whose time a restored guest knows nothing of.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the time is before 1970")]
    BeforeEpoch,
    #[error("cannot set the clock")]
    Set(#[source] nix::Error),
}

/// Microseconds since 1970, as every contract counts them.
pub fn to_us(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX),
    }
}

pub fn from_us(time_us: i64) -> SystemTime {
    let distance = Duration::from_micros(time_us.unsigned_abs());
    if time_us < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

pub fn now_us() -> i64 {
    to_us(SystemTime::now())
}

/// Microseconds since the kernel started.
pub fn since_boot_us() -> i64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_or(0, |time| i64::try_from(Duration::from(time).as_micros()).unwrap_or(i64::MAX))
}

/// Sets the wall clock.
pub fn set(time_us: i64) -> Result<(), Error> {
    let time_us = u64::try_from(time_us).map_err(|_| Error::BeforeEpoch)?;
    let time = TimeSpec::from_duration(Duration::from_micros(time_us));
    clock_settime(ClockId::CLOCK_REALTIME, time).map_err(Error::Set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_both_ways_also_before_1970() {
        for time_us in [0, 1, -1, 1_700_000_000_123_456, -86_400_000_001] {
            assert_eq!(to_us(from_us(time_us)), time_us);
        }
    }
}
