//! Two schedulers over one PostgreSQL, as during a rolling upgrade, and a host that calls either.
//!
//! Their clocks are three seconds apart in every test: what holds here needs no better clocks. They have the same
//! authorities and master key, without which the second one could not serve.

mod calls;
mod hosts;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use roost_daemon::clock::Clock as _;
use roost_daemon::shutdown::Shutdown;
use roost_proto::host::SandboxStatus;
use roost_scheduler::fleet;
use roost_scheduler::pki::SCHEDULER_NAME;
use roost_scheduler::store::quota::{self, Subject};
use roost_scheduler::store::sandbox::{self, Sandbox};
use roost_scheduler::store::{Settings, Store, event, host};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::engines::{on_postgres_settings, runtime};
use crate::fault::plan::Ahead;
use crate::host::Keyed;
use crate::world::{Answer, World};

const SKEW_US: i64 = 3_000_000;
const PATIENCE: Duration = Duration::from_secs(20);
/// The stated bound on "immediately".
const BOUND: Duration = Duration::from_secs(2);
const CALLS: usize = 64;

pub struct Pair {
    a: World,
    /// Behind `a` by [`SKEW_US`].
    b: World,
    clocks: [Ahead; 2],
    /// Where hosts reach `a` and `b`.
    fleets: [SocketAddr; 2],
    settings: Settings,
    shutdown: Shutdown,
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.shutdown.request();
    }
}

fn with_pair<F: Future<Output = ()>>(test: impl Fn(Pair) -> F) {
    on_postgres_settings(|settings| {
        // Both at once on an empty database: either may be the one that makes the schema.
        let open = |settings: Settings| std::thread::spawn(move || Store::open(settings).unwrap());
        let stores = [open(settings.clone()), open(settings.clone())].map(|opening| opening.join().unwrap());
        runtime().block_on(async { test(Pair::new(stores, settings).await).await });
    });
}

impl Pair {
    async fn new([first, second]: [Store; 2], settings: Settings) -> Pair {
        let clocks = [Ahead::default(), Ahead::default()];
        clocks[1].pass_us(-SKEW_US);
        let directory = tempfile::tempdir().unwrap();
        let a = World::with_clock(first, directory, 1_000_000, Arc::new(clocks[0].clone())).await;
        let b = World { clock: Arc::new(clocks[1].clone()), ..a.clone() }.beside(second);
        let shutdown = Shutdown::new();
        let fleets = [serve(&a, &shutdown).await, serve(&b, &shutdown).await];
        // A key's first use is a write of its own.
        a.get("/sandboxes").await.expect(200);
        Pair { a, b, clocks, fleets, settings, shutdown }
    }

    fn pass_us(&self, duration_us: i64) {
        for clock in &self.clocks {
            clock.pass_us(duration_us);
        }
    }

    /// Calls in turns on both, all at once, and gathers the answers in the order of the calls.
    async fn at_once<F>(&self, number: usize, call: impl Fn(World, usize) -> F) -> Vec<Answer>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let of = |at: usize| if at.is_multiple_of(2) { self.a.clone() } else { self.b.clone() };
        let calls: Vec<_> = (0..number).map(|at| tokio::spawn(call(of(at), at))).collect();
        let mut answers = Vec::new();
        for call in calls {
            answers.push(call.await.unwrap());
        }
        answers
    }

    async fn row(&self, id: &str) -> Sandbox {
        let id = id.to_owned();
        self.a.app.store.read(move |tx| sandbox::find_any(tx, &id)).await.unwrap().unwrap()
    }

    async fn until_row(&self, id: &str, what: &str, good: impl Fn(&Sandbox) -> bool) -> Sandbox {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let row = self.row(id).await;
            if good(&row) {
                return row;
            }
            assert!(Instant::now() < deadline, "never {what}: {row:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The kinds of a sandbox's events, in their order.
    async fn events(&self, id: &str) -> Vec<String> {
        let (tenant, id) = (self.a.tenant.clone(), id.to_owned());
        let read =
            self.a.app.store.read(move |tx| event::list_after(tx, &tenant, Some(&id), (0, ""), 100)).await;
        read.unwrap().into_iter().map(|event| event.kind).collect()
    }

    /// Sandboxes of the tenant, running ones, and the memory and disk the host has promised away.
    async fn counted(&self) -> (i64, i64, u64, u64) {
        let (tenant, host_id) = (self.a.tenant.clone(), self.a.host.id.clone());
        let subject = Subject { tenant_id: tenant.clone(), subject: "tenant", subject_id: tenant };
        let read = self.a.app.store.read(move |tx| {
            Ok((quota::find_use(tx, &subject)?.unwrap(), host::find(tx, &host_id)?.unwrap()))
        });
        let (used, host) = read.await.unwrap();
        (used.sandboxes, used.concurrent, host.memory_reserved_mib, host.disk_reserved_mib)
    }

    /// A connection of one of the host's processes to the scheduler at this place of `fleets`.
    async fn channel(&self, place: usize, keyed: &Keyed) -> Channel {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.a.host.roots_pem))
            .domain_name(SCHEDULER_NAME)
            .identity(Identity::from_pem(&keyed.chain_pem, &keyed.key_pem));
        let endpoint = Endpoint::from_shared(format!("https://{}", self.fleets[place])).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await.unwrap()
    }

    /// What the host says of all it holds.
    fn held(&self) -> Vec<SandboxStatus> {
        self.a.host.held.lock().unwrap().values().map(|(_, status)| status.clone()).collect()
    }

    /// The host's own clock, which is neither scheduler's.
    fn host_us(&self) -> i64 {
        self.clocks[0].now_us() - SKEW_US / 2
    }
}

async fn serve(world: &World, shutdown: &Shutdown) -> SocketAddr {
    let bound = fleet::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = bound.address();
    tokio::spawn(bound.serve(world.app.fleet.clone(), shutdown.clone()));
    address
}
