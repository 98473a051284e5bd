//! The only code of the agent that touches the kernel, holds `unsafe`, or starts a process.
//!
//! Everything in here blocks. Callers on the async runtime go through [`off_worker`]. Nothing in here knows a
//! sandbox, a store or a policy, and nothing parses a byte that a guest wrote.

pub mod cgroup;
pub mod file;
mod jail;
pub mod link;
pub mod memory;
pub mod names;
pub mod netns;
pub mod process;
pub mod reclaim;
pub mod room;
pub mod seal;
pub mod sockets;
pub mod spawn;
pub mod tap;
pub mod tool;

/// Runs a blocking host operation away from the async workers. A panic inside goes on in the caller.
pub async fn off_worker<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failure) => match failure.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking work is never aborted, so only a runtime that is shutting down ends up here.
            Err(_) => std::future::pending().await,
        },
    }
}
