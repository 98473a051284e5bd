//! Orderly stop: SIGTERM or SIGINT asks, tasks drain, a deadline ends the wait.
//!
//! ```text
//! running --signal or request()--> requested --all tasks done--> drained
//!                                      `------drain deadline---> given up (the process exits anyway)
//! ```

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a daemon waits for its tasks after it was asked to stop, unless it says otherwise.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
#[error("cannot listen for {signal}")]
pub struct Error {
    signal: &'static str,
    source: std::io::Error,
}

/// How draining ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Drained {
    Complete,
    /// The deadline passed with this many tasks still running.
    GivenUp {
        tasks: usize,
    },
}

/// Handed to everything that runs until the daemon stops; clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    /// One that only [`Shutdown::request`] starts.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that SIGTERM and SIGINT start. Must be called inside the runtime.
    pub fn on_signals() -> Result<Self, Error> {
        let listen = |kind, name| signal(kind).map_err(|source| Error { signal: name, source });
        let mut terminate = listen(SignalKind::terminate(), "SIGTERM")?;
        let mut interrupt = listen(SignalKind::interrupt(), "SIGINT")?;
        let shutdown = Self::new();
        let token = shutdown.token.clone();
        tokio::spawn(async move {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                () = token.cancelled() => return,
            };
            tracing::info!(signal = name, "asked to stop");
            token.cancel();
        });
        Ok(shutdown)
    }

    pub fn request(&self) {
        self.token.cancel();
    }

    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Completes when the stop was asked for.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// The token, for code that takes one; its children end with it.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Starts a task that [`Shutdown::drain`] waits for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// Asks to stop if nobody did, then waits for the tasks, at most `deadline`.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.request();
        self.tasks.close();
        match tokio::time::timeout(deadline, self.tasks.wait()).await {
            Ok(()) => Drained::Complete,
            Err(_) => Drained::GivenUp { tasks: self.tasks.len() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, raise};

    #[tokio::test]
    async fn drain_waits_for_what_it_started() {
        let shutdown = Shutdown::new();
        let inner = shutdown.clone();
        let task = shutdown.spawn(async move {
            inner.requested().await;
            7
        });
        assert!(!shutdown.is_requested());
        assert_eq!(shutdown.drain(Duration::from_secs(5)).await, Drained::Complete);
        assert_eq!(task.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_task_that_hangs_is_given_up_at_the_deadline() {
        let shutdown = Shutdown::new();
        shutdown.spawn(std::future::pending::<()>());
        assert_eq!(shutdown.drain(Duration::from_millis(20)).await, Drained::GivenUp { tasks: 1 });
    }

    #[tokio::test]
    async fn sigterm_asks() {
        let shutdown = Shutdown::on_signals().unwrap();
        raise(Signal::SIGTERM).unwrap();
        tokio::time::timeout(Duration::from_secs(5), shutdown.requested()).await.unwrap();
    }
}
