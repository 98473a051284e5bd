//! Previews over real sockets: browsers in front, the scheduler beside, a guest behind the confined process.
//!
//! Names begin with the id of the attack or requirement they are about.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the test is the browser and the operator, and dials on loopback"
)]

mod support;

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use roost_domain::id::{ExecutionId, SandboxId};
use roost_domain::token::{Claims, Kind, Scope};
use roost_proto::dataplane::Detach;
use roost_proto::guest::GUEST_RPC_PORT;
use roost_proto::host::RouteEntry;
use support::agent::{self, Agent, Message, Reply};
use support::app::App;
use support::browser::{Browser, Page, get};
use support::eventually;
use support::fleet::Fleet;
use support::guest::FakeGuest;
use support::namespace::Namespace;
use support::process::Dataplane;
use support::scheduler::{PREVIEW, Scheduler, TENANT, claims};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const HOST: &str = "3000-shop.sandbox.test";
const OWNER: &str = "host_01d39zy06fgsctvn4t2v9pkhfz";
const OTHER: &str = "host_02d39zy06fgsctvn4t2v9pkhfz";
const THIRD: &str = "host_03d39zy06fgsctvn4t2v9pkhfz";
const HTML: (&str, &str) = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
const COOKIE: &str = "__Host-miosa_pv";

/// One host with one sandbox, its server on port 3000, and a private preview of it.
struct Stage {
    process: Dataplane,
    agent: Agent,
    namespace: Namespace,
    scheduler: Scheduler,
    scheduler_address: SocketAddr,
    fleet: Fleet,
    browser: Browser,
    app: App,
    guest: FakeGuest,
    execution: ExecutionId,
    sandbox: SandboxId,
}

/// An edge of a host of the fleet, with the certificates that joining brings.
fn start_edge(fleet: &Fleet, scheduler: SocketAddr, host: &str, more: &str) -> (Dataplane, SocketAddr) {
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
    async fn new() -> Self {
        Self::with("", 30_000).await
    }

    async fn with(more: &str, lease_ms: i64) -> Self {
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

    fn route(&self) -> RouteEntry {
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
    fn publish(&self) {
        self.scheduler.set(RouteEntry { visibility: "public".into(), ..self.route() });
    }

    async fn public(self) -> Self {
        self.publish();
        eventually("the preview is public", || async {
            (self.browser.get(HOST, "/", &[]).await.status == StatusCode::OK).then_some(())
        })
        .await;
        self
    }

    async fn with_token(&self, token: &str) -> Page {
        self.browser.get(HOST, "/", &[("x-miosa-preview-token", token)]).await
    }

    /// Opens the echoing socket; the head of the answer and the connection behind it.
    async fn websocket(
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

async fn echo(socket: &mut TokioIo<hyper::upgrade::Upgraded>) {
    socket.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"PING");
}

/// How long until the other side ends the connection.
async fn time_to_end(socket: &mut TokioIo<hyper::upgrade::Upgraded>) -> Duration {
    let started = Instant::now();
    let mut rest = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(15), socket.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "the socket is still open");
    assert!(rest.is_empty());
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn dec_05_the_token_moves_from_the_address_into_a_cookie() {
    let stage = Stage::new().await;
    let token = stage.scheduler.token(600);
    for name in ["preview_token", "token", "mt", "ms"] {
        let page =
            stage.browser.get(HOST, &format!("//evil.example/x?a=1&{name}={token}&b=%20"), &[HTML]).await;
        assert_eq!(page.status, StatusCode::SEE_OTHER, "{name}: {page:?}");
        assert_eq!(page.header("location"), format!("https://{HOST}//evil.example/x?a=1&b=%20"));
        assert_eq!(page.header("referrer-policy"), "no-referrer");
        assert_eq!(page.header("cache-control"), "no-store");
        let cookie = page.header("set-cookie");
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        assert_eq!(pair, format!("{COOKIE}={token}"));
        let (path, rest) = attributes.split_once("; ").unwrap();
        let (age, flags) = rest.split_once("; ").unwrap();
        assert_eq!((path, flags), ("Path=/", "Secure; HttpOnly; SameSite=None; Partitioned"));
        let age: u64 = age.strip_prefix("Max-Age=").unwrap().parse().unwrap();
        assert!((590..=600).contains(&age), "{age}");
    }
    let before = stage.app.count();
    let page =
        stage.browser.get(HOST, "/x?a=1", &[HTML, ("cookie", &format!("own=1; {COOKIE}={token}"))]).await;
    assert_eq!(page.status, StatusCode::OK);
    assert_eq!(stage.app.count(), before + 1);
    let seen = stage.app.last();
    assert_eq!(seen.line, "GET /x?a=1");
    assert_eq!(seen.headers["cookie"], "own=1");
    assert_eq!(seen.headers["host"], HOST);
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_prv_06_the_guest_never_sees_a_credential() {
    let stage = Stage::new().await;
    let token = stage.scheduler.token(600);
    let referer = format!("https://{HOST}/a?mt={token}");
    // A program keeps no cookie: served at once, and g5: as often as it asks until the token expires.
    for _ in 0..2 {
        let page = stage
            .browser
            .get(
                HOST,
                &format!("/api?mt={token}&x=1"),
                &[
                    ("referer", &referer),
                    ("cookie", &format!("{COOKIE}={token}; a=b")),
                    ("x-miosa-preview-token", &token),
                    ("authorization", &format!("Bearer {token}")),
                ],
            )
            .await;
        assert_eq!(page.status, StatusCode::OK);
    }
    let seen = stage.app.last();
    assert_eq!(seen.line, "GET /api?x=1");
    assert!(!format!("{seen:?}").contains("Ab3dEf7h1J"), "{seen:?}");
    let form = Request::builder().method(Method::POST).uri(format!("/form?token={token}"));
    let page =
        stage.browser.fetch(HOST, form.header("accept", "text/html").body(Full::from("a=b")).unwrap()).await;
    assert_eq!((page.status, &page.body[..]), (StatusCode::OK, &b"a=b"[..]));
    assert_eq!(stage.app.last().line, "POST /form");
}

#[tokio::test(flavor = "multi_thread")]
async fn g1_prv_07_time_limits_of_a_token() {
    let stage = Stage::new().await;
    let now_s = roost_daemon::clock::now_us() / 1_000_000;
    let page = |change: fn(&mut Claims, i64)| {
        let mut claims = claims(600);
        change(&mut claims, now_s);
        let token = stage.scheduler.sign(&claims);
        let stage = &stage;
        async move { stage.with_token(&token).await }
    };
    assert_eq!(page(|_, _| {}).await.status, StatusCode::OK);
    assert_eq!(
        page(|claims, now| claims.nbf = now + 20).await.status,
        StatusCode::OK,
        "clocks differ a little"
    );
    for (change, code) in [
        (
            (|claims, now| (claims.iat, claims.exp) = (now - 700, now - 100)) as fn(&mut Claims, i64),
            "token_expired",
        ),
        (|claims, now| claims.exp = now, "token_expired"),
        (|claims, now| claims.nbf = now + 90, "invalid_token"),
        (|claims, now| claims.exp = now + 86_400 + 60, "invalid_token"),
        (|claims, _| claims.aud = "api".into(), "invalid_token"),
        (|claims, _| claims.iss = "evil".into(), "invalid_token"),
        (|claims, _| claims.typ = Kind::Terminal, "token_wrong_resource"),
    ] {
        let refused = page(change).await;
        assert!(refused.status == 401 || refused.status == 403, "{refused:?}");
        assert_eq!(refused.code(), code);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g2_a_token_signed_by_anyone_else_is_refused() {
    let stage = Stage::new().await;
    let good = stage.scheduler.token(600);
    let (other, _) = Scheduler::start(&Fleet::new()).await;
    let relabelled = good.replace("miosa_pv_Ab3d", "miosa_pv_Zz9z");
    for token in [other.token(600), relabelled, good[..good.len() - 4].to_owned() + "AAAA"] {
        let page = stage.with_token(&token).await;
        assert_eq!((page.status, page.code().as_str()), (StatusCode::UNAUTHORIZED, "invalid_token"));
    }
    let page = stage.browser.get(HOST, "/?preview_token=nonsense", &[HTML]).await;
    assert_eq!(page.status, StatusCode::UNAUTHORIZED);
    assert!(String::from_utf8_lossy(&page.body).contains("Shop &lt;Studio&gt;"), "{page:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_prv_08_tok_18_a_token_opens_one_preview_of_one_tenant() {
    let stage = Stage::new().await;
    for change in [(|claims| claims.rid = "preview_B".into()) as fn(&mut Claims), |claims| {
        claims.tenant = "ten_B".into()
    }] {
        let mut claims = claims(600);
        change(&mut claims);
        let page = stage.with_token(&stage.scheduler.sign(&claims)).await;
        assert_eq!((page.status, page.code().as_str()), (StatusCode::FORBIDDEN, "token_wrong_resource"));
    }
    let token = stage.scheduler.token(600);
    let other_port =
        stage.browser.get("3001-shop.sandbox.test", "/", &[("x-miosa-preview-token", &token)]).await;
    assert_eq!((other_port.status, other_port.code().as_str()), (StatusCode::NOT_FOUND, "preview_not_found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tok_20_looking_is_not_interacting() {
    let stage = Stage::new().await;
    let mut claims = claims(600);
    claims.scopes = vec![Scope::PreviewRead];
    let token = stage.scheduler.sign(&claims);
    let header = ("x-miosa-preview-token", token.as_str());
    assert_eq!(stage.browser.get(HOST, "/", &[header]).await.status, StatusCode::OK);
    let post = Request::post("/").header(header.0, header.1).body(Full::from("x")).unwrap();
    assert_eq!(stage.browser.fetch(HOST, post).await.code(), "insufficient_scope");
    assert_eq!(stage.websocket("/ws", &[header]).await.err().unwrap().code(), "insufficient_scope");
}

#[tokio::test(flavor = "multi_thread")]
async fn g4_dec_04_dec_06_revocation_reaches_cookies_and_open_sockets() {
    let stage = Stage::new().await;
    let cookie = format!("{COOKIE}={}", stage.scheduler.token(600));
    let cookie = ("cookie", cookie.as_str());
    let mut socket =
        stage.websocket("/ws", &[cookie, ("origin", "https://3000-shop.sandbox.test")]).await.unwrap();
    echo(&mut socket).await;
    let mut events = stage.browser.send(HOST, get("/events", &[cookie])).await.into_body();
    events.frame().await.unwrap().unwrap();

    let revoked = Instant::now();
    stage.scheduler.set(RouteEntry { share_generation: 2, ..stage.route() });
    time_to_end(&mut socket).await;
    while let Some(Ok(_)) = events.frame().await {}
    assert!(revoked.elapsed() < Duration::from_secs(2), "{:?}", revoked.elapsed());
    let page = stage.browser.get(HOST, "/", &[cookie]).await;
    assert_eq!((page.status, page.code().as_str()), (StatusCode::UNAUTHORIZED, "token_revoked"));

    let mut newer = claims(600);
    newer.generation = 2;
    assert_eq!(stage.with_token(&stage.scheduler.sign(&newer)).await.status, StatusCode::OK);
    stage.scheduler.remove(HOST);
    eventually("the preview is gone", || async {
        (stage.with_token("").await.status == StatusCode::NOT_FOUND).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g15_sockets_end_with_their_token_and_open_from_the_preview_only() {
    let stage = Stage::new().await;
    let cookie = format!("{COOKIE}={}", stage.scheduler.token(600));
    for origin in [
        "https://evil.example",
        "null",
        "https://3000-shop.sandbox.test.evil.example",
        "http://3000-shop.sandbox.test",
    ] {
        let refused = stage.websocket("/ws", &[("cookie", &cookie), ("origin", origin)]).await.err().unwrap();
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (StatusCode::FORBIDDEN, "origin_refused"),
            "{origin}"
        );
    }
    let page = stage.websocket("/ws?refuse", &[("cookie", &cookie)]).await.err().unwrap();
    assert_eq!((page.status, &page.body[..]), (StatusCode::OK, &b"not today"[..]), "stays HTTP");

    let short = stage.scheduler.token(3);
    let mut socket = stage.websocket(&format!("/ws?mt={short}"), &[]).await.unwrap();
    echo(&mut socket).await;
    let seen = stage.app.last();
    assert_eq!((seen.line.as_str(), &seen.headers["upgrade"]), ("GET /ws", &"websocket".parse().unwrap()));
    assert!(time_to_end(&mut socket).await < Duration::from_secs(4));
    assert_eq!(stage.with_token(&short).await.code(), "token_expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn g7_g8_the_applications_own_parameters_pass_and_two_tokens_do_not() {
    let stage = Stage::new().await;
    let token = stage.scheduler.token(600);
    let page = stage.browser.get(HOST, &format!("/?token=own&mt={token}&preview_token="), &[]).await;
    assert_eq!(page.status, StatusCode::OK);
    assert_eq!(stage.app.last().line, "GET /?token=own&preview_token=");
    let other = stage.scheduler.token(700);
    let page = stage.browser.get(HOST, &format!("/?token={token}&preview_token={other}"), &[]).await;
    assert_eq!((page.status, page.code().as_str()), (StatusCode::BAD_REQUEST, "bad_request"));
}

#[tokio::test(flavor = "multi_thread")]
async fn g9_g10_g22_csp_01_a_guest_decides_about_its_own_page_only() {
    let stage = Stage::new().await.public().await;
    let page = stage.browser.get(HOST, "/hostile", &[]).await;
    let all = |name: &str| page.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(
        all("content-security-policy"),
        ["default-src 'self'", "frame-ancestors 'self' https://app.example"]
    );
    assert_eq!(all("set-cookie"), ["a=1; Path=/"]);
    for name in ["x-frame-options", "strict-transport-security", "alt-svc", "clear-site-data"] {
        assert!(!page.headers.contains_key(name), "{name}");
    }
    assert_eq!((page.header("x-own"), page.header("x-robots-tag")), ("kept", "noindex"));
}

#[tokio::test(flavor = "multi_thread")]
async fn g12_g19_names_that_lead_nowhere_all_look_the_same() {
    let stage = Stage::new().await;
    let token = stage.scheduler.token(600);
    let absent = stage.browser.get("3000-other.sandbox.test", "/", &[]).await;
    assert_eq!((absent.status, absent.code().as_str()), (StatusCode::NOT_FOUND, "preview_not_found"));
    let asked = stage.scheduler.lookups();
    // Not even asked for: none can be a preview's name.
    for host in [
        "0-x.sandbox.test",
        "65536-x.sandbox.test",
        "22-.sandbox.test",
        "shop.sandbox.test",
        "10.0.0.2",
        "[::1]",
        "evil.example",
        "3000-shop.sandbox.test.",
    ] {
        let page = stage
            .browser
            .get("x.sandbox.test", "/", &[("host", host), ("x-miosa-preview-token", &token)])
            .await;
        match host {
            // The same name, written with its root dot.
            "3000-shop.sandbox.test." => assert_eq!(page.status, StatusCode::OK),
            _ => assert_eq!((page.status, &page.body), (absent.status, &absent.body), "{host}"),
        }
    }
    assert_eq!(stage.scheduler.lookups(), asked);
    // The guest's RPC port is no preview, whatever a route says.
    for (host, port) in [("1021-shop.sandbox.test", 1021), ("4000-shop.sandbox.test", 0)] {
        stage.scheduler.set(RouteEntry {
            host: host.into(),
            port,
            visibility: "public".into(),
            ..stage.route()
        });
        let page = stage.browser.get(host, "/", &[]).await;
        assert_eq!((page.status, &page.body), (absent.status, &absent.body), "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g13_g16_g18_nothing_is_believed_followed_or_kept() {
    let stage = Stage::new().await.public().await;
    let spoof = [
        ("x-forwarded-for", "10.9.9.9"),
        ("forwarded", "for=10.9.9.9"),
        ("x-real-ip", "10.9.9.9"),
        ("cookie", "a=b"),
    ];
    assert_eq!(stage.browser.get(HOST, "/", &spoof).await.status, StatusCode::OK);
    let seen = stage.app.last();
    assert!(!format!("{seen:?}").contains("10.9.9.9"), "{seen:?}");
    assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen.headers["x-forwarded-proto"], "https");

    let before = stage.app.count();
    for _ in 0..2 {
        let page = stage.browser.get(HOST, "/moved", &[]).await;
        assert_eq!((page.status, page.header("location")), (StatusCode::FOUND, "http://169.254.169.254/"));
    }
    assert_eq!(stage.app.count(), before + 2, "each answer is the guest's own");
}

#[tokio::test(flavor = "multi_thread")]
async fn g14_the_guest_sees_one_request_or_none() {
    let stage = Stage::new().await.public().await;
    for (attack, most) in [
        (
            "POST / HTTP/1.1\r\nHost: {H}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: {H}\r\n\r\n",
            1,
        ),
        (
            "POST / HTTP/1.1\r\nHost: {H}\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcGET /smuggled HTTP/1.1\r\n\r\n",
            0,
        ),
        (
            "POST / HTTP/1.1\r\nHost: {H}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
            0,
        ),
        ("GET / HTTP/1.1\r\nHost: {H}\r\nHost: other.sandbox.test\r\n\r\n", 0),
        ("GET / HTTP/1.1\r\nHost: {H}\r\nConnection: host\r\n\r\n", 0),
        ("GET / HTTP/1.1\r\nHost : {H}\r\n\r\n", 0),
        ("GET / HTTP/1.1\r\nHost: {H}\r\nX: a\r\n b\r\n\r\n", 0),
        ("CONNECT {H}:443 HTTP/1.1\r\nHost: {H}:443\r\n\r\n", 0),
        ("TRACE / HTTP/1.1\r\nHost: {H}\r\n\r\n", 0),
        (
            "GET / HTTP/1.1\r\nHost: {H}\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: {H}\r\nConnection: close\r\n\r\n",
            2,
        ),
    ] {
        let before = stage.app.count();
        let mut stream = stage.browser.connect(HOST, "http/1.1").await.unwrap();
        stream.write_all(attack.replace("{H}", HOST).as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_millis(700), stream.read_to_end(&mut answer));
        // A connection that stays open after its answer is as good as one that closes.
        let _ = read.await;
        assert!(answer.starts_with(b"HTTP/1.1 "), "{attack}");
        let arrived = stage.app.count() - before;
        assert!(arrived <= most, "{attack}: {arrived} requests arrived");
        if most < 2 {
            assert!(!format!("{:?}", stage.app.last()).contains("smuggled"), "{attack}");
        } else {
            assert!(!stage.app.last().headers.contains_key("upgrade"), "only WebSocket is switched to");
        }
    }
    let before = stage.app.count();
    let mut stream = stage.browser.connect(HOST, "http/1.1").await.unwrap();
    let huge = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Huge: {}\r\n\r\n", "a".repeat(70_000));
    stream.write_all(huge.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
    assert_eq!(stage.app.count(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn d8_a_guest_that_switches_unasked_is_a_bad_gateway() {
    let stage = Stage::new().await.public().await;
    let page = stage.browser.get(HOST, "/switch", &[]).await;
    assert_eq!(page.status, StatusCode::BAD_GATEWAY);
}

#[tokio::test(flavor = "multi_thread")]
async fn prv_09_nobody_listening_and_nothing_running_are_pages_of_ours() {
    let mut stage = Stage::new().await.public().await;
    let quiet = "3999-shop.sandbox.test";
    stage.scheduler.set(RouteEntry {
        host: quiet.into(),
        port: 3999,
        visibility: "public".into(),
        ..stage.route()
    });
    let page = stage.browser.get(quiet, "/", &[]).await;
    assert_eq!((page.status, page.code().as_str()), (StatusCode::BAD_GATEWAY, "app_not_listening"));
    let page = stage.browser.get(quiet, "/", &[HTML]).await;
    let text = String::from_utf8_lossy(&page.body);
    assert!(text.contains("Shop &lt;Studio&gt;"), "{text}");
    assert_eq!(page.headers.get_all("content-security-policy").iter().count(), 2);

    stage.agent.call(Message::Detach(Detach { execution: stage.execution.to_string() }), vec![]).await;
    let paused = RouteEntry { state: "paused".into(), execution: String::new(), ..stage.route() };
    stage.scheduler.set(RouteEntry { visibility: "public".into(), ..paused });
    eventually("the pause is known", || async {
        (stage.browser.get(HOST, "/", &[]).await.code() == "sandbox_not_running").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_who_was_admitted_wakes_the_sandbox_and_waits() {
    let mut stage = Stage::new().await;
    let resuming = RouteEntry { state: "resuming".into(), execution: String::new(), ..stage.route() };
    stage.agent.call(Message::Detach(Detach { execution: stage.execution.to_string() }), vec![]).await;
    stage.scheduler.set(RouteEntry { state: "paused".into(), ..resuming.clone() });
    eventually("the pause is known", || async {
        let page = stage.with_token(&stage.scheduler.token(600)).await;
        (page.code() == "sandbox_not_running").then_some(())
    })
    .await;
    let before = stage.scheduler.resumes().len();
    assert!(before > 0, "the scheduler was not asked");
    assert_eq!(stage.browser.get(HOST, "/", &[]).await.code(), "token_missing");
    assert_eq!(stage.scheduler.resumes().len(), before, "nobody wakes it without a token");

    stage.scheduler.set(resuming.clone());
    let (browser, token) = (stage.browser.clone(), stage.scheduler.token(600));
    let waiting =
        tokio::spawn(async move { browser.get(HOST, "/woken", &[("x-miosa-preview-token", &token)]).await });
    // Slow on purpose: long enough for an answer that does not wait.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    let next = agent::execution();
    let sockets = stage.namespace.dial_sockets(8);
    stage.agent.call(agent::attach(next, stage.sandbox, 1), sockets).await;
    stage.scheduler.set(RouteEntry { execution: next.to_string(), ..stage.route() });
    assert_eq!(waiting.await.unwrap().status, StatusCode::OK);
    assert_eq!(stage.app.last().line, "GET /woken");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_the_guests_loopback_is_reached_through_its_init() {
    let stage = Stage::new().await;
    let loopback = App::default();
    stage.guest.forward_to(5173, loopback.clone());
    let host = "5173-shop.sandbox.test";
    stage.scheduler.set(RouteEntry {
        host: host.into(),
        port: 5173,
        visibility: "public".into(),
        ..stage.route()
    });
    let body = Bytes::from(vec![b'x'; 300_000]);
    let request = Request::post("/upload").body(Full::from(body.clone())).unwrap();
    let page = stage.browser.fetch(host, request).await;
    assert_eq!((page.status, page.body == body), (StatusCode::OK, true));
    assert_eq!(loopback.last().line, "POST /upload");
    assert_eq!(
        stage.app.arrived.lock().unwrap().iter().filter(|seen| seen.line.contains("upload")).count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_stream_both_ways_over_both_protocols() {
    let stage = Stage::new().await.public().await;
    let body = Bytes::from(vec![7; 8 * 1024 * 1024]);
    let request = Request::post("/big").body(Full::from(body.clone())).unwrap();
    assert!(stage.browser.fetch(HOST, request).await.body == body, "over HTTP/1.1");
    let request = Request::post(format!("https://{HOST}/big")).body(Full::from(body.clone())).unwrap();
    let page = stage.browser.send_h2(HOST, request).await;
    assert!(page.body == body, "over HTTP/2");
    assert_eq!(page.header("content-security-policy"), "frame-ancestors 'self' https://app.example");

    // Events come as they happen, not when a buffer is full.
    let started = Instant::now();
    let mut events = stage.browser.send(HOST, get("/events", &[])).await.into_body();
    let first = events.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(&first[..], b"data: 0\n\n");
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());

    let mut socket = stage.websocket("/ws", &[]).await.unwrap();
    echo(&mut socket).await;
    echo(&mut socket).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_the_guest_are_used_again_and_never_run_out() {
    let stage = Stage::new().await.public().await;
    for round in 0..200 {
        assert_eq!(stage.browser.get(HOST, "/", &[]).await.status, StatusCode::OK, "{round}");
    }
    // One for the guest's RPC, one or two kept for the next request.
    let connections = stage.namespace.established() / 2;
    assert!(connections <= 4, "{connections} connections");
    let slow = (0..60).map(|_| stage.browser.get(HOST, "/slow", &[]));
    let pages = futures::future::join_all(slow).await;
    let served = pages.iter().filter(|page| page.status == StatusCode::OK).count();
    let busy = pages.iter().filter(|page| page.status == StatusCode::SERVICE_UNAVAILABLE).count();
    assert_eq!(served + busy, 60, "{:?}", pages.iter().map(|page| page.status).collect::<Vec<_>>());
    assert!(served >= 28, "{served} of 60 with 32 sockets");
    assert_eq!(stage.browser.get(HOST, "/", &[]).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_7_without_the_scheduler_public_goes_on_and_private_ends_with_its_lease() {
    let stage = Stage::with("", 2500).await;
    let public = "8080-shop.sandbox.test";
    stage.scheduler.set(RouteEntry { host: public.into(), visibility: "public".into(), ..stage.route() });
    assert_eq!(stage.browser.get(public, "/", &[]).await.status, StatusCode::OK);
    let token = stage.scheduler.token(600);
    assert_eq!(stage.with_token(&token).await.status, StatusCode::OK);
    stage.scheduler.go_away();
    let mut socket = stage.websocket("/ws", &[("x-miosa-preview-token", &token)]).await.unwrap();
    echo(&mut socket).await;
    assert!(time_to_end(&mut socket).await < Duration::from_secs(8));
    let page = stage.with_token(&token).await;
    assert_eq!(
        (page.status, page.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "scheduler_unavailable")
    );
    assert_eq!(stage.browser.get(public, "/", &[]).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn dec_19_strict_isolation_hides_cookies_of_the_parent_domain() {
    let stage = Stage::with("cookie_isolation = \"strict\"\n", 30_000).await.public().await;
    stage.browser.get(HOST, "/", &[("cookie", "session=parent; __Host-own=1")]).await;
    assert_eq!(stage.app.last().headers["cookie"], "__Host-own=1");
}

#[tokio::test(flavor = "multi_thread")]
async fn previews_are_served_over_ipv6_and_drain_when_asked_to_stop() {
    let mut stage = Stage::new().await.public().await;
    let ipv4 = stage.browser.address;
    stage.browser.address = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], ipv4.port()));
    assert_eq!(stage.browser.get(HOST, "/", &[]).await.status, StatusCode::OK);
    assert_eq!(stage.app.last().headers["x-forwarded-for"], "::1");

    // A request under way is answered; new connections are not.
    let browser = stage.browser.clone();
    let before = stage.app.count();
    let slow = tokio::spawn(async move { browser.get(HOST, "/slow", &[]).await });
    eventually("the request is under way", || async { (stage.app.count() > before).then_some(()) }).await;
    let stopping = tokio::task::spawn_blocking(move || stage.process.stop());
    assert_eq!(slow.await.unwrap().status, StatusCode::OK);
    assert!(stopping.await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn e11_any_edge_takes_any_preview_and_carries_it_to_its_owner_once() {
    let gateway: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut stage = Stage::with(&format!("[gateway]\nlisten = \"{gateway}\"\n"), 30_000).await;
    let owned =
        RouteEntry { owner_host_id: OWNER.into(), owner_address: gateway.to_string(), ..stage.route() };
    stage.scheduler.set(owned.clone());
    let owner = stage.browser.clone();
    // Another host, on which this sandbox is not.
    let (second, address) = start_edge(&stage.fleet, stage.scheduler_address, OTHER, "");
    stage.browser = Browser::new(address, &stage.fleet.root_pem);
    let token = stage.scheduler.token(600);
    eventually("the second edge serves", || async {
        stage.browser.connect(HOST, "http/1.1").await.ok()?;
        (stage.with_token(&token).await.status == StatusCode::OK).then_some(())
    })
    .await;

    let spoofed = [("x-miosa-preview-token", token.as_str()), ("x-roost-client", "10.9.9.9")];
    let page = stage.browser.get(HOST, "/hostile?x=1", &spoofed).await;
    assert_eq!((page.status, page.header("x-own")), (StatusCode::OK, "kept"));
    let policies = page.headers.get_all("content-security-policy").iter().count();
    assert_eq!(policies, 2, "the owner's word, once");
    let seen = stage.app.last();
    assert_eq!(
        (seen.line.as_str(), &seen.headers["x-forwarded-for"]),
        ("GET /hostile?x=1", &"127.0.0.1".parse().unwrap())
    );
    assert!(!format!("{seen:?}").contains("Ab3dEf7h1J") && !seen.headers.contains_key("x-roost-client"));
    assert_eq!(owner.get(HOST, "/", &spoofed).await.status, StatusCode::OK);
    assert_eq!(stage.app.last().headers["x-forwarded-for"], "127.0.0.1");

    let body = Bytes::from(vec![9; 2 * 1024 * 1024]);
    let upload =
        Request::post("/big").header(spoofed[0].0, spoofed[0].1).body(Full::from(body.clone())).unwrap();
    assert!(stage.browser.fetch(HOST, upload).await.body == body);
    let mut socket = stage.websocket("/ws", &spoofed).await.unwrap();
    echo(&mut socket).await;
    assert_eq!(stage.with_token("").await.code(), "token_missing");

    // At the address of a third host another one answers: it gets no request.
    stage.scheduler.set(RouteEntry { owner_host_id: THIRD.into(), ..owned.clone() });
    eventually("the move is known", || async {
        let page = stage.with_token(&token).await;
        (page.status == StatusCode::SERVICE_UNAVAILABLE).then(|| assert_eq!(page.code(), "starting"))
    })
    .await;
    echo(&mut socket).await;
    stage.scheduler.set(RouteEntry { share_generation: 2, ..owned });
    time_to_end(&mut socket).await;
    assert_eq!(stage.with_token(&token).await.code(), "token_revoked");
    assert!(second.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_how_previews_are_answered() {
    let health: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stage = Stage::with(&format!("[health]\nlisten = \"{health}\"\n"), 30_000).await;
    assert_eq!(stage.browser.get(HOST, "/", &[]).await.code(), "token_missing");
    let fetch = |path: &'static str| async move {
        let mut stream = tokio::net::TcpStream::connect(health).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let metrics = fetch("/metrics").await;
    for line in [
        "roost_edge_executions 1\n",
        "roost_edge_preview_answers_total{status=\"200\",code=\"\"} 1\n",
        "roost_edge_preview_answers_total{status=\"401\",code=\"token_missing\"} 1\n",
    ] {
        assert!(metrics.contains(line), "{line}{metrics}");
    }
    assert!(fetch("/readyz").await.contains("control: ok"));
}
