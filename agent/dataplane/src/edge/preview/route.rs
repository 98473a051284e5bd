//! Where a host name leads, as far as the scheduler has told: leases, what is known to be absent, and revocation.
//!
//! Owns what is known and how long it may be believed. A private preview is never served on a lease that is over; a
//! public one goes on under the last word while the scheduler is away. Whoever serves a stream holds the route's
//! token, which is cancelled when the stream has lost its reason.
//!
//! ```text
//! unknown --Lookup--> leased --heartbeat, change--> leased         --lease over--> asked again
//!        `--absent--> absent for 5 s                `--removed, generation, visibility--> streams end
//! ```

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use lru::LruCache;
use roost_daemon::clock;
use roost_domain::id::ExecutionId;
use roost_proto::host::RouteEntry;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::page::Branding;

/// How long an absent host is not asked for again.
pub(super) const ABSENT_FOR: Duration = Duration::from_secs(5);
/// Routes remembered, and watched; the least used one goes first.
pub(super) const ROUTES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
const ABSENT_MAX: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("not zero");
// A scheduler that did not answer is asked about a public preview again after this time.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);
// Questions to the scheduler under way at once, for all hosts together.
const LOOKUPS_MAX: usize = 64;
// A lease longer than this is not believed.
const LEASE_MAX: Duration = Duration::from_secs(600);

/// The scheduler, as routes need it.
#[tonic::async_trait]
pub trait Routes: Send + Sync + 'static {
    /// What a host name leads to; `None` when there is no such preview. With `resume` a sandbox that may is resumed.
    async fn lookup(&self, host: &str, resume: bool) -> Result<Option<RouteEntry>, Unavailable>;
}

/// The scheduler does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the scheduler does not answer")]
pub struct Unavailable;

/// What a preview's host name leads to.
#[derive(Debug)]
pub struct Route {
    pub preview: String,
    pub sandbox: String,
    /// None while the sandbox does not run.
    pub execution: Option<ExecutionId>,
    pub state: String,
    pub port: u16,
    pub is_public: bool,
    pub generation: u64,
    pub tenant: String,
    pub branding: Branding,
    /// The host the sandbox is on, and where its edge is called.
    pub owner_host: String,
    pub owner_address: String,
    /// Cancelled when streams that were admitted under this route must end.
    pub ended: CancellationToken,
}

#[derive(Debug)]
struct Known {
    route: Arc<Route>,
    lease: Duration,
    fresh_until: Instant,
}

type Answer = Result<Option<Arc<Route>>, Unavailable>;
type Flight = Shared<BoxFuture<'static, Answer>>;

/// Everything known about routes.
pub struct RouteTable {
    source: Arc<dyn Routes>,
    known: Mutex<LruCache<String, Known>>,
    absent: Mutex<LruCache<String, Instant>>,
    flights: Mutex<HashMap<(String, bool), Flight>>,
    lookups: Semaphore,
    /// Told when a host was added, so that it gets watched.
    pub added: Notify,
    this: Weak<RouteTable>,
}

impl std::fmt::Debug for RouteTable {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("RouteTable").field("known", &lock(&self.known).len()).finish_non_exhaustive()
    }
}

impl RouteTable {
    pub fn new(source: Arc<dyn Routes>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            source,
            known: Mutex::new(LruCache::new(ROUTES_MAX)),
            absent: Mutex::new(LruCache::new(ABSENT_MAX)),
            flights: Mutex::default(),
            lookups: Semaphore::new(LOOKUPS_MAX),
            added: Notify::new(),
            this: this.clone(),
        })
    }

    /// Where a host name leads; asks the scheduler when that is not known or not fresh.
    pub async fn find(&self, host: &str) -> Answer {
        let stale = {
            let mut known = lock(&self.known);
            match known.get(host) {
                Some(found) if Instant::now() < found.fresh_until => return Ok(Some(found.route.clone())),
                found => found.map(|found| found.route.clone()),
            }
        };
        if lock(&self.absent).get(host).is_some_and(|until| Instant::now() < *until) {
            return Ok(None);
        }
        match self.flight(host, false).await {
            // The scheduler is away: what everybody may see, everybody may go on seeing.
            Err(Unavailable) => {
                let public = stale.filter(|route| route.is_public).ok_or(Unavailable)?;
                self.postpone(host);
                Ok(Some(public))
            }
            answer => answer,
        }
    }

    /// Has the next requests not wait for a scheduler that did not answer just now.
    fn postpone(&self, host: &str) {
        if let Some(known) = lock(&self.known).peek_mut(host) {
            known.fresh_until = Instant::now() + ASK_AGAIN_AFTER;
        }
    }

    /// Asks for the sandbox to be resumed, and where its name leads now.
    pub async fn resume(&self, host: &str) -> Answer {
        self.flight(host, true).await
    }

    /// One question per host at a time, however many wait for the answer.
    fn flight(&self, host: &str, resume: bool) -> Flight {
        let mut flights = lock(&self.flights);
        let key = (host.to_owned(), resume);
        if let Some(flight) = flights.get(&key) {
            return flight.clone();
        }
        let (this, question) = (self.this.clone(), key.clone());
        let flight = async move {
            let this = this.upgrade().ok_or(Unavailable)?;
            let answer = this.ask(&question.0, resume).await;
            lock(&this.flights).remove(&question);
            answer
        };
        let flight = flight.boxed().shared();
        flights.insert(key, flight.clone());
        // Driven to its end even if everybody who waits goes away: it takes itself out of the map.
        tokio::spawn(flight.clone());
        flight
    }

    async fn ask(&self, host: &str, resume: bool) -> Answer {
        let _place = self.lookups.acquire().await.map_err(|_| Unavailable)?;
        match self.source.lookup(host, resume).await? {
            Some(entry) => {
                let route = self.record(host, entry);
                self.added.notify_one();
                Ok(Some(route))
            }
            None => {
                self.remove(host);
                Ok(None)
            }
        }
    }

    /// Takes the scheduler's word over. Streams of the former word end unless it means the same to them.
    pub fn record(&self, host: &str, entry: RouteEntry) -> Arc<Route> {
        let now_us = clock::now_us();
        let lease =
            Duration::from_micros(u64::try_from(entry.expires_us.saturating_sub(now_us)).unwrap_or(0));
        let lease = lease.min(LEASE_MAX);
        let mut known = lock(&self.known);
        let former = known.peek(host).map(|known| known.route.clone());
        let mut route = Route::from(entry);
        if let Some(former) = former {
            match former.admits_as(&route) {
                true => route.ended = former.ended.clone(),
                false => former.ended.cancel(),
            }
        }
        let route = Arc::new(route);
        let fresh = Known { route: route.clone(), lease, fresh_until: Instant::now() + lease };
        if let Some((evicted, former)) = known.push(host.to_owned(), fresh).filter(|(name, _)| name != host) {
            tracing::debug!(host = evicted, "forgot a route");
            former.route.ended.cancel();
        }
        drop(known);
        lock(&self.absent).pop(host);
        route
    }

    /// There is no such preview any more.
    pub fn remove(&self, host: &str) {
        if let Some(former) = lock(&self.known).pop(host) {
            former.route.ended.cancel();
        }
        lock(&self.absent).put(host.to_owned(), Instant::now() + ABSENT_FOR);
    }

    /// Whether a host is known, fresh or not.
    pub fn is_known(&self, host: &str) -> bool {
        lock(&self.known).contains(host)
    }

    /// The hosts to be watched.
    pub fn hosts(&self) -> Vec<String> {
        lock(&self.known).iter().map(|(host, _)| host.clone()).collect()
    }

    /// The scheduler is there and has nothing to say about these: their leases begin anew.
    pub fn renew(&self, hosts: &[String]) {
        let mut known = lock(&self.known);
        let now = Instant::now();
        for host in hosts {
            if let Some(known) = known.peek_mut(host) {
                known.fresh_until = now + known.lease;
            }
        }
    }

    /// Ends the streams of private previews whose lease is over.
    pub fn end_lapsed(&self) {
        let mut known = lock(&self.known);
        let now = Instant::now();
        let lapsed: Vec<String> = known
            .iter()
            .filter(|(_, known)| !known.route.is_public && now >= known.fresh_until)
            .map(|(host, _)| host.clone())
            .collect();
        for host in lapsed {
            if let Some(former) = known.pop(&host) {
                former.route.ended.cancel();
            }
        }
    }
}

impl Route {
    /// Whether waiting helps: an execution is coming, or is there and not attached yet.
    pub fn is_starting(&self) -> bool {
        matches!(self.state.as_str(), "creating" | "resuming" | "running")
    }

    /// Whether who was admitted by this route would be admitted by `next` as well.
    fn admits_as(&self, next: &Self) -> bool {
        let is_same =
            self.preview == next.preview && self.tenant == next.tenant && self.sandbox == next.sandbox;
        is_same
            && self.port == next.port
            && (next.is_public || !self.is_public && self.generation == next.generation)
    }
}

impl From<RouteEntry> for Route {
    fn from(entry: RouteEntry) -> Self {
        Self {
            execution: ExecutionId::parse(&entry.execution).ok(),
            // Port 0 is refused like every other port that may not be published.
            port: u16::try_from(entry.port).unwrap_or(0),
            // Anything but the one word is private.
            is_public: entry.visibility == "public",
            owner_host: entry.owner_host_id,
            owner_address: entry.owner_address,
            preview: entry.preview_id,
            sandbox: entry.sandbox,
            state: entry.state,
            generation: entry.share_generation,
            tenant: entry.tenant,
            branding: Branding {
                product_name: entry.product_name,
                logo_url: entry.logo_url,
                frame_ancestors: entry.frame_ancestors,
            },
            ended: CancellationToken::new(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const HOST: &str = "3000-x.sandbox.a.b";

    #[derive(Default)]
    struct Scheduler {
        asked: AtomicUsize,
        answer: Mutex<Option<Result<Option<RouteEntry>, Unavailable>>>,
    }

    #[tonic::async_trait]
    impl Routes for Scheduler {
        async fn lookup(&self, _: &str, _: bool) -> Result<Option<RouteEntry>, Unavailable> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            lock(&self.answer).clone().unwrap_or(Err(Unavailable))
        }
    }

    impl Scheduler {
        fn says(&self, answer: Result<Option<RouteEntry>, Unavailable>) {
            *lock(&self.answer) = Some(answer);
        }
    }

    fn entry(visibility: &str, lease_ms: i64) -> RouteEntry {
        RouteEntry {
            preview_id: "preview_1".into(),
            visibility: visibility.into(),
            port: 3000,
            share_generation: 1,
            expires_us: clock::now_us() + lease_ms * 1000,
            ..RouteEntry::default()
        }
    }

    fn table() -> (Arc<RouteTable>, Arc<Scheduler>) {
        let scheduler = Arc::new(Scheduler::default());
        (RouteTable::new(scheduler.clone()), scheduler)
    }

    #[tokio::test]
    async fn one_question_serves_everybody_for_the_time_of_the_lease() {
        let (table, scheduler) = table();
        scheduler.says(Ok(Some(entry("private", 60_000))));
        let (one, other) = tokio::join!(table.find(HOST), table.find(HOST));
        assert!(Arc::ptr_eq(&one.unwrap().unwrap(), &other.unwrap().unwrap()));
        table.find(HOST).await.unwrap().unwrap();
        assert_eq!(scheduler.asked.load(Ordering::Relaxed), 1);
        assert_eq!(table.hosts(), [HOST]);
    }

    #[tokio::test]
    async fn absence_is_remembered_and_ends_with_a_word() {
        let (table, scheduler) = table();
        scheduler.says(Ok(None));
        for _ in 0..3 {
            assert!(table.find(HOST).await.unwrap().is_none());
        }
        assert_eq!(scheduler.asked.load(Ordering::Relaxed), 1);
        table.record(HOST, entry("public", 60_000));
        assert!(table.find(HOST).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn with_the_scheduler_away_only_public_previews_outlive_their_lease() {
        let (table, scheduler) = table();
        scheduler.says(Err(Unavailable));
        table.record(HOST, entry("public", 0));
        table.record("private", entry("private", 0));
        let private = lock(&table.known).peek("private").unwrap().route.clone();
        assert!(table.find(HOST).await.unwrap().is_some());
        assert!(table.find(HOST).await.unwrap().is_some());
        assert_eq!(scheduler.asked.load(Ordering::Relaxed), 1, "only the first one waits for an answer");
        assert_eq!(table.find("private").await.unwrap_err(), Unavailable);
        assert_eq!(table.find("unknown").await.unwrap_err(), Unavailable);
        table.end_lapsed();
        assert!(private.ended.is_cancelled() && table.is_known(HOST));
    }

    #[tokio::test]
    async fn dec_06_streams_end_with_their_reason_and_not_before() {
        let (table, _) = table();
        let first = table.record(HOST, entry("private", 60_000));
        let renewed = table.record(HOST, entry("private", 60_000));
        assert!(!first.ended.is_cancelled());
        let published = table.record(HOST, entry("public", 60_000));
        assert!(!renewed.ended.is_cancelled(), "who could see it still may");
        let hidden = table.record(HOST, entry("private", 60_000));
        assert!(published.ended.is_cancelled());
        let revoked = table.record(HOST, RouteEntry { share_generation: 2, ..entry("private", 60_000) });
        assert!(hidden.ended.is_cancelled());
        table.remove(HOST);
        assert!(revoked.ended.is_cancelled());
    }

    #[tokio::test]
    async fn a_heartbeat_renews_what_is_watched() {
        let (table, scheduler) = table();
        scheduler.says(Err(Unavailable));
        table.record(HOST, entry("private", 200));
        let deadline = Instant::now() + Duration::from_millis(600);
        while Instant::now() < deadline {
            table.renew(&[HOST.to_owned()]);
            assert!(table.find(HOST).await.unwrap().is_some());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(scheduler.asked.load(Ordering::Relaxed), 0);
    }
}
