//! What changed lately, for everybody who watches: one look at the store for all of them.
//!
//! Looks twice a second, and at once when something was committed in this process; so what another scheduler
//! committed is seen within half a second too. Times of commits are compared with an overlap, since they come from
//! the clocks of several schedulers, and what was seen is remembered for as long.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::Fleet;
use crate::store::{Error, preview, sandbox, secret, setting};

const PERIOD: Duration = Duration::from_millis(500);
const OVERLAP_US: i64 = 10_000_000;
/// Rows of one kind in one look; beyond it everything counts as changed.
const ROWS_MAX: u32 = 2000;
const WAITING_MAX: usize = 64;

/// Ids of what changed since the look before.
#[derive(Debug, Default, Clone)]
pub(super) struct News {
    /// Too much to list: everything may have changed.
    pub(super) everything: bool,
    /// Tenants of which a secret or a binding changed.
    pub(super) secrets: HashSet<String>,
    /// Sandboxes whose row or previews changed.
    pub(super) sandboxes: HashSet<String>,
    /// Tenants whose settings changed.
    pub(super) tenants: HashSet<String>,
}

impl News {
    pub(super) fn everything() -> Arc<News> {
        Arc::new(News { everything: true, ..News::default() })
    }

    fn is_empty(&self) -> bool {
        !self.everything && self.secrets.is_empty() && self.sandboxes.is_empty() && self.tenants.is_empty()
    }
}

/// Where watchers subscribe.
#[derive(Debug, Clone)]
pub(super) struct Feed {
    sender: broadcast::Sender<Arc<News>>,
}

impl Feed {
    pub(super) fn new() -> Feed {
        Feed { sender: broadcast::channel(WAITING_MAX).0 }
    }

    pub(super) fn subscribe(&self) -> Subscription {
        Subscription { receiver: self.sender.subscribe() }
    }
}

pub(super) struct Subscription {
    receiver: broadcast::Receiver<Arc<News>>,
}

impl Subscription {
    /// The next news; one who was too slow hears that everything changed.
    pub(super) async fn next(&mut self) -> Arc<News> {
        loop {
            match self.receiver.recv().await {
                Ok(news) => return news,
                Err(broadcast::error::RecvError::Lagged(_)) => return News::everything(),
                // The feed lives as long as the fleet, which whoever waits here holds.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

/// Looks until told to stop. A look that fails is made again; watchers then hear that everything changed.
pub(super) async fn run(fleet: Fleet, stop: CancellationToken) {
    let mut changes = fleet.changes();
    let mut seen = Seen { since_us: fleet.now_us(), ..Seen::default() };
    let mut failed = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tokio::time::sleep(PERIOD) => {}
            _ = changes.changed() => {}
        }
        let feed = &fleet.shared.feed.sender;
        if feed.receiver_count() == 0 {
            seen = Seen { since_us: fleet.now_us(), ..Seen::default() };
            continue;
        }
        match seen.look(&fleet).await {
            Ok(news) => {
                let news = if failed { News { everything: true, ..news } } else { news };
                failed = false;
                if !news.is_empty() {
                    // Nobody listening any more is no error.
                    let _ = feed.send(Arc::new(news));
                }
            }
            Err(error) if !failed => {
                failed = true;
                tracing::warn!(error = roost_daemon::telemetry::chain(&error), "cannot look for changes");
            }
            Err(_) => {}
        }
    }
}

#[derive(Default)]
struct Seen {
    since_us: i64,
    /// Ids with the time of the change that was told.
    told: HashMap<String, i64>,
}

impl Seen {
    async fn look(&mut self, fleet: &Fleet) -> Result<News, Error> {
        let from_us = self.since_us - OVERLAP_US;
        let read = fleet.shared.store.read(move |tx| {
            Ok((
                secret::list_changed(tx, from_us, ROWS_MAX)?,
                sandbox::list_updated(tx, from_us, ROWS_MAX)?,
                preview::list_updated(tx, from_us, ROWS_MAX)?,
                setting::list_changed(tx, from_us)?,
            ))
        });
        let (secrets, sandboxes, previews, settings) = read.await?;
        let full = usize::try_from(ROWS_MAX).unwrap_or(usize::MAX);
        let everything = [secrets.len(), sandboxes.len(), previews.len()].iter().any(|rows| *rows >= full);
        let mut news = News { everything, ..News::default() };
        for row in secrets {
            if self.is_new(&row.id, row.updated_us) {
                news.secrets.insert(row.tenant_id);
            }
        }
        for (id, updated_us) in sandboxes {
            if self.is_new(&id, updated_us) {
                news.sandboxes.insert(id);
            }
        }
        for (id, sandbox_id, updated_us) in previews {
            if self.is_new(&id, updated_us) {
                news.sandboxes.insert(sandbox_id);
            }
        }
        for row in settings {
            if self.is_new(&format!("{}/{}", row.tenant_id, row.name), row.updated_us) {
                news.tenants.insert(row.tenant_id);
            }
        }
        self.since_us = fleet.now_us();
        let forget_us = self.since_us - 2 * OVERLAP_US;
        self.told.retain(|_, updated_us| *updated_us >= forget_us);
        Ok(news)
    }

    fn is_new(&mut self, id: &str, updated_us: i64) -> bool {
        self.told.insert(id.to_owned(), updated_us) != Some(updated_us)
    }
}
