//! A guest behind the real egress process, for as long as standard input is open.
//!
//! What `cargo xtask bench egress` measures. Owns namespaces, certificates, the scheduler that leases a credential,
//! and the process; neither the load nor the upstream. Says on one line of standard output, as JSON, where all is.
//! Usage: `egress-yardstick BINARY CORE_OF_EGRESS CORE_OF_THE_REST`.

#![allow(clippy::unwrap_used, reason = "a world that cannot be built cannot be measured")]
#![allow(clippy::disallowed_methods, reason = "it is the guest, and starts the process that is measured")]
#![allow(dead_code, unused_imports, reason = "the lab is the tests', of which this uses a part")]

#[path = "../support/agent.rs"]
mod agent;
#[path = "../support/fleet.rs"]
mod fleet;
mod lab;

use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use base64::Engine;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid};
use roost_proto::host::audit_server::{Audit, AuditServer};
use roost_proto::host::lease_server::{Lease, LeaseServer};
use roost_proto::host::resolution::Outcome;
use roost_proto::host::{
    LeaseChange, Resolution, ResolveReply, ResolveRequest, ShipReply, ShipRequest, WatchLeasesRequest,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use agent::{Agent, Reply, attach, execution, sandbox};
use fleet::Fleet;
use lab::{Guest, PUBLIC, Root, SECRET, World, credential, eventually, placeholder};

const NAME: &str = "api.example.com";
const HEARTBEAT: Duration = Duration::from_secs(10);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, binary, egress_core, other_core] = &arguments[..] else {
        panic!("usage: egress-yardstick BINARY CORE CORE")
    };
    let (egress_core, other_core) = (egress_core.parse().unwrap(), other_core.parse().unwrap());
    let world = World::build();
    pin(other_core);
    let directory = tempfile::Builder::new().prefix("roost-yardstick-").tempdir().unwrap();
    // The process has a uid of its own and reads its settings and roots here.
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let path = directory.path();
        let (fleet, egress_root, upstream_root) = (Fleet::new(), Root::new("egress"), Root::new("upstream"));
        write_certificates(path, &upstream_root);
        let scheduler = serve_leases(&fleet).await;
        pin(egress_core);
        let egress = Egress::start(Path::new(binary), path, scheduler);
        pin(other_core);
        let control = path.join("run/c.sock");
        eventually("the control socket", || control.exists().then_some(())).await;
        join(&path.join("state"), &fleet, &egress_root);
        let (mut agent, _) = Agent::connect(&control).await;
        let sockets = world.descriptors(&path.join("dns.map"));
        let reply = agent.call(attach(execution(), sandbox(), 1), sockets).await;
        assert!(matches!(reply, Reply::Ack(_)), "{reply:?}");

        let guest = world.guest(egress_root);
        let address = guest.resolve(NAME).await;
        until_inspected(&guest).await;
        let guest_thread = guest.run(async { gettid() }).await;
        let place = serde_json::json!({
            "directory": path, "egress_pid": egress.0.id(), "name": NAME, "address": address, "public": PUBLIC,
            "guest_thread": guest_thread.as_raw(), "world_thread": gettid().as_raw(), "placeholder": placeholder(1),
            "secret": SECRET,
        });
        println!("{place}");
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    });
}

/// This thread, and what it starts from now on.
fn pin(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cores).unwrap();
}

/// For the upstream, the proxy egress is compared with, and those who trust them.
fn write_certificates(directory: &Path, root: &Root) {
    std::fs::write(directory.join("upstream-root.pem"), root.pem()).unwrap();
    let (chain, key) = root.sign_server(&[NAME]);
    std::fs::write(directory.join("server.pem"), pem("CERTIFICATE", &chain[0])).unwrap();
    std::fs::write(directory.join("server.key"), pem("PRIVATE KEY", key.secret_der())).unwrap();
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// The process; asked to stop when this goes.
struct Egress(Child);

impl Egress {
    fn start(binary: &Path, directory: &Path, scheduler: SocketAddr) -> Self {
        let text = format!(
            "[process]\ndirectory = {:?}\ncontrol_socket = {:?}\n[log]\nlevel = \"warn\"\n\
             [scheduler]\naddress = \"{scheduler}\"\n[egress]\n\
             upstream_roots = [{{ host = {NAME:?}, file = {:?} }}]\n\
             hosts = [{{ name = {NAME:?}, addresses = [\"{PUBLIC}\"] }}]\n",
            directory.join("state"),
            directory.join("run/c.sock"),
            directory.join("upstream-root.pem"),
        );
        let settings = directory.join("egress.toml");
        std::fs::write(&settings, text).unwrap();
        Self(Command::new(binary).args(["egress", "--config"]).arg(settings).spawn().unwrap())
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// What the agent does when the host joins.
fn join(directory: &Path, fleet: &Fleet, egress_root: &Root) {
    let request = std::fs::read_to_string(directory.join("egress.csr")).unwrap();
    let certificate = fleet.sign(&request, &[], Some("roost://host/host_1/egress"));
    std::fs::write(directory.join("egress.pem"), certificate).unwrap();
    std::fs::write(directory.join("roots.pem"), &fleet.root_pem).unwrap();
    let request = std::fs::read_to_string(directory.join("egress-ca.csr")).unwrap();
    std::fs::write(directory.join("egress-ca.pem"), egress_root.sign_authority(&request)).unwrap();
}

/// Until the process has found its certificates, which it looks for every two seconds.
async fn until_inspected(guest: &Guest) {
    for _ in 0..200 {
        let stream = guest.connect(NAME, 443).await;
        if guest.handshake(stream, NAME, &["http/1.1"]).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("egress shows no certificate");
}

/// A scheduler that leases one credential and takes every row.
struct Scheduler;

async fn serve_leases(fleet: &Fleet) -> SocketAddr {
    let leaf = fleet.leaf(&["scheduler.roost.internal"], Some("roost://scheduler"));
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(leaf.certificate_pem, leaf.key_pem))
        .client_ca_root(Certificate::from_pem(&fleet.root_pem));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = Server::builder().tls_config(tls).unwrap();
    let server = server.add_service(LeaseServer::new(Scheduler)).add_service(AuditServer::new(Scheduler));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

#[tonic::async_trait]
impl Lease for Scheduler {
    async fn resolve(&self, request: Request<ResolveRequest>) -> Result<Response<ResolveReply>, Status> {
        let outcome = Some(Outcome::Credential(credential()));
        let resolve = |placeholder| Resolution { placeholder, outcome: outcome.clone() };
        let resolutions = request.into_inner().placeholders.into_iter().map(resolve).collect();
        Ok(Response::new(ResolveReply { resolutions, version: 1 }))
    }

    type WatchStream = ReceiverStream<Result<LeaseChange, Status>>;

    async fn watch(&self, _: Request<WatchLeasesRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut beat = tokio::time::interval(HEARTBEAT);
            loop {
                beat.tick().await;
                if sender.send(Ok(LeaseChange { heartbeat: true, ..LeaseChange::default() })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl Audit for Scheduler {
    async fn ship(&self, request: Request<ShipRequest>) -> Result<Response<ShipReply>, Status> {
        let ShipRequest { offset, records, .. } = request.into_inner();
        Ok(Response::new(ShipReply { acked_offset: offset + records.len() as u64 }))
    }
}
