//! A host that is not there: `Ensure` says that everything happened at once, `Gateway` is `guest.rs`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rcgen::{CertificateParams, KeyPair};
use roost_domain::id::{ExecutionId, HostId};
use roost_proto::host::ensure_server::{Ensure, EnsureServer};
use roost_proto::host::gateway_server::GatewayServer;
use roost_proto::host::{EnsureReply, EnsureRequest, Run, SandboxStatus, State};
use roost_scheduler::pki::{Pki, Role};
use roost_scheduler::store::{Store, host};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

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
    pub guest: Guest,
}

impl Host {
    /// Joins the fleet and serves.
    pub async fn start(store: &Store, pki: &Pki, root: PathBuf, now_us: i64, memory_mib: u64) -> Host {
        let id = roost_daemon::ids::fresh::<HostId>().to_string();
        let made = Host {
            id: id.clone(),
            mood: Arc::new(Mutex::new(Mood::Prompt)),
            ensured: Arc::default(),
            guest: Guest::new(root),
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
        let ensure = server(pki, &id, Role::Agent, now_us).add_service(EnsureServer::new(made.clone()));
        let gateway =
            server(pki, &id, Role::Edge, now_us).add_service(GatewayServer::new(made.guest.clone()));
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

fn server(pki: &Pki, id: &str, role: Role, now_us: i64) -> Server {
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let (chain, _) = pki.sign_host(id, role, request.as_bytes(), now_us).unwrap();
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(chain, key.serialize_pem()))
        .client_ca_root(Certificate::from_pem(pki.fleet_roots_pem()));
    Server::builder().tls_config(tls).unwrap()
}

#[tonic::async_trait]
impl Ensure for Host {
    async fn ensure(&self, request: Request<EnsureRequest>) -> Result<Response<EnsureReply>, Status> {
        let request = request.into_inner();
        let desired = request.desired.unwrap();
        let (begun, done) = match desired.run() {
            Run::Running => (State::Creating, State::Running),
            Run::Paused => (State::Pausing, State::Paused),
            Run::Stopped => (State::Stopping, State::Stopped),
            _ => (State::Destroying, State::Destroyed),
        };
        let (state, reason) = match *self.mood.lock().unwrap() {
            Mood::Prompt => (done, ""),
            Mood::Slow => (begun, ""),
            Mood::Broken if done == State::Running => (State::Failed, "start_failed"),
            Mood::Broken => (done, ""),
        };
        if state == State::Destroyed {
            self.guest.remove(&request.sandbox);
        }
        let status = SandboxStatus {
            sandbox: request.sandbox.clone(),
            state: state.into(),
            state_reason: reason.into(),
            generation: desired.generation,
            placement_epoch: desired.placement_epoch,
            execution: roost_daemon::ids::fresh::<ExecutionId>().to_string(),
            changed_us: roost_daemon::clock::now_us(),
            boot_path: "cold".into(),
            boot_us: 1_000,
            ..SandboxStatus::default()
        };
        self.ensured.lock().unwrap().push(request);
        Ok(Response::new(EnsureReply { status: Some(status) }))
    }
}
