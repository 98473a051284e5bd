//! What the component tests share: a namespace with a guest's address, a guest that answers, the agent's end of
//! the control socket, and the real binary.

#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests start the real binary and the tools that build namespaces"
)]

pub(crate) mod agent;
pub(crate) mod app;
pub(crate) mod attached;
pub(crate) mod browser;
pub(crate) mod fleet;
pub(crate) mod guest;
pub(crate) mod namespace;
pub(crate) mod process;
pub(crate) mod scheduler;

use std::time::{Duration, Instant};

/// Polls until the answer comes; fails loudly at the deadline.
pub(crate) async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "gave up waiting: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
