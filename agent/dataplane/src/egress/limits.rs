//! What one execution may use of this process and of its log, so that no guest starves another.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Connections of a guest served at once; further ones wait in the listener's backlog. With the buffers of a
/// connection bounded (`http`), this also bounds the memory one guest can hold: about 64 MiB.
pub(crate) const MAX_CONNECTIONS: usize = 256;
const DNS_QUERIES_PER_S: u32 = 50;
const DNS_BURST: u32 = 100;
const LEAVES_PER_S: u32 = 10;
const LEAVES_BURST: u32 = 100;
/// Between two lines of the log about what a guest can make happen as often as it likes.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// The limits of one execution, in their current state.
#[derive(Debug)]
pub(crate) struct ExecutionLimits {
    pub(crate) connections: Arc<Semaphore>,
    dns_queries: Bucket,
    leaves: Bucket,
    unaudited: Complaints,
    unresolved: Complaints,
}

impl ExecutionLimits {
    pub(crate) fn new() -> Self {
        Self {
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            dns_queries: Bucket::new(DNS_QUERIES_PER_S, DNS_BURST),
            leaves: Bucket::new(LEAVES_PER_S, LEAVES_BURST),
            unaudited: Complaints::default(),
            unresolved: Complaints::default(),
        }
    }

    /// Whether one more DNS query may be answered now.
    pub(crate) fn take_dns_query(&self) -> bool {
        self.dns_queries.take().is_ok()
    }

    pub(crate) async fn wait_for_dns_query(&self) {
        while let Err(wait) = self.dns_queries.take() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Whether one more certificate may be made for this guest now.
    pub(crate) fn take_leaf(&self) -> bool {
        self.leaves.take().is_ok()
    }

    /// How many calls have been refused for want of their rows since the log last said so, this one included, if
    /// it is time to say so.
    pub(crate) fn count_unaudited(&self) -> Option<u64> {
        self.unaudited.count()
    }

    /// The same of calls whose placeholders could not be looked up.
    pub(crate) fn count_unresolved(&self) -> Option<u64> {
        self.unresolved.count()
    }
}

/// What happens often and is told now and then: the first at once, then how many there were.
#[derive(Debug, Default)]
struct Complaints(Mutex<Untold>);

#[derive(Debug, Default)]
struct Untold {
    told: Option<Instant>,
    count: u64,
}

impl Complaints {
    fn count(&self) -> Option<u64> {
        let mut untold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        untold.count += 1;
        if untold.told.is_some_and(|told| told.elapsed() < COMPLAIN_EVERY) {
            return None;
        }
        untold.told = Some(Instant::now());
        Some(std::mem::take(&mut untold.count))
    }
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    per_token: Duration,
    burst: u32,
    /// When the bucket would be full; the farther in the future, the fewer tokens are left.
    full_at: Mutex<Instant>,
}

impl Bucket {
    fn new(per_s: u32, burst: u32) -> Self {
        Self { per_token: Duration::from_secs(1) / per_s, burst, full_at: Mutex::new(Instant::now()) }
    }

    /// Takes a token, or says how long until there is one.
    fn take(&self) -> Result<(), Duration> {
        let now = Instant::now();
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let next = (*full_at).max(now) + self.per_token;
        let latest = now + self.per_token * self.burst;
        if next > latest {
            return Err(next - latest);
        }
        *full_at = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_gives_its_burst_and_then_its_rate() {
        let bucket = Bucket::new(50, 100);
        let taken = |count: usize| (0..count).filter(|_| bucket.take().is_ok()).count();
        assert_eq!(taken(1000), 100);
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(taken(1000), 5);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(taken(1000), 100, "what is not used does not add up beyond the burst");
        assert_eq!(bucket.take(), Err(Duration::from_millis(20)));
    }

    #[tokio::test(start_paused = true)]
    async fn f2_a_flood_of_refusals_is_a_line_a_minute() {
        let complaints = Complaints::default();
        let told = |count: usize| (0..count).filter_map(|_| complaints.count()).collect::<Vec<_>>();
        assert_eq!(told(1000), [1], "the first at once");
        tokio::time::advance(COMPLAIN_EVERY).await;
        assert_eq!(told(1000), [1000], "those that were not told, and this one");
        tokio::time::advance(COMPLAIN_EVERY * 10).await;
        assert_eq!(told(1), [1000]);
    }
}
