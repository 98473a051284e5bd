//! Upstreams that send back what they were sent: the guest reads its placeholder.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use roost_domain::audit::Action;
use roost_proto::host::resolution::Outcome;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::lab::{self, Lab, Reply, SECRET, credential, placeholder, raw_tls};

async fn read_head(stream: &mut TlsStream<TcpStream>) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// `api.example.com` answers every request with these bytes, in pieces of this size.
async fn echo(lab: &Lab, answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static, piece: usize) {
    let answer = std::sync::Arc::new(answer);
    raw_tls(&lab.upstream_root, &["api.example.com"], 443, move |mut stream| {
        let answer = std::sync::Arc::clone(&answer);
        async move {
            let head = read_head(&mut stream).await;
            assert!(head.contains(SECRET), "the positive control: {head}");
            for piece in answer(&head).chunks(piece) {
                stream.write_all(piece).await.unwrap();
                stream.flush().await.unwrap();
            }
            let _ = stream.shutdown().await;
        }
    })
    .await;
}

async fn ask(lab: &Lab, request: http::request::Builder) -> Reply {
    lab.leases.set(&placeholder(1), Outcome::Credential(credential()));
    let request = request.header("authorization", format!("Bearer {}", placeholder(1)));
    lab.guest.https("api.example.com", request, "").await
}

fn with_length(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[test]
fn b1_b4_an_echoed_value_is_the_placeholder_again() {
    lab::run(|lab| async move {
        echo(&lab, |_| with_length(&format!("{{\"headers\":{{\"Authorization\":\"Bearer {SECRET}\"}}}}")), 1)
            .await;
        let reply = ask(&lab, Request::get("/headers")).await;
        let expected = format!("{{\"headers\":{{\"Authorization\":\"Bearer {}\"}}}}", placeholder(1));
        assert_eq!(reply.text(), expected);
        let (_, completion) = lab.only_row().await;
        assert_eq!(completion.action, Action::Allow);
        assert!(completion.detail.unwrap().contains("1 times"));
    });
}

#[test]
fn b2_an_encoded_echo_is_found_too() {
    lab::run(|lab| async move {
        let hex: String = SECRET.bytes().map(|byte| format!("{byte:02x}")).collect();
        let basic = STANDARD.encode(format!("user:{SECRET}"));
        let body = format!("{hex} {basic} end");
        echo(&lab, move |_| with_length(&body), 3).await;
        let reply = ask(&lab, Request::get("/")).await;
        assert!(reply.text().starts_with(&format!("{} ", placeholder(1))), "{}", reply.text());
        assert!(reply.text().ends_with(" end"), "{}", reply.text());
        let decoded = |text: &str| STANDARD.decode(text).unwrap_or_default();
        let leaks = reply
            .text()
            .split(' ')
            .any(|word| decoded(word).windows(8).any(|w| SECRET.as_bytes().starts_with(w)));
        assert!(!leaks, "{}", reply.text());
    });
}

#[test]
fn b7_headers_and_trailers_are_scrubbed() {
    lab::run(|lab| async move {
        let answer = format!(
            "HTTP/1.1 200 {SECRET}\r\nLocation: https://x.example/?key={SECRET}\r\nSet-Cookie: k={SECRET}\r\n\
             Transfer-Encoding: chunked\r\nTrailer: x-echo\r\n\r\n2\r\nok\r\n0\r\nX-Echo: {SECRET}\r\n\r\n"
        );
        echo(&lab, move |_| answer.clone().into_bytes(), 4096).await;
        lab.leases.set(&placeholder(1), Outcome::Credential(credential()));
        let stream = lab.guest.connect_tls("api.example.com", 443, &["http/1.1"]).await;
        let request = format!(
            "GET / HTTP/1.1\r\nHost: api.example.com\r\nTE: trailers\r\nAuthorization: Bearer {}\r\n\r\n",
            placeholder(1)
        );
        let answer = String::from_utf8(lab.guest.exchange(stream, request).await).unwrap();
        assert!(!answer.contains(SECRET), "{answer}");
        assert!(answer.matches(&placeholder(1)).count() >= 2, "{answer}");
    });
}

#[test]
fn b3_b6_what_cannot_be_searched_is_not_passed_on() {
    lab::run(|lab| async move {
        echo(
            &lab,
            |head| {
                let header = if head.contains("/gzip") {
                    "Content-Encoding: gzip"
                } else {
                    "Content-Type: text/plain; charset=UTF-16LE"
                };
                format!("HTTP/1.1 200 OK\r\n{header}\r\nContent-Length: 2\r\n\r\nxx").into_bytes()
            },
            4096,
        )
        .await;
        for target in ["/gzip", "/wide"] {
            let reply = ask(&lab, Request::get(target)).await;
            assert_eq!(reply.status, 502);
            assert!(reply.text().contains("unreadable_response"), "{}", reply.text());
        }
        lab.complete_rows(2).await;
    });
}

#[test]
fn b3_b5_a_request_with_a_credential_asks_for_what_can_be_searched() {
    lab::run(|lab| async move {
        echo(
            &lab,
            |head| {
                let head = head.to_ascii_lowercase();
                assert!(head.contains("accept-encoding: identity\r\n"), "{head}");
                assert!(!head.contains("range:") && !head.contains("accept-charset"), "{head}");
                with_length("fine")
            },
            4096,
        )
        .await;
        let request = Request::get("/")
            .header("range", "bytes=0-0")
            .header("if-range", "x")
            .header("accept-encoding", "br, gzip");
        assert_eq!(ask(&lab, request.header("accept-charset", "utf-16")).await.text(), "fine");
    });
}

#[test]
fn b8_an_event_of_a_stream_with_a_credential_is_not_held_back() {
    lab::run(|lab| async move {
        raw_tls(&lab.upstream_root, &["api.example.com"], 443, |mut stream| async move {
            read_head(&mut stream).await;
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(b"9\r\ndata: hi\n\r\n").await.unwrap();
            std::future::pending::<()>().await;
        })
        .await;
        lab.leases.set(&placeholder(1), Outcome::Credential(credential()));
        let mut stream = lab.guest.connect_tls("api.example.com", 443, &["http/1.1"]).await;
        let began = Instant::now();
        let heard = lab.guest.run(async move {
            let request =
                format!("GET / HTTP/1.1\r\nHost: api.example.com\r\nX-Api-Key: {}\r\n\r\n", placeholder(1));
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut heard = Vec::new();
            while !heard.windows(8).any(|window| window == b"data: hi") {
                let mut buffer = [0; 512];
                let read = stream.read(&mut buffer).await.unwrap();
                assert!(read > 0);
                heard.extend_from_slice(&buffer[..read]);
            }
        });
        tokio::time::timeout(Duration::from_secs(5), heard).await.expect("an event is passed on at once");
        assert!(began.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn responses_to_requests_without_a_credential_are_untouched() {
    lab::run(|lab| async move {
        raw_tls(&lab.upstream_root, &["api.example.com"], 443, |mut stream| async move {
            let head = read_head(&mut stream).await.to_ascii_lowercase();
            assert!(head.contains("accept-encoding: gzip") && head.contains("range: bytes=0-1"), "{head}");
            let answer =
                "HTTP/1.1 206 Partial Content\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x0b";
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
        .await;
        let request = Request::get("/").header("accept-encoding", "gzip").header("range", "bytes=0-1");
        let reply = lab.guest.https("api.example.com", request, "").await;
        assert_eq!((reply.status.as_u16(), &reply.body[..]), (206, &b"\x1f\x0b"[..]));
        assert_eq!(reply.headers.get("content-length").unwrap(), "2");
    });
}
