//! What the clients know: what they asked, what was acknowledged, what the world outside saw.
//!
//! Independent of the product: nothing in here was read from its databases.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Usage that a VMM may take with it when it is killed while nobody looks: readings are at most a minute apart.
pub const GAP_PER_VMM_KILL: Duration = Duration::from_secs(60);

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// Outbound calls by path.
    pub calls: BTreeMap<String, Call>,
    /// By id.
    pub sandboxes: BTreeMap<String, Sandbox>,
    /// Names a create was asked for under, and the id that was answered, if one was.
    pub creates: BTreeMap<String, Option<String>>,
    pub secrets: Tally,
    pub shares: Tally,
    /// Values the secret was asked to have, in order.
    pub values: Vec<String>,
    /// When (wall clock, µs) egress was killed.
    pub egress_kills: Vec<i64>,
    /// What a client saw that must never be.
    pub violations: Vec<String>,
    pub execs: usize,
    pub pauses: usize,
    pub previews: usize,
}

/// How often something was asked and acknowledged.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub asked: usize,
    pub acknowledged: usize,
}

/// One outbound call of a guest.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// How often it arrived outside.
    pub seen: usize,
    /// What the guest got; none if nobody heard.
    pub status: Option<u16>,
}

/// What its clients know of a sandbox.
#[derive(Debug, Clone, Default)]
pub struct Sandbox {
    pub lines: Lines,
    pub files: BTreeMap<String, File>,
    pub clock: Clock,
    pub destroy_acknowledged: bool,
}

/// Lines appended to a log inside, each with a number of its own.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    pub asked: BTreeSet<u64>,
    pub acknowledged: BTreeSet<u64>,
}

/// A file inside: the versions it may hold now.
#[derive(Debug, Clone, Default)]
pub struct File {
    pub versions: BTreeSet<u64>,
    pub acknowledged: bool,
}

impl File {
    pub fn ask(&mut self, version: u64) {
        self.versions.insert(version);
    }

    /// From now on it holds this version or one asked for later.
    pub fn acknowledge(&mut self, version: u64) {
        self.versions.retain(|other| *other >= version);
        self.acknowledged = true;
    }
}

/// Between which bounds the running time of a sandbox lies.
///
/// ```text
/// asked ── running ═══════ ending ── over          inner: ═   outer: ── and ═
/// ```
#[derive(Debug, Clone, Default)]
pub struct Clock {
    inner: Duration,
    outer: Duration,
    pub gap: Duration,
    asked: Option<Instant>,
    running: Option<Instant>,
}

impl Clock {
    /// A start was asked for.
    pub fn asked(&mut self, now: Instant) {
        self.asked.get_or_insert(now);
    }

    /// It was seen running.
    pub fn running(&mut self, now: Instant) {
        self.asked.get_or_insert(now);
        self.running.get_or_insert(now);
    }

    /// Its end was asked for, or done.
    pub fn ending(&mut self, now: Instant) {
        if let Some(since) = self.running.take() {
            self.inner += now.saturating_duration_since(since);
        }
    }

    /// It was seen not running.
    pub fn over(&mut self, now: Instant) {
        self.ending(now);
        if let Some(since) = self.asked.take() {
            self.outer += now.saturating_duration_since(since);
        }
    }

    /// The least and the most that may have been metered.
    pub fn bounds(&self) -> (Duration, Duration) {
        (self.inner.saturating_sub(self.gap), self.outer)
    }
}

pub fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_time_lies_between_what_was_seen_and_what_was_asked() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut clock = Clock::default();
        clock.asked(at(0));
        clock.asked(at(1));
        clock.running(at(4));
        clock.ending(at(10));
        clock.over(at(11));
        clock.asked(at(20));
        clock.over(at(22));
        assert_eq!(clock.bounds(), (Duration::from_secs(6), Duration::from_secs(13)));
        clock.gap = Duration::from_secs(60);
        assert_eq!(clock.bounds().0, Duration::ZERO);
    }

    #[test]
    fn a_file_holds_what_was_acknowledged_or_asked_for_since() {
        let mut file = File::default();
        file.ask(1);
        file.ask(2);
        assert!(!file.acknowledged);
        file.acknowledge(2);
        file.ask(3);
        assert_eq!((file.versions, file.acknowledged), (BTreeSet::from([2, 3]), true));
    }
}
