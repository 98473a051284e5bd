//! One host with one sandbox behind a preview, and what a browser does with it.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use http::StatusCode;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use roost_domain::id::{ExecutionId, SandboxId};
use roost_proto::guest::GUEST_RPC_PORT;
use roost_proto::host::RouteEntry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::agent::{self, Agent, Reply};
use crate::support::app::App;
use crate::support::browser::{Browser, Page, get};
use crate::support::eventually;
use crate::support::fleet::Fleet;
use crate::support::guest::FakeGuest;
use crate::support::namespace::Namespace;
use crate::support::process::Dataplane;
use crate::support::scheduler::{PREVIEW, Scheduler, TENANT};

pub(crate) const HOST: &str = "3000-shop.sandbox.test";
pub(crate) const OWNER: &str = "host_01d39zy06fgsctvn4t2v9pkhfz";
pub(crate) const HTML: (&str, &str) = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
pub(crate) const COOKIE: &str = "__Host-miosa_pv";

/// One host with one sandbox, its server on port 3000, and a private preview of it.
pub(crate) struct Stage {
    pub(crate) process: Dataplane,
    pub(crate) agent: Agent,
    pub(crate) namespace: Namespace,
    pub(crate) scheduler: Scheduler,
    pub(crate) scheduler_address: SocketAddr,
    pub(crate) fleet: Fleet,
    pub(crate) browser: Browser,
    pub(crate) app: App,
    pub(crate) guest: FakeGuest,
    pub(crate) execution: ExecutionId,
    pub(crate) sandbox: SandboxId,
}

/// An edge of a host of the fleet, with the certificates that joining brings.
pub(crate) fn start_edge(
    fleet: &Fleet,
    scheduler: SocketAddr,
    host: &str,
    more: &str,
) -> (Dataplane, SocketAddr) {
    let address: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = format!(
        "[scheduler]\naddress = \"localhost:{}\"\n[preview]\nlisten = [\"{address}\", \"[::1]:{}\"]\n{more}",
        scheduler.port(),
        address.port()
    );
    let process = Dataplane::start("edge", &settings);
    let directory = process.directory().join("state");
    let request = std::fs::read_to_string(directory.join("edge.csr")).unwrap();
    let name = format!("edge.{host}.roost.internal");
    let certificate = fleet.sign(&request, &[&name], Some(&format!("roost://host/{host}/edge")));
    std::fs::write(directory.join("edge.pem"), certificate).unwrap();
    std::fs::write(directory.join("roots.pem"), &fleet.root_pem).unwrap();
    let leaf = fleet.leaf(&["*.sandbox.test", "*.preview.test"], None);
    std::fs::write(directory.join("preview.key"), &leaf.key_pem).unwrap();
    std::fs::write(directory.join("preview.pem"), &leaf.certificate_pem).unwrap();
    (process, address)
}

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with("", 30_000).await
    }

    pub(crate) async fn with(more: &str, lease_ms: i64) -> Self {
        let fleet = Fleet::new();
        let (scheduler, at) = Scheduler::start(&fleet).await;
        scheduler.set_lease_ms(lease_ms);
        let (process, address) = start_edge(&fleet, at, OWNER, more);
        let namespace = Namespace::new();
        let app = App::default();
        app.serve(namespace.listen(3000));
        let guest = FakeGuest::default();
        guest.serve(namespace.listen(GUEST_RPC_PORT));
        let (mut agent, _) = Agent::connect(&process.control).await;
        let (execution, sandbox) = (agent::execution(), agent::sandbox());
        agent.call(agent::attach(execution, sandbox, 1), namespace.dial_sockets(32)).await;
        let reply = agent.call(agent::claim(execution, "token", Duration::from_secs(20)), vec![]).await;
        assert!(matches!(reply, Reply::Claimed(_)), "{reply:?}");

        let browser = Browser::new(address, &fleet.root_pem);
        let stage = Self {
            process,
            agent,
            namespace,
            scheduler,
            scheduler_address: at,
            fleet,
            browser,
            app,
            guest,
            execution,
            sandbox,
        };
        stage.scheduler.set(stage.route());
        eventually("the edge has certificates, routes and keys", || async {
            stage.browser.connect(HOST, "http/1.1").await.ok()?;
            let token = stage.scheduler.token(600);
            (stage.browser.get(HOST, &format!("/ready?mt={token}"), &[]).await.status == StatusCode::OK)
                .then_some(())
        })
        .await;
        stage
    }

    pub(crate) fn route(&self) -> RouteEntry {
        RouteEntry {
            host: HOST.into(),
            preview_id: PREVIEW.into(),
            sandbox: self.sandbox.to_string(),
            execution: self.execution.to_string(),
            state: "running".into(),
            port: 3000,
            visibility: "private".into(),
            share_generation: 1,
            tenant: TENANT.into(),
            frame_ancestors: vec!["https://app.example".into()],
            product_name: "Shop <Studio>".into(),
            ..RouteEntry::default()
        }
    }

    /// The same preview, for everybody.
    pub(crate) fn publish(&self) {
        self.scheduler.set(RouteEntry { visibility: "public".into(), ..self.route() });
    }

    pub(crate) async fn public(self) -> Self {
        self.publish();
        eventually("the preview is public", || async {
            (self.browser.get(HOST, "/", &[]).await.status == StatusCode::OK).then_some(())
        })
        .await;
        self
    }

    pub(crate) async fn with_token(&self, token: &str) -> Page {
        self.browser.get(HOST, "/", &[("x-miosa-preview-token", token)]).await
    }

    /// Opens the echoing socket; the head of the answer and the connection behind it.
    pub(crate) async fn websocket(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<TokioIo<hyper::upgrade::Upgraded>, Page> {
        let mut request = get(path, headers);
        for (name, value) in [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "13"),
        ] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let mut response = self.browser.send(HOST, request).await;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (head, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            return Err(Page { status: head.status, headers: head.headers, body });
        }
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        Ok(TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap()))
    }
}

pub(crate) async fn echo(socket: &mut TokioIo<hyper::upgrade::Upgraded>) {
    socket.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"PING");
}

/// How long until the other side ends the connection.
pub(crate) async fn time_to_end(socket: &mut TokioIo<hyper::upgrade::Upgraded>) -> Duration {
    let started = Instant::now();
    let mut rest = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(15), socket.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "the socket is still open");
    assert!(rest.is_empty());
    started.elapsed()
}
