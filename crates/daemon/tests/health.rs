//! The health server over real sockets.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test dials its own loopback server")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use roost_daemon::health::{self, Health, Registry, Settings};
use roost_daemon::shutdown::{Drained, Shutdown};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DEADLINE: Duration = Duration::from_secs(5);

struct Server {
    address: SocketAddr,
    health: Health,
    shutdown: Shutdown,
}

async fn start() -> Server {
    let mut registry = Registry::default();
    let requests = Counter::<u64>::default();
    registry.register("probes", "Probes made", requests.clone());
    requests.inc_by(3);
    let listener = health::bind(&Settings::on_port(0)).await.unwrap();
    let server =
        Server { address: listener.local_addr().unwrap(), health: Health::new(), shutdown: Shutdown::new() };
    let serving = health::serve(listener, server.health.clone(), Arc::new(registry), server.shutdown.clone());
    server.shutdown.spawn(serving);
    server
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

async fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await
}

#[tokio::test]
async fn ready_when_every_check_passes() {
    let server = start().await;
    let (store, link) = (server.health.check("store"), server.health.check("link"));
    assert!(get(server.address, "/healthz").await.starts_with("HTTP/1.1 200 "));
    let starting = get(server.address, "/readyz").await;
    assert!(starting.starts_with("HTTP/1.1 503 "), "{starting}");
    store.pass();
    link.fail("scheduler unreachable");
    let half = get(server.address, "/readyz").await;
    assert!(half.starts_with("HTTP/1.1 503 "), "{half}");
    assert!(half.ends_with("link: scheduler unreachable\nstore: ok\n"), "{half}");
    link.pass();
    let ready = get(server.address, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200 ") && server.health.is_ready(), "{ready}");
}

#[tokio::test]
async fn metrics_are_open_metrics_text() {
    let server = start().await;
    let answer = get(server.address, "/metrics").await;
    assert!(answer.contains("application/openmetrics-text"), "{answer}");
    assert!(answer.contains("probes_total 3\n") && answer.ends_with("# EOF\n"), "{answer}");
}

#[tokio::test]
async fn other_paths_methods_and_large_requests_are_refused() {
    let server = start().await;
    assert!(get(server.address, "/").await.starts_with("HTTP/1.1 404 "));
    let post = ask(server.address, "POST /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await;
    assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
    let large = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(20_000));
    assert!(ask(server.address, &large).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn connections_are_bounded_and_the_rest_goes_on() {
    let server = start().await;
    let mut idle = Vec::new();
    for _ in 0..16 {
        idle.push(TcpStream::connect(server.address).await.unwrap());
    }
    // The seventeenth is closed without an answer.
    let mut refused = TcpStream::connect(server.address).await.unwrap();
    let mut byte = [0u8; 1];
    let read = tokio::time::timeout(DEADLINE, refused.read(&mut byte)).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    drop(idle);
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let mut answer = String::new();
        let asked = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        if asked.is_ok() && stream.read_to_string(&mut answer).await.is_ok() && answer.contains(" 200 ") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "no slot came free");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn stops_when_asked() {
    let server = start().await;
    assert_eq!(server.shutdown.drain(DEADLINE).await, Drained::Complete);
}

#[tokio::test]
async fn only_loopback_unless_allowed() {
    let settings = Settings { listen: "0.0.0.0:0".parse().unwrap(), allow_remote: false };
    let error = health::bind(&settings).await.unwrap_err();
    assert!(error.to_string().contains("is not loopback"), "{error}");
}
