//! What one execution does is nobody else's: connections, identities, rows.

use http::Request;
use roost_dataplane::control::Handler;
use roost_domain::Ulid;
use roost_domain::id::ExecutionId;

use crate::lab::{self, Upstream};

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
