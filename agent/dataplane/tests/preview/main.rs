//! Previews over real sockets: browsers in front, the scheduler beside, a guest behind the confined process.
//!
//! Names begin with the id of the attack or requirement they are about. Here is what a token opens and when it
//! stops; `hostile` has what browsers and guests try, `serving` what a preview does on a good or bad day.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the test is the browser and the operator, and dials on loopback"
)]

mod hostile;
mod serving;
mod stage;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use roost_domain::token::{Claims, Kind, Scope};
use roost_proto::host::RouteEntry;

use crate::stage::{COOKIE, HOST, HTML, Stage, echo, time_to_end};
use crate::support::browser::get;
use crate::support::eventually;
use crate::support::fleet::Fleet;
use crate::support::scheduler::{Scheduler, claims};

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
