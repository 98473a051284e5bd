//! One world for all cases of a flow: a tenant each, one fault, a restart where the scheduler died.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use roost_daemon::clock::Clock as _;
use roost_daemon::shutdown::Shutdown;
use roost_proto::host::fleet_client::FleetClient;
use roost_proto::host::outbox_row::Row as Body;
use roost_proto::host::{OutboxRow, SandboxStatus, State, SyncRequest, UploadRequest};
use roost_scheduler::pki::SCHEDULER_NAME;
use roost_scheduler::store::sandbox::{self, Filter, Sandbox};
use roost_scheduler::store::{Store, params};
use roost_scheduler::{fleet, sweep};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::flow::{Flow, Heard};
use super::invariant;
use super::plan::{Ahead, Fault, Plan, Step};
use crate::world::World;

/// A client gives up after so many calls; one fault costs at most two.
const CALLS_MAX: usize = 4;
/// After it a key whose owner died may be taken over.
const RESTART_US: i64 = 5_000_000;
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Rig {
    pub world: World,
    /// The store as it is, without fates.
    pub store: Store,
    clock: Ahead,
    cases: usize,
    uploaded: u64,
}

/// What a case is about, made before anything goes wrong.
#[derive(Debug, Default, Clone)]
pub struct Scene {
    pub sandbox: String,
    /// A secret, a preview: whatever else the flow needs.
    pub other: String,
    pub token: String,
    pub key: String,
}

impl Rig {
    pub async fn new(store: Store, directory: tempfile::TempDir) -> Rig {
        let clock = Ahead::default();
        let world = World::with_clock(store.clone(), directory, 10_000_000, Arc::new(clock.clone())).await;
        let own = world.host.id.clone();
        let others = "UPDATE host SET state = 'cordoned' WHERE id <> ?1";
        store.write(move |tx| tx.execute(others, params![&own])).await.unwrap();
        let mut rig = Rig { world, store, clock, cases: 0, uploaded: 0 };
        rig.restart().await;
        rig
    }

    pub fn plan(&self) -> Plan {
        self.world.host.plan.clone()
    }

    pub fn pass_us(&self, duration_us: i64) {
        self.clock.pass_us(duration_us);
    }

    /// Runs a flow under one fault, or none, and says how many steps of each kind it met.
    pub async fn run(&mut self, flow: Flow, fault: Option<(Step, usize, Fault)>) -> BTreeMap<Step, usize> {
        self.cases += 1;
        let plan = self.plan();
        self.world.enter_tenant(&format!("{flow:?}-{}", self.cases).to_lowercase()).await;
        let scene = flow.prepare(self).await;
        self.settle().await;
        let context = format!("{flow:?} under {fault:?}");
        plan.begin(fault);
        let mut heard: Vec<Heard> = Vec::new();
        let mut calls = 0;
        while heard.is_empty() {
            assert!(calls < CALLS_MAX, "{context}: no call was answered");
            calls += 1;
            let answer = flow.call(self, &scene).await;
            let answered = answer.status < 400;
            if answered {
                let rested = self.rest(fault.is_some(), flow.patience()).await;
                assert!(rested || flow == Flow::Timeout, "{context}: the host does not follow");
            }
            if !plan.is_alive() {
                // Whatever it was about to say, nobody heard it.
                self.restart().await;
            } else if answered {
                heard.push(answer);
            } else {
                self.synchronise().await;
            }
            invariant::check(self, &context).await;
        }
        let (met, struck) = plan.end();
        assert!(fault.is_none() || struck, "{context}: never met");
        // The answer was lost on its way, so the client asks again.
        let again = flow.call(self, &scene).await;
        assert!(again.status < 400, "{context}: {}", again.text());
        heard.push(again);
        self.settle().await;
        invariant::check(self, &context).await;
        flow.check(self, &scene, &heard, calls + 1, &context).await;
        met
    }

    /// Waits for what goes on behind an answer: pushes to the host and what they bring. False if it did not end.
    async fn rest(&self, faulty: bool, patience: Duration) -> bool {
        let plan = self.plan();
        let deadline = Instant::now() + patience;
        while plan.is_alive() {
            let settled = self.rows().await.iter().all(|row| row.observed_generation == row.generation);
            if settled && (!faulty || plan.has_struck()) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        true
    }

    /// A new scheduler over the same store. Time has passed, and the hosts have told it what they hold.
    async fn restart(&mut self) {
        self.clock.pass_us(RESTART_US);
        let process = self.plan().enter();
        self.world.restart(self.store.under(Arc::new(process)));
        self.synchronise().await;
    }

    /// Until both sides have told each other everything and the sweeps have run.
    async fn settle(&mut self) {
        sweep::end_overdue(&self.world.app).await.unwrap();
        self.synchronise().await;
        assert!(self.rest(false, PATIENCE).await, "both sides have told each other everything and differ");
    }

    async fn synchronise(&mut self) {
        let bound = fleet::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, shutdown) = (bound.address(), Shutdown::new());
        let serving = tokio::spawn(bound.serve(self.world.app.fleet.clone(), shutdown.clone()));
        let mut client = FleetClient::new(self.channel(&address.to_string()).await);
        for _ in 0..2 {
            let sandboxes = self.held().into_iter().filter(|status| status.state() != State::Destroyed);
            let request = SyncRequest {
                host_id: self.world.host.id.clone(),
                info: Some(self.world.host.info(&self.store).await),
                sandboxes: sandboxes.collect(),
                time_us: self.clock.now_us(),
            };
            for wish in client.sync(request).await.unwrap().into_inner().ensure {
                self.world.host.carry_out(&wish);
            }
            self.upload(&mut client).await;
        }
        drop(client);
        shutdown.request();
        serving.await.unwrap().unwrap();
    }

    /// Everything the host would have in its outbox, as often as it likes.
    async fn upload(&mut self, client: &mut FleetClient<Channel>) {
        let rows = self.held().into_iter().map(|status| {
            self.uploaded += 1;
            OutboxRow { seq: self.uploaded, row: Some(Body::Status(status)) }
        });
        let rows: Vec<OutboxRow> = rows.collect();
        for chunk in rows.chunks(256) {
            let request = UploadRequest { host_id: self.world.host.id.clone(), rows: chunk.to_vec() };
            client.upload(request).await.unwrap();
        }
    }

    /// What the host says of this case's sandboxes.
    fn held(&self) -> Vec<SandboxStatus> {
        self.world.host.held.lock().unwrap().values().map(|(_, status)| status.clone()).collect()
    }

    async fn channel(&self, address: &str) -> Channel {
        let agent = &self.world.host.agent;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.world.host.roots_pem))
            .domain_name(SCHEDULER_NAME)
            .identity(Identity::from_pem(&agent.chain_pem, &agent.key_pem));
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap();
        endpoint.connect().await.unwrap()
    }

    /// This case's sandboxes, the destroyed ones too.
    pub async fn rows(&self) -> Vec<Sandbox> {
        let filter = Filter {
            tenant_id: self.world.tenant.clone(),
            include_destroyed: true,
            limit: 100,
            ..Filter::default()
        };
        self.store.read(move |tx| sandbox::list(tx, &filter)).await.unwrap()
    }

    /// Ends everything that could still write, and looks for values where none may be.
    pub fn close(self) {
        invariant::check_files(&self);
        self.plan().die();
    }
}
