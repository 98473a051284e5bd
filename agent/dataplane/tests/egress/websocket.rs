//! The only upgrade there is.

use roost_domain::audit::{Action, Scheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{self, Upstream, raw_tls};

const ASK: &str = "GET /socket HTTP/1.1\r\nHost: api.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[test]
fn d7_a_granted_websocket_is_relayed_and_counted() {
    lab::run(|lab| async move {
        raw_tls(&lab.upstream_root, &["api.example.com"], 443, |mut stream| async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
            assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
            assert!(head.contains("sec-websocket-key: "), "{head}");
            let grant = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
            stream.write_all(grant.as_bytes()).await.unwrap();
            let mut frame = [0; 5];
            stream.read_exact(&mut frame).await.unwrap();
            stream.write_all(b"world!").await.unwrap();
            stream.shutdown().await.unwrap();
        })
        .await;
        let mut stream = lab.guest.connect_tls("api.example.com", 443, &["http/1.1"]).await;
        let heard = lab.guest.run(async move {
            stream.write_all(ASK.as_bytes()).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"hello").await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            (String::from_utf8(head).unwrap(), rest)
        });
        let (head, rest) = heard.await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(
            head.to_ascii_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
            "{head}"
        );
        assert_eq!(rest, b"world!");
        let (intent, completion) = lab.only_row().await;
        assert_eq!((intent.scheme, intent.path.as_deref()), (Scheme::Wss, Some("/socket")));
        assert_eq!((completion.action, completion.status_code), (Action::Tunnel, Some(101)));
        assert_eq!((completion.bytes_out, completion.bytes_in), (5, 6));
    });
}

#[test]
fn d7_a_websocket_that_is_not_granted_stays_http() {
    lab::run(|lab| async move {
        let upstream = Upstream::https(&lab.upstream_root, &["api.example.com"], 443, &["http/1.1"]).await;
        let stream = lab.guest.connect_tls("api.example.com", 443, &["http/1.1"]).await;
        let second = "GET /second HTTP/1.1\r\nHost: other.example.com\r\n\r\n";
        let answer = lab.guest.exchange(stream, format!("{ASK}{second}")).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("HTTP/1.1 421"), "{answer}");
        assert_eq!(upstream.seen().len(), 1, "what follows is parsed, not relayed");
    });
}

#[test]
fn d6_any_other_upgrade_is_dropped_and_the_request_inspected() {
    lab::run(|lab| async move {
        let upstream = Upstream::http(80).await;
        for protocol in ["h2c", "foo", "websocket, h2c"] {
            let stream = lab.guest.connect("api.example.com", 80).await;
            let ask = format!(
                "GET /up HTTP/1.1\r\nHost: api.example.com\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\n\
                 HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: other.example.com\r\n\r\n"
            );
            let answer = String::from_utf8(lab.guest.exchange(stream, ask).await).unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 200") && answer.contains("HTTP/1.1 421"),
                "{protocol}: {answer}"
            );
        }
        let seen = upstream.seen();
        assert!(seen.iter().all(|seen| seen.target == "/up"), "{seen:?}");
        assert!(seen.iter().all(
            |seen| !seen.headers.contains_key("upgrade") && !seen.headers.contains_key("http2-settings")
        ));
    });
}
