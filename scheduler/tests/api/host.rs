//! A host that is not there: `Ensure` says that everything happened at once, `Gateway` is `guest.rs`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rcgen::{CertificateParams, KeyPair};
use roost_daemon::clock::Clock;
use roost_domain::desired::{Desired, Offer, Receipt, Run as Wanted, Standing};
use roost_domain::id::{ExecutionId, HostId};
use roost_proto::host::ensure_server::{Ensure, EnsureServer};
use roost_proto::host::gateway_server::GatewayServer;
use roost_proto::host::{EnsureReply, EnsureRequest, HostInfo, Run, SandboxStatus, State};
use roost_scheduler::pki::{Pki, Role};
use roost_scheduler::store::{Store, host};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::fault::plan::{Plan, Step};
use crate::guest::Guest;

pub const TEMPLATE: &str = "miosa-sandbox";

/// What the host does with what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Everything is done at once.
    Prompt,
    /// Says it has begun, and no more.
    Slow,
    /// Every start fails.
    Broken,
}

#[derive(Debug, Clone)]
pub struct Host {
    pub id: String,
    pub mood: Arc<Mutex<Mood>>,
    pub ensured: Arc<Mutex<Vec<EnsureRequest>>>,
    /// What it was told of each sandbox and what it last said of it.
    pub held: Arc<Mutex<BTreeMap<String, (Standing, SandboxStatus)>>>,
    pub guest: Guest,
    /// What goes wrong with calls to this host.
    pub plan: Plan,
    pub agent: Keyed,
    pub edge: Keyed,
    pub egress: Keyed,
    /// What it trusts of the fleet.
    pub roots_pem: String,
    clock: Arc<dyn Clock>,
}

/// A certificate of one of the host's processes, with its key.
#[derive(Debug, Clone)]
pub struct Keyed {
    pub chain_pem: Vec<u8>,
    pub key_pem: String,
}

impl Host {
    /// What it says of itself, as the store has it.
    pub async fn info(&self, store: &Store) -> HostInfo {
        let id = self.id.clone();
        let row = store.read(move |tx| host::find(tx, &id)).await.unwrap().unwrap();
        HostInfo {
            version: row.version,
            ensure_address: row.ensure_address,
            gateway_address: row.gateway_address,
            preview_address: row.preview_address,
            memory_mib: row.memory_mib,
            disk_mib: row.disk_mib,
            vcpus: u32::try_from(row.vcpus).unwrap(),
            templates: row.templates,
            vmm: row.vmm,
        }
    }

    /// Joins the fleet and serves.
    pub async fn start(
        store: &Store,
        pki: &Pki,
        root: PathBuf,
        clock: Arc<dyn Clock>,
        memory_mib: u64,
    ) -> Host {
        let id = roost_daemon::ids::fresh::<HostId>().to_string();
        let (plan, now_us) = (Plan::default(), clock.now_us());
        let (agent_keyed, edge_keyed) =
            (keyed(pki, &id, Role::Agent, now_us), keyed(pki, &id, Role::Edge, now_us));
        let made = Host {
            id: id.clone(),
            mood: Arc::new(Mutex::new(Mood::Prompt)),
            ensured: Arc::default(),
            held: Arc::default(),
            guest: Guest::new(root, plan.clone()),
            plan,
            agent: agent_keyed.clone(),
            edge: edge_keyed.clone(),
            egress: keyed(pki, &id, Role::Egress, now_us),
            roots_pem: pki.fleet_roots_pem().to_owned(),
            clock,
        };
        let agent = listen().await;
        let edge = listen().await;
        let row = host::Host {
            id: id.clone(),
            state: "active".into(),
            version: "test".into(),
            ensure_address: agent.1.to_string(),
            gateway_address: edge.1.to_string(),
            preview_address: "127.0.0.1:0".into(),
            memory_mib,
            disk_mib: 1_000_000,
            vcpus: 64,
            templates: vec![TEMPLATE.into()],
            vmm: "none".into(),
            memory_reserved_mib: 0,
            disk_reserved_mib: 0,
            joined_us: now_us,
            seen_us: now_us,
            clock_skew_us: 0,
        };
        store.write(move |tx| host::insert(tx, &row)).await.unwrap();
        let ensure = server(pki, &agent_keyed).add_service(EnsureServer::new(made.clone()));
        let gateway = server(pki, &edge_keyed).add_service(GatewayServer::new(made.guest.clone()));
        tokio::spawn(ensure.serve_with_incoming(TcpIncoming::from(agent.0).with_nodelay(Some(true))));
        tokio::spawn(gateway.serve_with_incoming(TcpIncoming::from(edge.0).with_nodelay(Some(true))));
        made
    }

    pub fn set_mood(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn keyed(pki: &Pki, id: &str, role: Role, now_us: i64) -> Keyed {
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let (chain, _) = pki.sign_host(id, role, request.as_bytes(), now_us).unwrap();
    Keyed { chain_pem: chain.into(), key_pem: key.serialize_pem() }
}

fn server(pki: &Pki, keyed: &Keyed) -> Server {
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(&keyed.chain_pem, &keyed.key_pem))
        .client_ca_root(Certificate::from_pem(pki.fleet_roots_pem()));
    Server::builder().tls_config(tls).unwrap()
}

/// What a wish means to the rules that real hosts follow.
fn offer(desired: &roost_proto::host::Desired) -> Offer {
    let run = match desired.run() {
        Run::Running => Wanted::Running,
        Run::Paused => Wanted::Paused,
        Run::Stopped => Wanted::Stopped,
        Run::Destroyed | Run::Unspecified => Wanted::Destroyed,
    };
    let (generation, placement_epoch) = (desired.generation, desired.placement_epoch);
    Offer { desired: Desired { run, generation, placement_epoch }, adopted_seq: desired.adopted_seq }
}

#[tonic::async_trait]
impl Ensure for Host {
    async fn ensure(&self, request: Request<EnsureRequest>) -> Result<Response<EnsureReply>, Status> {
        let request = request.into_inner();
        let status = self.plan.around(Step::Ensure, || self.carry_out(&request))?;
        Ok(Response::new(EnsureReply { status: Some(status) }))
    }
}

impl Host {
    /// Does what is newly wanted; says of the rest how it is.
    pub fn carry_out(&self, request: &EnsureRequest) -> SandboxStatus {
        self.ensured.lock().unwrap().push(request.clone());
        let offer = offer(request.desired.as_ref().unwrap());
        let mut held = self.held.lock().unwrap();
        let standing = match held.get(&request.sandbox) {
            None => Standing::new(offer),
            Some((known, said)) => {
                let mut standing = *known;
                let done = matches!(
                    said.state(),
                    State::Running | State::Paused | State::Stopped | State::Destroyed
                );
                match standing.receive(offer) {
                    Receipt::Applied => standing,
                    Receipt::Repeated if !done => standing,
                    _ => return said.clone(),
                }
            }
        };
        let status = self.act(&request.sandbox, &standing);
        held.insert(request.sandbox.clone(), (standing, status.clone()));
        status
    }

    fn act(&self, sandbox: &str, standing: &Standing) -> SandboxStatus {
        let (begun, done) = match standing.desired.run {
            Wanted::Running => (State::Creating, State::Running),
            Wanted::Paused => (State::Pausing, State::Paused),
            Wanted::Stopped => (State::Stopping, State::Stopped),
            Wanted::Destroyed => (State::Destroying, State::Destroyed),
        };
        let (state, reason) = match *self.mood.lock().unwrap() {
            Mood::Prompt => (done, ""),
            Mood::Slow => (begun, ""),
            Mood::Broken if done == State::Running => (State::Failed, "start_failed"),
            Mood::Broken => (done, ""),
        };
        if state == State::Destroyed {
            self.guest.remove(sandbox);
        }
        SandboxStatus {
            sandbox: sandbox.to_owned(),
            state: state.into(),
            state_reason: reason.into(),
            generation: standing.desired.generation,
            placement_epoch: standing.desired.placement_epoch,
            execution: roost_daemon::ids::fresh::<ExecutionId>().to_string(),
            changed_us: self.clock.now_us(),
            boot_path: "cold".into(),
            boot_us: 1_000,
            ..SandboxStatus::default()
        }
    }
}
