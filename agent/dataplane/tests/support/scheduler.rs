//! The scheduler's Route service, saying what a test wants, and the key that signs tokens.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData};
use roost_domain::token::{self, Claims, Kind, Scope};
use roost_proto::host::route_change::Change;
use roost_proto::host::route_server::{Route, RouteServer};
use roost_proto::host::{
    LookupReply, LookupRequest, PublicKey, PublicKeys, RouteChange, RouteEntry, WatchRoutesRequest,
    lookup_reply,
};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use super::fleet::Fleet;

pub(crate) const ISSUER: &str = "roost-test";
pub(crate) const TENANT: &str = "ten_01d39zy06fgsctvn4t2v9pkhfz";
pub(crate) const PREVIEW: &str = "preview_01d39zy06fgsctvn4t2v9pkhfz";

#[derive(Clone)]
pub(crate) struct Scheduler {
    state: Arc<State>,
}

struct State {
    routes: Mutex<HashMap<String, RouteEntry>>,
    lease_ms: Mutex<i64>,
    changes: broadcast::Sender<RouteChange>,
    lookups: AtomicUsize,
    is_away: AtomicBool,
    resumes: Mutex<Vec<String>>,
    key: KeyPair,
}

impl Scheduler {
    /// Serves on loopback with the fleet's certificate.
    pub(crate) async fn start(fleet: &Fleet) -> (Self, SocketAddr) {
        let state = State {
            routes: Mutex::default(),
            lease_ms: Mutex::new(30_000),
            changes: broadcast::channel(64).0,
            lookups: AtomicUsize::new(0),
            is_away: AtomicBool::new(false),
            resumes: Mutex::default(),
            key: KeyPair::generate_for(&PKCS_ED25519).unwrap(),
        };
        let this = Self { state: Arc::new(state) };
        let leaf = fleet.leaf(&["scheduler.roost.internal"], Some("roost://scheduler"));
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(leaf.certificate_pem, leaf.key_pem))
            .client_ca_root(Certificate::from_pem(&fleet.root_pem));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().tls_config(tls).unwrap().add_service(RouteServer::new(this.clone()));
        tokio::spawn(async move {
            let _ = server.serve_with_incoming(TcpListenerStream::new(listener)).await;
        });
        (this, address)
    }

    /// Sets a route and tells whoever watches.
    pub(crate) fn set(&self, entry: RouteEntry) {
        self.state.routes.lock().unwrap().insert(entry.host.clone(), entry.clone());
        self.tell(Change::Route(self.leased(entry)));
    }

    pub(crate) fn remove(&self, host: &str) {
        self.state.routes.lock().unwrap().remove(host);
        self.tell(Change::RemovedHost(host.to_owned()));
    }

    pub(crate) fn set_lease_ms(&self, lease_ms: i64) {
        *self.state.lease_ms.lock().unwrap() = lease_ms;
    }

    /// The hosts whose sandboxes were to be resumed.
    pub(crate) fn resumes(&self) -> Vec<String> {
        self.state.resumes.lock().unwrap().clone()
    }

    /// From now on it answers nothing and says nothing.
    pub(crate) fn go_away(&self) {
        self.state.is_away.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<(), Status> {
        match self.state.is_away.load(Ordering::Relaxed) {
            true => Err(Status::unavailable("away")),
            false => Ok(()),
        }
    }

    pub(crate) fn lookups(&self) -> usize {
        self.state.lookups.load(Ordering::Relaxed)
    }

    fn tell(&self, change: Change) {
        let _ = self.state.changes.send(RouteChange { change: Some(change) });
    }

    fn leased(&self, entry: RouteEntry) -> RouteEntry {
        let lease_us = *self.state.lease_ms.lock().unwrap() * 1000;
        RouteEntry { expires_us: roost_daemon::clock::now_us() + lease_us, ..entry }
    }

    fn keys(&self) -> PublicKeys {
        let key = PublicKey {
            key_id: "k1".into(),
            public_key: self.state.key.der_bytes().to_vec().into(),
            not_after_us: i64::MAX,
        };
        PublicKeys { keys: vec![key], issuer: ISSUER.into(), token_prefix: "miosa".into() }
    }

    /// Signs whatever the claims say.
    pub(crate) fn sign(&self, claims: &Claims) -> String {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some("k1".into());
        let key = EncodingKey::from_ed_der(&self.state.key.serialize_der());
        let jwt = jsonwebtoken::encode(&header, claims, &key).unwrap();
        token::compose(claims.typ, "miosa", &claims.tid, &jwt)
    }

    /// A token for the usual preview that lasts so many seconds.
    pub(crate) fn token(&self, lifetime_s: i64) -> String {
        self.sign(&claims(lifetime_s))
    }
}

/// What the scheduler puts into a token for the usual preview.
pub(crate) fn claims(lifetime_s: i64) -> Claims {
    let now_s = roost_daemon::clock::now_us() / 1_000_000;
    Claims {
        iss: ISSUER.into(),
        aud: "preview".into(),
        tid: "Ab3dEf7h1JkLmNoP".into(),
        tenant: TENANT.into(),
        rid: PREVIEW.into(),
        typ: Kind::Preview,
        sid: String::new(),
        scopes: vec![Scope::PreviewRead, Scope::PreviewInteract],
        generation: 1,
        iat: now_s,
        nbf: now_s,
        exp: now_s + lifetime_s,
    }
}

#[tonic::async_trait]
impl Route for Scheduler {
    async fn lookup(&self, request: Request<LookupRequest>) -> Result<Response<LookupReply>, Status> {
        self.check()?;
        self.state.lookups.fetch_add(1, Ordering::Relaxed);
        let LookupRequest { host, resume } = request.into_inner();
        if resume {
            self.state.resumes.lock().unwrap().push(host.clone());
        }
        let found = self.state.routes.lock().unwrap().get(&host).cloned();
        let outcome = match found {
            Some(entry) => lookup_reply::Outcome::Route(self.leased(entry)),
            None => lookup_reply::Outcome::Absent(true),
        };
        Ok(Response::new(LookupReply { outcome: Some(outcome) }))
    }

    type WatchStream = ReceiverStream<Result<RouteChange, Status>>;

    async fn watch(
        &self,
        request: Request<WatchRoutesRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.check()?;
        let hosts = request.into_inner().hosts;
        let mut changes = self.state.changes.subscribe();
        let (sender, receiver) = mpsc::channel(64);
        let _ = sender.send(Ok(RouteChange { change: Some(Change::Keys(self.keys())) })).await;
        for host in &hosts {
            let found = self.state.routes.lock().unwrap().get(host).cloned();
            let change = match found {
                Some(entry) => Change::Route(self.leased(entry)),
                None => Change::RemovedHost(host.clone()),
            };
            let _ = sender.send(Ok(RouteChange { change: Some(change) })).await;
        }
        tokio::spawn(async move {
            while let Ok(change) = changes.recv().await {
                let host = match &change.change {
                    Some(Change::Route(entry)) => &entry.host,
                    Some(Change::RemovedHost(host)) => host,
                    _ => continue,
                };
                if hosts.contains(host) && sender.send(Ok(change)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
