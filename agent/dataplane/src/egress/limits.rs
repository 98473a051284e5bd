//! What one execution may use of this process, so that no guest starves another.

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

/// The limits of one execution, in their current state.
#[derive(Debug)]
pub(crate) struct ExecutionLimits {
    pub(crate) connections: Arc<Semaphore>,
    dns_queries: Bucket,
    leaves: Bucket,
}

impl ExecutionLimits {
    pub(crate) fn new() -> Self {
        Self {
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            dns_queries: Bucket::new(DNS_QUERIES_PER_S, DNS_BURST),
            leaves: Bucket::new(LEAVES_PER_S, LEAVES_BURST),
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
}
