//! The real process with a scheduler: certificates appear, leases are asked for and revoked, rows are
//! shipped.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request as HttpRequest;
use roost_domain::audit::Record;
use roost_proto::host::audit_server::{Audit, AuditServer};
use roost_proto::host::lease_server::{Lease, LeaseServer};
use roost_proto::host::resolution::Outcome;
use roost_proto::host::{
    LeaseChange, Resolution, ResolveReply, ResolveRequest, ShipReply, ShipRequest, WatchLeasesRequest,
};
use tokio::sync::broadcast;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{BroadcastStream, TcpListenerStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::lab::{self, PUBLIC, Root, SECRET, Upstream, World, credential, eventually, placeholder};
use crate::support::agent::{Agent, Message, Reply, attach, execution, sandbox};
use crate::support::fleet::Fleet;
use crate::support::process::Dataplane;

/// A scheduler with one secret.
#[derive(Clone)]
struct Scheduler {
    state: Arc<State>,
}

struct State {
    revoked: Mutex<bool>,
    changes: broadcast::Sender<LeaseChange>,
    shipped: Mutex<Vec<u8>>,
}

impl Scheduler {
    async fn start(fleet: &Fleet) -> (Self, SocketAddr) {
        let changes = broadcast::channel(16).0;
        let state = State { revoked: Mutex::default(), changes, shipped: Mutex::default() };
        let this = Self { state: Arc::new(state) };
        let leaf = fleet.leaf(&["scheduler.roost.internal"], Some("roost://scheduler"));
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(leaf.certificate_pem, leaf.key_pem))
            .client_ca_root(Certificate::from_pem(&fleet.root_pem));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = Server::builder().tls_config(tls).unwrap();
        let server =
            server.add_service(LeaseServer::new(this.clone())).add_service(AuditServer::new(this.clone()));
        tokio::spawn(async move {
            let _ = server.serve_with_incoming(TcpListenerStream::new(listener)).await;
        });
        (this, address)
    }

    /// Tells egress once it listens.
    async fn revoke(&self, execution: String) {
        let listens = || (self.state.changes.receiver_count() > 0).then_some(());
        eventually("egress to follow changes", listens).await;
        *self.state.revoked.lock().unwrap() = true;
        let secret_ids = vec![credential().secret_id];
        let change = LeaseChange { version: 2, executions: vec![execution], secret_ids, heartbeat: false };
        self.state.changes.send(change).unwrap();
    }

    fn records(&self) -> Vec<Record> {
        let shipped = self.state.shipped.lock().unwrap();
        shipped
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }
}

#[tonic::async_trait]
impl Lease for Scheduler {
    async fn resolve(&self, request: Request<ResolveRequest>) -> Result<Response<ResolveReply>, Status> {
        let revoked = *self.state.revoked.lock().unwrap();
        let outcome = match revoked {
            true => Outcome::None("disabled".to_owned()),
            false => Outcome::Credential(credential()),
        };
        let resolve = |placeholder| Resolution { placeholder, outcome: Some(outcome.clone()) };
        let resolutions = request.into_inner().placeholders.into_iter().map(resolve).collect();
        Ok(Response::new(ResolveReply { resolutions, version: 1 }))
    }

    type WatchStream = std::pin::Pin<Box<dyn futures::Stream<Item = Result<LeaseChange, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchLeasesRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let changes = BroadcastStream::new(self.state.changes.subscribe());
        Ok(Response::new(Box::pin(changes.map(|change| change.map_err(|_| Status::data_loss("lagged"))))))
    }
}

#[tonic::async_trait]
impl Audit for Scheduler {
    async fn ship(&self, request: Request<ShipRequest>) -> Result<Response<ShipReply>, Status> {
        let ShipRequest { offset, records, .. } = request.into_inner();
        self.state.shipped.lock().unwrap().extend_from_slice(&records);
        Ok(Response::new(ShipReply { acked_offset: offset + records.len() as u64 }))
    }
}

/// What the agent does when the host joins.
pub(crate) fn join(process: &Dataplane, fleet: &Fleet, egress_root: &Root) {
    let directory = process.directory().join("state");
    let request = std::fs::read_to_string(directory.join("egress.csr")).unwrap();
    let certificate = fleet.sign(&request, &[], Some("roost://host/host_1/egress"));
    std::fs::write(directory.join("egress.pem"), certificate).unwrap();
    std::fs::write(directory.join("roots.pem"), &fleet.root_pem).unwrap();
    let request = std::fs::read_to_string(directory.join("egress-ca.csr")).unwrap();
    std::fs::write(directory.join("egress-ca.pem"), egress_root.sign_authority(&request)).unwrap();
}

#[test]
fn sec_07_sec_15_aud_03_from_joining_to_a_revoked_secret() {
    let world = World::build();
    lab::block_on(async {
        let (fleet, egress_root, upstream_root) = (Fleet::new(), Root::new("egress"), Root::new("upstream"));
        let (scheduler, address) = Scheduler::start(&fleet).await;
        let upstream = Upstream::https(&upstream_root, &["api.example.com"], 443, &["http/1.1"]).await;
        let temporary = tempfile::tempdir().unwrap();
        let roots = temporary.path().join("roots.pem");
        std::fs::write(&roots, upstream_root.pem()).unwrap();
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(temporary.path(), readable).unwrap();
        let process = Dataplane::start(
            "egress",
            &format!(
                "[scheduler]\naddress = \"{address}\"\n[egress]\n\
                 upstream_roots = [{{ host = \"*.example.com\", file = {roots:?} }}]\n\
                 hosts = [{{ name = \"api.example.com\", addresses = [\"{PUBLIC}\"] }}]\n"
            ),
        );
        join(&process, &fleet, &egress_root);
        let (mut agent, _) = Agent::connect(&process.control).await;
        let execution = execution();
        let sockets = world.descriptors(&process.directory().join("dns.map"));
        let reply = agent.call(attach(execution, sandbox(), 1), sockets).await;
        assert!(matches!(reply, Reply::Ack(_)), "{reply:?}");

        let guest = world.guest(egress_root);
        let ask = async || {
            let stream = guest.connect("api.example.com", 443).await;
            let stream = guest.handshake(stream, "api.example.com", &["http/1.1"]).await.ok()?;
            let request =
                HttpRequest::get("/").header("host", "api.example.com").header("x-api-key", placeholder(1));
            let reply = guest.send_http1(stream, request, "").await;
            (reply.status == 200).then(|| upstream.seen().pop().unwrap().headers["x-api-key"].clone())
        };
        let sent = async {
            loop {
                // Until the certificates are found.
                match ask().await {
                    Some(sent) => return sent,
                    None => tokio::time::sleep(Duration::from_millis(100)).await, // on purpose: polls, see the timeout
                }
            }
        };
        let sent = tokio::time::timeout(Duration::from_secs(20), sent).await.expect("the host has joined");
        assert_eq!(sent, SECRET);

        scheduler.revoke(execution.to_string()).await;
        let revoked = async { while ask().await.expect("an answer") == SECRET {} };
        tokio::time::timeout(Duration::from_secs(2), revoked).await.expect("seen within two seconds");

        let swapped = || {
            let found = scheduler.records().into_iter().find_map(|record| match record {
                Record::Intent(intent) if intent.secrets.iter().any(|used| used.swapped) => Some(intent),
                _ => None,
            });
            found.filter(|_| scheduler.records().iter().any(|record| matches!(record, Record::Completion(_))))
        };
        let intent = eventually("a shipped row", swapped).await;
        assert_eq!((intent.execution, intent.host.as_str()), (execution.to_string(), "api.example.com"));
        let shipped = scheduler.state.shipped.lock().unwrap().clone();
        assert!(!shipped.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()));

        let detach = roost_proto::dataplane::Detach { execution: execution.to_string() };
        agent.call(Message::Detach(detach), Vec::new()).await;
        // Before the answer, with which the agent closes the meter.
        match agent.notices.last() {
            Some(Reply::Traffic(traffic)) => {
                assert_eq!(traffic.execution, execution.to_string());
                assert!(
                    traffic.run > 0 && traffic.from_guest_bytes > 500 && traffic.to_guest_bytes > 500,
                    "{traffic:?}"
                );
            }
            other => panic!("{other:?}"),
        }
    });
}
