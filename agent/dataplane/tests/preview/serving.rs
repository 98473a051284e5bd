//! Previews as they are served: by guests that sleep, stream and listen elsewhere, over other hosts, without the
//! scheduler, and until the edge stops.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use roost_proto::dataplane::Detach;
use roost_proto::host::RouteEntry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stage::{HOST, HTML, OWNER, Stage, echo, start_edge, time_to_end};
use crate::support::agent::{self, Message};
use crate::support::app::App;
use crate::support::browser::{Browser, get};
use crate::support::eventually;

const OTHER: &str = "host_02d39zy06fgsctvn4t2v9pkhfz";
const THIRD: &str = "host_03d39zy06fgsctvn4t2v9pkhfz";

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
