//! Requests and responses that are nobody's attack, and authorities that are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use roost_domain::audit::{Action, Scheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use tokio::sync::Barrier;

use crate::lab::{self, Guest, Lab, Upstream, raw, raw_tls};

async fn api(lab: &Lab) -> Upstream {
    Upstream::https(&lab.upstream_root, &["api.example.com"], 443, &["h2", "http/1.1"]).await
}

#[test]
fn c5_each_request_on_a_connection_is_checked_for_itself() {
    lab::run(|lab| async move {
        let upstream = Upstream::http(80).await;
        let stream = lab.guest.connect("api.example.com", 80).await;
        let pipelined = "GET /one HTTP/1.1\r\nHost: api.example.com\r\n\r\n\
                         GET /two HTTP/1.1\r\nHost: other.example.com\r\n\r\n\
                         GET /three HTTP/1.1\r\nHost: api.example.com\r\n\r\n";
        let answer = String::from_utf8(lab.guest.exchange(stream, pipelined).await).unwrap();
        let statuses: Vec<&str> =
            answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
        assert_eq!(statuses, ["200", "421"], "and the connection ends there: {answer}");
        let targets: Vec<String> = upstream.seen().into_iter().map(|seen| seen.target).collect();
        assert_eq!(targets, ["/one"]);
        let rows = lab.complete_rows(2).await;
        assert_eq!(rows[1].rejected_by(), Some("authority_mismatch"));
    });
}

#[test]
fn c6_a_stream_for_another_host_is_misdirected() {
    lab::run(|lab| async move {
        let upstream = api(&lab).await;
        for (target, status) in [
            ("https://other.example.com/", 421),
            ("https://api.example.com:8443/", 421),
            ("https://api.example.com/", 200),
        ] {
            let reply = lab.guest.https2("api.example.com", Request::get(target), "").await;
            assert_eq!(reply.status.as_u16(), status, "{target}");
        }
        let stream = lab.guest.connect_tls("api.example.com", 443, &["h2"]).await;
        let request = Request::get("https://api.example.com/").header("host", "other.example.com");
        assert_eq!(lab.guest.send_http2(stream, request, "").await.unwrap().status, 400);
        assert_eq!(upstream.seen().len(), 1);
    });
}

#[test]
fn aud_03_every_status_of_an_upstream_is_a_row() {
    lab::run(|lab| async move {
        api(&lab).await;
        for status in [200, 401, 404, 500] {
            assert_eq!(lab.guest.get("api.example.com", &format!("/status/{status}")).await.status, status);
        }
        let statuses: Vec<_> =
            lab.complete_rows(4).await.into_iter().map(|row| row.completion.unwrap().status_code).collect();
        assert_eq!(statuses, [Some(200), Some(401), Some(404), Some(500)]);
    });
}

#[test]
fn bodies_pass_whole_in_both_directions() {
    lab::run(|lab| async move {
        let upstream = api(&lab).await;
        let body = "0123456789".repeat(200_000);
        for version in [1, 2] {
            let target = format!("https://api.example.com/bytes/{}", 3_000_000 + version);
            let reply = match version {
                1 => lab.guest.https("api.example.com", Request::post(&target), &body).await,
                _ => lab.guest.https2("api.example.com", Request::post(&target), &body).await,
            };
            assert_eq!(reply.body.len(), 3_000_000 + version);
        }
        for (row, length) in lab.complete_rows(2).await.into_iter().zip([3_000_001, 3_000_002]) {
            let completion = row.completion.unwrap();
            assert_eq!((completion.bytes_out, completion.bytes_in), (2_000_000, length));
        }
        assert!(upstream.seen().iter().all(|seen| seen.body == body.as_bytes()));
    });
}

#[test]
fn answers_without_a_body_complete_their_rows() {
    lab::run(|lab| async move {
        api(&lab).await;
        for request in [Request::head("/bytes/100"), Request::get("/status/204"), Request::get("/status/304")]
        {
            lab.guest.https("api.example.com", request, "").await;
        }
        for row in lab.complete_rows(3).await {
            assert_eq!(row.completion.unwrap().action, Action::Allow);
        }
    });
}

#[test]
fn an_event_stream_is_passed_on_as_it_comes() {
    lab::run(|lab| async move {
        raw(80, |mut stream| async move {
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await.unwrap();
            let answer =
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.write_all(b"8\r\ndata: 1\n\r\n").await.unwrap();
            // The next event comes only after the guest has acknowledged the first, on this same connection's
            // life.
            std::future::pending::<()>().await;
        })
        .await;
        let mut stream = lab.guest.connect("api.example.com", 80).await;
        let heard = lab.guest.run(async move {
            stream.write_all(b"GET /events HTTP/1.1\r\nHost: api.example.com\r\n\r\n").await.unwrap();
            let mut heard = Vec::new();
            while !heard.ends_with(b"data: 1\n\r\n") {
                let mut buffer = [0; 1024];
                let read = stream.read(&mut buffer).await.unwrap();
                assert!(read > 0, "{}", heard.escape_ascii());
                heard.extend_from_slice(&buffer[..read]);
            }
        });
        tokio::time::timeout(Duration::from_secs(5), heard).await.expect("an event is not held back");
        let (_, completion) = lab.only_row().await;
        assert_eq!(completion.action, Action::ClientCancel, "the guest went away in the middle");
        assert_eq!((completion.status_code, completion.bytes_in), (Some(200), 8));
    });
}

#[test]
fn a_host_that_cannot_be_reached_is_502_with_the_reason() {
    lab::run(|lab| async move {
        for (name, reason) in [("unknown.example.com", "resolve"), ("nobody.example.com", "connect")] {
            let reply = lab.guest.get(name, "/").await;
            assert_eq!(reply.status, 502);
            assert!(reply.text().contains(reason), "{}", reply.text());
        }
        let reasons: Vec<_> =
            lab.complete_rows(2).await.iter().map(|row| row.rejected_by().unwrap().to_owned()).collect();
        assert_eq!(reasons, ["resolve", "connect"]);
    });
}

#[test]
fn d24_rubbish_from_an_upstream_is_502() {
    lab::run(|lab| async move {
        for (port, answer) in [
            (80, "SSH-2.0-not http\r\n\r\n"),
            (8080, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nhello"),
            (8000, "HTTP/1.1 200 OK\r\nTransfer-Encoding: nonsense\r\nContent-Length: 3\r\n\r\nabc"),
        ] {
            raw(port, move |mut stream| async move {
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            })
            .await;
            let stream = lab.guest.connect("api.example.com", port).await;
            let host =
                if port == 80 { "api.example.com".to_owned() } else { format!("api.example.com:{port}") };
            let reply = lab.guest.send_http1(stream, Request::get("/").header("host", host), "").await;
            assert!(reply.status == 502 || port == 8000, "{answer}: {}", reply.status);
        }
        lab.complete_rows(3).await;
    });
}

#[test]
fn d8_an_unasked_switch_of_protocols_is_502() {
    lab::run(|lab| async move {
        raw_tls(&lab.upstream_root, &["api.example.com"], 443, |mut stream| async move {
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let switch =
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nraw";
            let _ = stream.write_all(switch.as_bytes()).await;
        })
        .await;
        let reply = lab.guest.get("api.example.com", "/").await;
        assert_eq!(reply.status, 502);
        assert_eq!(lab.only_row().await.1.rejected_by.as_deref(), Some("upstream_protocol"));
    });
}

#[test]
fn http2_without_tls_is_inspected_like_any_other() {
    lab::run(|lab| async move {
        let upstream = Upstream::http(80).await;
        let stream = lab.guest.connect("api.example.com", 80).await;
        let request = Request::get("http://api.example.com/h2c");
        assert_eq!(lab.guest.send_http2(stream, request, "").await.unwrap().status, 200);
        let stream = lab.guest.connect("api.example.com", 80).await;
        let request = Request::get("http://other.example.com/h2c");
        assert_eq!(lab.guest.send_http2(stream, request, "").await.unwrap().status, 421);
        assert_eq!(upstream.seen().len(), 1);
        assert_eq!(lab.complete_rows(2).await[0].intent.scheme, Scheme::Http);
    });
}

#[test]
fn d25_a_guest_that_asks_before_it_sends_is_told_to_go_on() {
    lab::run(|lab| async move {
        let upstream = Upstream::http(80).await;
        let mut stream = lab.guest.connect("api.example.com", 80).await;
        let answer = lab.guest.run(async move {
            let head = "POST / HTTP/1.1\r\nHost: api.example.com\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut told = [0; 25];
            stream.read_exact(&mut told).await.unwrap();
            assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
            stream.write_all(b"body").await.unwrap();
            let mut status = [0; 12];
            stream.read_exact(&mut status).await.unwrap();
            status.to_vec()
        });
        assert_eq!(answer.await, b"HTTP/1.1 200");
        let seen = upstream.seen().remove(0);
        assert_eq!((&seen.body[..], seen.headers.contains_key("expect")), (&b"body"[..], false));
    });
}

#[test]
fn a_guest_with_many_requests_at_once_keeps_its_upstream_connections() {
    const AT_ONCE: usize = 48;
    lab::run(|lab| async move {
        let (opened, together) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(AT_ONCE)));
        let connections = Arc::clone(&opened);
        // Nobody is answered before all have asked.
        raw(80, move |mut stream| {
            connections.fetch_add(1, Ordering::Relaxed);
            let together = Arc::clone(&together);
            async move {
                let mut request = [0; 2048];
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    together.wait().await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            }
        })
        .await;
        // A connection goes back a moment after its answer, so some wave, not the very next, finds all of them.
        for _ in 0..20 {
            let before = opened.load(Ordering::Relaxed);
            let ask = async |guest: Guest| {
                let stream = guest.connect("api.example.com", 80).await;
                let request = Request::get("/").header("host", "api.example.com");
                assert_eq!(guest.send_http1(stream, request, "").await.status, 200);
            };
            futures::future::join_all((0..AT_ONCE).map(|_| ask(lab.guest.clone()))).await;
            if opened.load(Ordering::Relaxed) == before {
                return;
            }
        }
        panic!("every wave of {AT_ONCE} requests opens connections anew: {opened:?} by now");
    });
}
