//! TLS: whom a guest believes to talk to, what it is shown, and how the real host is verified.

use std::sync::Arc;

use http::{Request, Version};
use roost_dataplane::egress::Settings;
use roost_domain::audit::{Action, Scheme};
use roost_domain::host_name::Pattern;
use roost_proto::dataplane::Origin;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use crate::lab::{self, Lab, Options, PUBLIC, Upstream, raw_tls};

async fn api(lab: &Lab) -> Upstream {
    Upstream::https(&lab.upstream_root, &["api.example.com"], 443, &["h2", "http/1.1"]).await
}

#[test]
fn a_request_goes_through_with_a_leaf_of_the_host_s_authority() {
    lab::run(|lab| async move {
        let upstream = api(&lab).await;
        let stream = lab.guest.connect_tls("api.example.com", 443, &["http/1.1"]).await;
        let chain = stream.get_ref().1.peer_certificates().unwrap().to_vec();
        assert_eq!(chain.len(), 2, "leaf and intermediate; the guest has the root");
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        assert!(leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp() <= 25 * 3600);
        let request =
            Request::post("/v1/chat?stream=1").header("host", "api.example.com").header("x-mine", "yes");
        let reply = lab.guest.send_http1(stream, request, "the body").await;
        assert_eq!((reply.status.as_u16(), reply.text()), (200, "upstream says hello"));
        assert_eq!(reply.headers.get("x-upstream").unwrap(), "1");
        assert!(!reply.headers.contains_key("alt-svc"), "no way around the proxy");

        let seen = upstream.seen().remove(0);
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/v1/chat?stream=1"));
        assert_eq!(
            (&seen.body[..], seen.headers.get("x-mine").unwrap()),
            (&b"the body"[..], &"yes".parse().unwrap())
        );
        assert_eq!(seen.version, Version::HTTP_11, "what the guest chose");

        let (intent, completion) = lab.only_row().await;
        assert_eq!(
            (intent.scheme, intent.host.as_str(), intent.port),
            (Scheme::Https, "api.example.com", 443)
        );
        assert_eq!((intent.method.as_deref(), intent.path.as_deref()), (Some("POST"), Some("/v1/chat")));
        assert_eq!(intent.execution, lab.attachment.execution.to_string());
        assert_eq!((completion.action, completion.status_code), (Action::Allow, Some(200)));
        assert_eq!((completion.bytes_out, completion.bytes_in), (8, 19));
        assert_eq!(completion.address, Some(format!("{PUBLIC}:443")));
    });
}

#[test]
fn http2_from_the_guest_is_http2_to_the_upstream_if_it_speaks_it() {
    lab::run(|lab| async move {
        let upstream = api(&lab).await;
        let request = Request::get("https://api.example.com/two");
        assert_eq!(lab.guest.https2("api.example.com", request, "").await.status, 200);
        assert_eq!(upstream.seen()[0].version, Version::HTTP_2);
    });
}

#[test]
fn http2_from_the_guest_is_http1_to_an_upstream_that_speaks_no_other() {
    lab::run(|lab| async move {
        let upstream = Upstream::https(&lab.upstream_root, &["api.example.com"], 443, &["http/1.1"]).await;
        let request =
            Request::post("https://api.example.com/one").header("cookie", "a=1").header("cookie", "b=2");
        assert_eq!(lab.guest.https2("api.example.com", request, "body").await.status, 200);
        let seen = upstream.seen().remove(0);
        assert_eq!((seen.version, &seen.body[..]), (Version::HTTP_11, &b"body"[..]));
        assert_eq!(seen.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
        assert_eq!(seen.headers.get("host").unwrap(), "api.example.com");
    });
}

#[test]
fn the_upstream_is_dialled_at_the_first_permitted_request() {
    lab::run(|lab| async move {
        let upstream = api(&lab).await;
        let stream = lab.guest.connect_tls("api.example.com", 443, &["http/1.1"]).await;
        assert_eq!(upstream.connections(), 0, "a handshake is no request");
        let request = Request::get("/").header("host", "other.example.com");
        assert_eq!(lab.guest.send_http1(stream, request, "").await.status, 421);
        assert_eq!(upstream.connections(), 0, "a refused request neither");
        assert_eq!(lab.guest.get("api.example.com", "/").await.status, 200);
        assert_eq!(upstream.connections(), 1);
    });
}

#[test]
fn c1_c4_another_name_in_the_greeting_ends_the_connection() {
    lab::run(|lab| async move {
        let upstream = api(&lab).await;
        let stream = lab.guest.connect("evil.example.net", 443).await;
        let error = lab.guest.handshake(stream, "api.example.com", &[]).await.unwrap_err();
        assert!(error.to_string().contains("UnrecognisedName"), "{error}");
        assert_eq!(upstream.connections(), 0);
        let (intent, completion) = lab.only_row().await;
        assert_eq!((intent.host.as_str(), intent.scheme), ("evil.example.net", Scheme::Tls));
        assert_eq!(completion.rejected_by.as_deref(), Some("sni_mismatch"));
        assert!(completion.detail.unwrap().contains("api.example.com"));
    });
}

#[test]
fn c3_without_a_name_in_the_greeting_the_looked_up_one_counts() {
    lab::run(|lab| async move {
        let upstream = api(&lab).await;
        let stream = lab.guest.connect("api.example.com", 443).await;
        let mut config = lab.guest.tls_config();
        config.enable_sni = false;
        let name = ServerName::try_from("api.example.com").unwrap();
        let connecting =
            async move { TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap() };
        let stream = lab.guest.run(connecting).await;
        let request = Request::get("/").header("host", "api.example.com");
        assert_eq!(lab.guest.send_http1(stream, request, "").await.status, 200);
        assert_eq!(upstream.seen().len(), 1);
    });
}

#[test]
fn c2_c15_an_address_with_a_name_in_the_greeting_is_dialled_by_name() {
    lab::run(|lab| async move {
        let upstream = api(&lab).await;
        // An address the guest chose, where nobody of ours listens: the name says where it goes.
        let attacker = "198.41.0.4".parse::<std::net::Ipv4Addr>().unwrap();
        let stream = lab.guest.connect_address((attacker, 443)).await.unwrap();
        let stream = lab.guest.handshake(stream, "api.example.com", &["http/1.1"]).await.unwrap();
        let request = Request::get("/").header("host", "api.example.com");
        assert_eq!(lab.guest.send_http1(stream, request, "").await.status, 200);
        assert_eq!(upstream.seen().len(), 1);
        let (intent, completion) = lab.only_row().await;
        assert_eq!(
            (intent.host.as_str(), completion.address),
            ("api.example.com", Some(format!("{PUBLIC}:443")))
        );
    });
}

#[test]
fn c16_an_upstream_that_is_not_who_it_should_be_gets_nothing() {
    lab::run(|lab| async move {
        let upstream = Upstream::https(&lab.upstream_root, &["other.example.com"], 443, &["http/1.1"]).await;
        let reply = lab.guest.get("api.example.com", "/").await;
        assert_eq!(reply.status, 502);
        assert!(reply.text().contains("upstream_tls"), "{}", reply.text());
        // The private root is trusted for *.example.com only.
        let reply = lab.guest.get("www.example.net", "/").await;
        assert_eq!(reply.status, 502);
        assert_eq!(upstream.seen().len(), 0);
        for row in lab.complete_rows(2).await {
            assert_eq!(row.rejected_by(), Some("upstream_tls"));
            assert_eq!(row.completion.unwrap().action, Action::Error);
        }
    });
}

#[test]
fn f7_a_bypassed_host_is_passed_through_and_recorded() {
    let bypass = vec![Pattern::parse("pinned.example.com").unwrap()];
    let settings = Settings { bypass, ..Settings::default() };
    lab::run_with(Options { settings, ..Options::default() }, |lab| async move {
        Upstream::https(&lab.upstream_root, &["pinned.example.com"], 443, &["http/1.1"]).await;
        let stream = lab.guest.connect("pinned.example.com", 443).await;
        let error = lab.guest.handshake(stream, "pinned.example.com", &[]).await.unwrap_err();
        assert!(error.to_string().contains("UnknownIssuer"), "the guest sees the real certificate: {error}");
        let (intent, completion) = lab.only_row().await;
        assert_eq!((intent.scheme, intent.host.as_str()), (Scheme::Tls, "pinned.example.com"));
        assert_eq!(completion.action, Action::Tunnel);
        assert!(completion.bytes_in > 500 && completion.bytes_out > 200, "{completion:?}");
    });
}

#[test]
fn what_cannot_be_inspected_is_refused_and_an_operator_s_own_is_not() {
    lab::run_with(Options { joined: false, ..Options::default() }, |lab| async move {
        let upstream = api(&lab).await;
        let stream = lab.guest.connect("api.example.com", 443).await;
        lab.guest.handshake(stream, "api.example.com", &[]).await.unwrap_err();
        assert_eq!(upstream.connections(), 0);
        assert_eq!(lab.only_row().await.1.rejected_by.as_deref(), Some("no_authority"));
    });
    lab::run_with(Options { joined: false, origin: Origin::Local, ..Options::default() }, |lab| async move {
        let upstream = api(&lab).await;
        let stream = lab.guest.connect("api.example.com", 443).await;
        let error = lab.guest.handshake(stream, "api.example.com", &[]).await.unwrap_err();
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");
        assert_eq!(upstream.connections(), 1);
        assert_eq!(lab.rows().len(), 0, "a local execution's rows are not shipped");
        let local = || {
            let rows = lab::rows(&lab.directory.join("audit/local"));
            (rows.len() == 1 && rows[0].completion.is_some()).then_some(())
        };
        lab::eventually("the local row", local).await;
    });
}

#[test]
fn a_guest_that_does_not_trust_the_root_leaves_a_row_that_says_so() {
    lab::run(|lab| async move {
        let upstream = api(&lab).await;
        let stream = lab.guest.connect("api.example.com", 443).await;
        let mut config = lab.guest.tls_config();
        let nobody = rustls::RootCertStore::empty();
        let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(config.crypto_provider()));
        config = builder
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(nobody)
            .with_no_client_auth();
        let name = ServerName::try_from("api.example.com").unwrap();
        let connecting =
            async move { TlsConnector::from(Arc::new(config)).connect(name, stream).await.map(drop) };
        lab.guest.run(connecting).await.unwrap_err();
        assert_eq!(lab.only_row().await.1.rejected_by.as_deref(), Some("guest_tls"));
        assert_eq!(upstream.connections(), 0);
    });
}

#[test]
fn d20_half_a_greeting_and_rubbish_are_refused() {
    lab::run(|lab| async move {
        let address = lab.guest.resolve("api.example.com").await;
        let stream = lab.guest.connect_address((address, 443)).await.unwrap();
        let record = [&b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\xff"[..], &[0; 40]].concat();
        lab.guest.exchange(stream, record).await;
        assert_eq!(lab.only_row().await.1.rejected_by.as_deref(), Some("malformed"));
    });
}

#[test]
fn d22_a_flood_of_new_names_is_stopped_at_the_rate_of_the_execution() {
    lab::run(|lab| async move {
        let attacker = "198.41.0.4".parse::<std::net::Ipv4Addr>().unwrap();
        let mut refused = 0;
        for index in 0..160 {
            let stream = lab.guest.connect_address((attacker, 443)).await.unwrap();
            let name = format!("n{index}.example.com");
            refused += usize::from(lab.guest.handshake(stream, &name, &[]).await.is_err());
        }
        assert!(refused > 10, "{refused} of 160 refused");
        let limited = || lab.rows().iter().filter(|row| row.rejected_by() == Some("limit")).count();
        lab::eventually("a row for each", || (limited() == refused).then_some(())).await;
    });
}

/// A broker that greets or answers, without any protocol by name.
async fn broker(lab: &Lab, port: u16, greets: bool) {
    raw_tls(&lab.upstream_root, &["broker.example.com"], port, move |mut stream| async move {
        if greets {
            stream.write_all(b"* OK ready\r\n").await.unwrap();
        }
        let mut asked = [0; 6];
        stream.read_exact(&mut asked).await.unwrap();
        stream.write_all(&asked).await.unwrap();
        let _ = stream.shutdown().await;
    })
    .await;
}

#[test]
fn f7_another_protocol_inside_tls_is_relayed_to_the_verified_upstream() {
    lab::run(|lab| async move {
        for (port, greets) in [(6380, false), (993, true)] {
            broker(&lab, port, greets).await;
            let mut stream = lab.guest.connect_tls("broker.example.com", port, &[]).await;
            let heard = lab.guest.run(async move {
                if greets {
                    let mut banner = [0; 12];
                    stream.read_exact(&mut banner).await.unwrap();
                    assert_eq!(&banner, b"* OK ready\r\n");
                }
                stream.write_all(b"*1\r\n$4").await.unwrap();
                let mut answer = [0; 6];
                stream.read_exact(&mut answer).await.unwrap();
                answer
            });
            assert_eq!(&heard.await, b"*1\r\n$4");
        }
        for row in lab.complete_rows(2).await {
            let completion = row.completion.unwrap();
            assert_eq!(
                (row.intent.scheme, completion.action, completion.bytes_out),
                (Scheme::Tls, Action::Tunnel, 6)
            );
        }
    });
}

#[test]
fn c16_another_protocol_inside_tls_needs_a_verified_upstream_as_well() {
    lab::run(|lab| async move {
        raw_tls(&lab.upstream_root, &["imposter.example.com"], 6380, |_| async {
            panic!("the proxy must not accept this certificate");
        })
        .await;
        let stream = lab.guest.connect_tls("broker.example.com", 6380, &[]).await;
        assert_eq!(lab.guest.exchange(stream, "*1\r\n").await, b"");
        assert_eq!(lab.only_row().await.1.rejected_by.as_deref(), Some("upstream_tls"));
    });
}

#[test]
fn http_without_a_protocol_by_name_is_inspected_even_when_it_comes_late() {
    lab::run(|lab| async move {
        Upstream::https(&lab.upstream_root, &["api.example.com"], 443, &[]).await;
        let late = Upstream::https(&lab.upstream_root, &["api.example.com"], 9443, &[]).await;
        let request = |port: &str| format!("GET / HTTP/1.1\r\nHost: other.example.com{port}\r\n\r\n");
        let stream = lab.guest.connect_tls("api.example.com", 443, &[]).await;
        assert!(lab.guest.exchange(stream, request("")).await.starts_with(b"HTTP/1.1 421"));
        let stream = lab.guest.connect_tls("api.example.com", 9443, &[]).await;
        lab::eventually("the dial for a silent guest", || (late.connections() == 1).then_some(())).await;
        assert!(lab.guest.exchange(stream, request(":9443")).await.starts_with(b"HTTP/1.1 421"));
        assert!(late.seen().is_empty());
    });
}
