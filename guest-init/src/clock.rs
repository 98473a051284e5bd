//! The guest's wall clock: read, set by the host, whose time a restored guest knows nothing of, and kept right.
//!
//! An emulated guest that gets too little CPU loses timer ticks, and with them time. The machine's real-time clock
//! follows the host whatever the guest does, so the wall clock is put right by it when it is off.

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

/// Seconds since 1970 as the machine's clock has them: the host's time, cut off to the second.
const MACHINE_CLOCK: &str = "/sys/class/rtc/rtc0/since_epoch";
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A clock that is off by less is left alone: programs take a step worse than a small error.
const TOLERANCE_US: i64 = 250_000;
const SECOND_US: i64 = 1_000_000;
const TICK_POLL: Duration = Duration::from_millis(10);

/// Puts the wall clock right whenever it is off, for as long as the machine has a clock of its own.
pub async fn follow_machine() {
    while let Some(machine_s) = read_machine_s() {
        if is_off(now_us(), machine_s)
            && let Some(machine_s) = await_next_second(machine_s).await
            && let Err(error) = set(machine_s * SECOND_US)
        {
            eprintln!("roost-init: the clock stays off: {error}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether a wall clock cannot be right while the machine's clock shows this second.
fn is_off(wall_us: i64, machine_s: i64) -> bool {
    let from_us = machine_s * SECOND_US - TOLERANCE_US;
    let until_us = (machine_s + 1) * SECOND_US + TOLERANCE_US;
    !(from_us..until_us).contains(&wall_us)
}

/// The machine's clock at the moment it turns to another second: then it is exact.
async fn await_next_second(machine_s: i64) -> Option<i64> {
    for _ in 0..2 * SECOND_US / i64::try_from(TICK_POLL.as_micros()).unwrap_or(SECOND_US) {
        let now_s = read_machine_s()?;
        if now_s != machine_s {
            return Some(now_s);
        }
        tokio::time::sleep(TICK_POLL).await;
    }
    None
}

fn read_machine_s() -> Option<i64> {
    std::fs::read_to_string(MACHINE_CLOCK).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_is_off_when_it_is_outside_the_machines_second() {
        for (wall_us, off) in [
            (1_000_000_000, false),
            (1_000_999_999, false),
            (999_800_000, false),
            (999_700_000, true),
            (1_001_200_000, false),
            (1_001_300_000, true),
            (0, true),
        ] {
            assert_eq!(is_off(wall_us, 1000), off, "{wall_us}");
        }
    }

    #[test]
    fn times_go_both_ways_also_before_1970() {
        for time_us in [0, 1, -1, 1_700_000_000_123_456, -86_400_000_001] {
            assert_eq!(to_us(from_us(time_us)), time_us);
        }
    }
}
