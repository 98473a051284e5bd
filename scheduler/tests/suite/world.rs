//! A scheduler's fleet server on a real socket, and hosts that join it with keys of their own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use roost_daemon::clock::{self, Clock as _, Manual};
use roost_daemon::ids::fresh;
use roost_daemon::shutdown::Shutdown;
use roost_domain::id::JoinId;
use roost_domain::placeholder::Format;
use roost_proto::host as proto;
use roost_proto::host::fleet_client::FleetClient;
use roost_scheduler::audit::Audit;
use roost_scheduler::fleet::{self, Fleet};
use roost_scheduler::pki::{Development, Pki, SCHEDULER_NAME};
use roost_scheduler::secret::Vault;
use roost_scheduler::store::host::{self, JoinToken};
use roost_scheduler::store::{Settings, Store};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

pub const DEADLINE: Duration = Duration::from_secs(10);

/// A running fleet server. Its clock stands at the real time, since TLS checks certificates against that.
pub struct World {
    pub store: Store,
    pub fleet: Fleet,
    pub vault: Vault,
    pub audit: Audit,
    pub pki: Arc<Pki>,
    pub clock: Manual,
    pub address: SocketAddr,
    shutdown: Shutdown,
    _directory: tempfile::TempDir,
}

impl World {
    pub async fn start() -> World {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(Settings::Sqlite { path: directory.path().join("scheduler.db") }).unwrap();
        let audit = Audit::in_directory(directory.path().join("audit")).unwrap();
        World::start_on(store, audit, directory).await
    }

    pub async fn start_on(store: Store, audit: Audit, directory: tempfile::TempDir) -> World {
        let clock = Manual::at(clock::now_us());
        let development =
            Development { preview_domain: "roost.localhost".into(), api_names: vec!["localhost".into()] };
        let pki =
            Arc::new(Pki::ensure(&directory.path().join("pki"), Some(&development), clock.now_us()).unwrap());
        let master = Vault::ensure_master_key(&directory.path().join("master.key")).unwrap();
        let vault = Vault::new(store.clone(), Arc::new(clock.clone()), master, Format::default());
        let settings = fleet::Settings {
            issuer: "roost".into(),
            token_prefix: "miosa".into(),
            frame_ancestors: vec!["https://*.miosa.app".into()],
            revocation_bound: Duration::from_secs(30),
        };
        let fleet = Fleet::new(
            store.clone(),
            Arc::new(clock.clone()),
            pki.clone(),
            vault.clone(),
            audit.clone(),
            settings,
        );
        let bound = fleet::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, shutdown) = (bound.address(), Shutdown::new());
        tokio::spawn(bound.serve(fleet.clone(), shutdown.clone()));
        World { store, fleet, vault, audit, pki, clock, address, shutdown, _directory: directory }
    }

    /// A channel to the fleet server, as `identity` or as nobody.
    pub async fn channel(&self, identity: Option<&Keyed>) -> Channel {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.pki.fleet_roots_pem()))
            .domain_name(SCHEDULER_NAME);
        if let Some(keyed) = identity {
            tls = tls.identity(Identity::from_pem(&keyed.chain_pem, &keyed.key_pem));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap();
        endpoint.tls_config(tls).unwrap().connect_timeout(DEADLINE).connect().await.unwrap()
    }

    pub async fn join_token(&self) -> String {
        let token = format!("roost_join_{}", uuid::Uuid::new_v4().simple());
        let row = JoinToken {
            id: fresh::<JoinId>().to_string(),
            sha256: fleet::hash_token(&token),
            actor: "operator".into(),
            created_us: self.clock.now_us(),
            expires_us: self.clock.now_us() + 60_000_000,
            used_us: None,
            host_id: None,
        };
        self.store.write(move |tx| host::insert_join_token(tx, &row)).await.unwrap();
        token
    }

    pub async fn join(&self) -> Host {
        let token = self.join_token().await;
        let pending: Vec<Pending> = ["agent", "edge", "egress", "egress_ca"].map(Pending::new).into();
        let requests = pending.iter().map(Pending::request).collect();
        let request = proto::JoinRequest { token, requests, info: Some(info()) };
        let reply = FleetClient::new(self.channel(None).await).join(request).await.unwrap().into_inner();
        Host::new(pending, reply)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.request();
    }
}

pub fn info() -> proto::HostInfo {
    proto::HostInfo {
        version: "0.1.0".into(),
        ensure_address: "127.0.0.1:1".into(),
        gateway_address: "127.0.0.1:1".into(),
        preview_address: "127.0.0.1:1".into(),
        memory_mib: 8192,
        disk_mib: 65_536,
        vcpus: 4,
        templates: vec!["miosa-sandbox".into()],
        vmm: "fake".into(),
    }
}

/// A key whose certificate is still to come.
pub struct Pending {
    pub role: String,
    pub key: KeyPair,
    pub csr_pem: String,
}

impl Pending {
    pub fn new(role: &str) -> Pending {
        Pending::asking(role, CertificateParams::default())
    }

    pub fn asking(role: &str, params: CertificateParams) -> Pending {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let csr_pem = params.serialize_request(&key).unwrap().pem().unwrap();
        Pending { role: role.into(), key, csr_pem }
    }

    pub fn request(&self) -> proto::CertificateRequest {
        proto::CertificateRequest { role: self.role.clone(), csr_pem: self.csr_pem.clone().into() }
    }

    pub fn with(self, chain_pem: &[u8]) -> Keyed {
        Keyed { chain_pem: String::from_utf8(chain_pem.to_vec()).unwrap(), key_pem: self.key.serialize_pem() }
    }
}

pub struct Keyed {
    pub chain_pem: String,
    pub key_pem: String,
}

/// A host that has joined.
pub struct Host {
    pub id: String,
    pub agent: Keyed,
    pub edge: Keyed,
    pub egress: Keyed,
    pub egress_ca: Keyed,
    pub reply: proto::JoinReply,
}

impl Host {
    fn new(pending: Vec<Pending>, reply: proto::JoinReply) -> Host {
        let mut keyed: Vec<Keyed> = pending
            .into_iter()
            .map(|pending| {
                let found =
                    reply.certificates.iter().find(|certificate| certificate.role == pending.role).unwrap();
                pending.with(&found.chain_pem)
            })
            .collect();
        let egress_ca = keyed.pop().unwrap();
        let egress = keyed.pop().unwrap();
        let edge = keyed.pop().unwrap();
        let agent = keyed.pop().unwrap();
        Host { id: reply.host_id.clone(), agent, edge, egress, egress_ca, reply }
    }
}
