//! What one execution does is nobody else's: connections, identities, rows.

use http::Request;
use roost_dataplane::control::Handler;
use roost_domain::Ulid;
use roost_domain::id::ExecutionId;

use crate::lab::{self, Upstream, raw};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn e1_upstream_connections_are_reused_within_an_execution_and_not_beyond() {
    lab::run(|lab| async move {
        let upstream = Upstream::https(&lab.upstream_root, &["api.example.com"], 443, &["http/1.1"]).await;
        // The pool takes a connection back a moment after its response; until then a request opens another.
        let mut requests = 0;
        while upstream.connections() == requests {
            assert!(requests < 50, "no connection is ever used again");
            assert_eq!(lab.guest.get("api.example.com", "/").await.status, 200);
            requests += 1;
        }
        let before = upstream.connections();
        // Another execution in the place of the first, on the same host and for the same guest.
        lab.egress.detach(lab.attachment.execution).await;
        let execution = ExecutionId::from_ulid(Ulid::generate());
        let other = roost_dataplane::control::Attachment { execution, ..lab.attachment.clone() };
        lab.egress.attach(other, lab.descriptors()).await.unwrap();
        assert_eq!(lab.guest.get("api.example.com", "/").await.status, 200);
        assert_eq!(upstream.connections(), before + 1, "a connection of its own");
        let rows = lab.complete_rows(requests + 1).await;
        assert_eq!(rows[requests].intent.execution, execution.to_string(), "identity is the socket's");
        assert_eq!(rows[0].intent.execution, lab.attachment.execution.to_string());
    });
}

#[test]
fn d12_a_length_lie_on_http2_ends_the_stream_and_spares_the_upstream() {
    lab::run(|lab| async move {
        let upstream = Upstream::https(&lab.upstream_root, &["api.example.com"], 443, &["h2"]).await;
        let stream = lab.guest.connect_tls("api.example.com", 443, &["h2"]).await;
        let failed = lab.guest.run(async move {
            let (client, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            let mut client = client.ready().await.unwrap();
            let request = Request::post("https://api.example.com/lie")
                .header("content-length", "100")
                .body(())
                .unwrap();
            let (response, mut body) = client.send_request(request, false).unwrap();
            body.send_data("short".into(), true).unwrap();
            response.await.is_err()
        });
        assert!(failed.await, "the stream is reset");
        assert!(upstream.seen().iter().all(|seen| seen.body.is_empty()), "{:?}", upstream.seen());
        assert_eq!(
            lab.guest.https2("api.example.com", Request::get("https://api.example.com/"), "").await.status,
            200
        );
    });
}

/// An upstream that answers each request twice: what comes unasked must be nobody's answer.
#[test]
fn e2_e3_an_answer_too_many_reaches_nobody() {
    lab::run(|lab| async move {
        raw(80, |mut stream| async move {
            let (mut asked, mut buffer) = (0, [0; 4096]);
            while let Ok(1..) = stream.read(&mut buffer).await {
                asked += 1;
                let answer =
                    |text: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
                let both = answer(&format!("own {asked}")) + &answer("poison");
                if stream.write_all(both.as_bytes()).await.is_err() {
                    return;
                }
            }
        })
        .await;
        let ask = async || {
            let stream = lab.guest.connect("api.example.com", 80).await;
            let request = Request::get("/").header("host", "api.example.com");
            lab.guest.send_http1(stream, request, "").await.text().to_owned()
        };
        for _ in 0..5 {
            assert_eq!(ask().await, "own 1", "each on a connection nobody used before");
        }
        lab.egress.detach(lab.attachment.execution).await;
        let execution = ExecutionId::from_ulid(Ulid::generate());
        let other = roost_dataplane::control::Attachment { execution, ..lab.attachment.clone() };
        lab.egress.attach(other, lab.descriptors()).await.unwrap();
        assert_eq!(ask().await, "own 1", "and none of it reaches the next execution");
        lab.complete_rows(6).await;
    });
}
