//! Browsers that pretend and smuggle, guests that decide too much, and names that lead nowhere.

use std::time::Duration;

use http::StatusCode;
use roost_proto::host::RouteEntry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stage::{HOST, Stage};

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
