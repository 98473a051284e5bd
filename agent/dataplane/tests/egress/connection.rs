//! Where a connection may go, and what is neither TLS nor HTTP.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use http::Request;
use roost_dataplane::egress::{Host, Settings};
use roost_domain::audit::{Action, Scheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::lab::{self, Lab, Options, PUBLIC, Upstream, raw};

/// Connects, writes, and says how the connection ended.
async fn ends(lab: &Lab, address: Ipv4Addr, port: u16, bytes: &'static [u8]) -> ErrorKind {
    match lab.guest.connect_address((address, port)).await {
        Ok(stream) => lab.guest.run(end_of(stream, bytes)).await,
        // The reset may come before the guest has looked at its connection.
        Err(error) => error.kind(),
    }
}

async fn end_of(mut stream: TcpStream, bytes: &'static [u8]) -> ErrorKind {
    // A reset that comes before the write is told to the write, and to nobody after it.
    if let Err(error) = stream.write_all(bytes).await {
        return error.kind();
    }
    match stream.read(&mut [0; 16]).await {
        Ok(0) => ErrorKind::UnexpectedEof,
        Ok(_) => panic!("an answer"),
        Err(error) => error.kind(),
    }
}

#[test]
fn an_address_that_was_never_given_for_a_name_is_refused() {
    lab::run(|lab| async move {
        let end = ends(&lab, Ipv4Addr::new(198, 18, 0, 9), 443, b"no greeting of TLS\n").await;
        assert_eq!(end, ErrorKind::ConnectionReset);
        let (intent, completion) = lab.only_row().await;
        assert_eq!((intent.host.as_str(), intent.port), ("198.18.0.9", 443));
        assert_eq!(completion.rejected_by.as_deref(), Some("unknown_address"));
    });
}

#[test]
fn e9_c13_c14_every_forbidden_address_meets_the_listener_and_is_refused() {
    lab::run(|lab| async move {
        let forbidden = ["10.0.0.1", "169.254.169.254", "192.168.0.1", "168.63.129.16", "100.64.0.1"];
        for address in forbidden {
            let end = ends(&lab, address.parse().unwrap(), 22, b"").await;
            assert_eq!(end, ErrorKind::ConnectionReset, "{address}");
        }
        for (row, address) in lab.complete_rows(forbidden.len()).await.iter().zip(forbidden) {
            assert_eq!((row.intent.host.as_str(), row.rejected_by()), (address, Some("denied_address")));
            let completion = row.completion.as_ref().unwrap();
            assert_eq!((completion.action, &completion.address), (Action::Reject, &None));
        }
    });
}

#[test]
fn c11_c12_names_that_lead_inside_are_refused_where_they_are_dialled() {
    lab::run(|lab| async move {
        for name in ["rebound.example.com", "half.example.com", "mapped.example.com"] {
            let reply = lab.guest.get(name, "/").await;
            assert_eq!(reply.status, 403, "{name}: {}", reply.text());
            assert!(reply.text().contains("denied_address"), "{}", reply.text());
        }
        for row in lab.complete_rows(3).await {
            let completion = row.completion.unwrap();
            assert_eq!((completion.action, completion.status_code), (Action::Reject, Some(403)));
        }
    });
}

#[test]
fn e9_outgoing_mail_is_closed() {
    lab::run(|lab| async move {
        let address = lab.guest.resolve("api.example.com").await;
        assert_eq!(ends(&lab, address, 25, b"").await, ErrorKind::ConnectionReset);
        let (_, completion) = lab.only_row().await;
        assert_eq!(completion.rejected_by.as_deref(), Some("policy"));
    });
}

#[test]
fn c15_a_public_address_may_be_dialled_as_it_stands() {
    lab::run(|lab| async move {
        let upstream = Upstream::http(80).await;
        let stream = lab.guest.connect_address((PUBLIC, 80)).await.unwrap();
        let request = Request::get("/").header("host", PUBLIC.to_string());
        assert_eq!(lab.guest.send_http1(stream, request, "").await.status, 200);
        assert_eq!(upstream.seen().len(), 1);
        // But not under a name: whose that address is, the guest does not decide.
        let stream = lab.guest.connect_address((PUBLIC, 80)).await.unwrap();
        let request = Request::get("/").header("host", "api.example.com");
        assert_eq!(lab.guest.send_http1(stream, request, "").await.status, 421);
        assert_eq!(upstream.seen().len(), 1);
    });
}

#[test]
fn f7_opaque_bytes_are_relayed_and_counted() {
    lab::run(|lab| async move {
        raw(6379, |mut stream| async move {
            let mut buffer = [0; 14];
            stream.read_exact(&mut buffer).await.unwrap();
            assert_eq!(&buffer, b"*1\r\n$4\r\nPING\r\n");
            stream.write_all(b"+PONG\r\n").await.unwrap();
        })
        .await;
        let stream = lab.guest.connect("redis.example.com", 6379).await;
        assert_eq!(lab.guest.exchange(stream, "*1\r\n$4\r\nPING\r\n").await, b"+PONG\r\n");
        let (intent, completion) = lab.only_row().await;
        assert_eq!((intent.scheme, intent.host.as_str()), (Scheme::Tcp, "redis.example.com"));
        assert_eq!((completion.action, completion.bytes_in, completion.bytes_out), (Action::Tunnel, 7, 14));
        assert_eq!(completion.address, Some(format!("{PUBLIC}:6379")));
    });
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    lab::run(|lab| async move {
        for port in [22, 9999] {
            raw(port, |mut stream| async move {
                stream.write_all(b"SSH-2.0-upstream\r\n").await.unwrap();
                let mut buffer = [0; 4];
                stream.read_exact(&mut buffer).await.unwrap();
                stream.write_all(&buffer).await.unwrap();
            })
            .await;
            let mut stream = lab.guest.connect("git.example.com", port).await;
            let heard = lab.guest.run(async move {
                let mut banner = [0; 18];
                stream.read_exact(&mut banner).await.unwrap();
                stream.write_all(b"ping").await.unwrap();
                let mut echo = [0; 4];
                stream.read_exact(&mut echo).await.unwrap();
                (banner.to_vec(), echo.to_vec())
            });
            assert_eq!(heard.await, (b"SSH-2.0-upstream\r\n".to_vec(), b"ping".to_vec()));
        }
        lab.complete_rows(2).await;
    });
}

#[test]
fn silence_is_no_way_around_inspection() {
    lab::run(|lab| async move {
        let upstream = Upstream::http(9000).await;
        let stream = lab.guest.connect("api.example.com", 9000).await;
        let connected = || (upstream.connections() == 1).then_some(());
        lab::eventually("the dial for a silent guest", connected).await;
        let request = "GET /late HTTP/1.1\r\nHost: other.example.com:9000\r\n\r\n";
        let answer = lab.guest.exchange(stream, request).await;
        assert!(answer.starts_with(b"HTTP/1.1 421"), "{}", answer.escape_ascii());
        assert_eq!(upstream.seen().len(), 0, "what a silent guest says late is inspected all the same");
        let rows = lab.complete_rows(2).await;
        assert_eq!([rows[0].intent.scheme, rows[1].intent.scheme], [Scheme::Tcp, Scheme::Http]);
    });
}

#[test]
fn d21_a_guest_at_its_limit_waits_for_its_own_connections() {
    lab::run(|lab| async move {
        raw(7000, |mut stream| async move {
            let _ = tokio::io::copy(&mut stream.split().0, &mut tokio::io::sink()).await;
        })
        .await;
        Upstream::http(80).await;
        let mut held = Vec::new();
        for _ in 0..256 {
            held.push(lab.guest.connect("many.example.com", 7000).await);
        }
        let all = || (lab.rows().len() == 256).then_some(());
        lab::eventually("256 relayed connections", all).await;
        let stream = lab.guest.connect("api.example.com", 80).await;
        let guest = lab.guest.clone();
        let waiting = tokio::spawn(async move {
            let request = Request::get("/").header("host", "api.example.com");
            guest.send_http1(stream, request, "").await.status
        });
        // Waits on purpose: that nothing happens takes time to see.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!waiting.is_finished(), "there is no place for it");
        held.pop();
        assert_eq!(waiting.await.unwrap(), 200);
    });
}

#[test]
fn c18_what_is_no_host_name_is_no_host() {
    for text in
        ["api.example.com\0.evil.example", "a\r\nb", "a@b", "a%00b", "a b", "1.2.3", &"a.".repeat(200)]
    {
        assert!(Host::parse(text).is_err(), "{}", text.escape_debug());
    }
}

#[test]
fn c13_every_metadata_service_is_refused_by_address_and_by_name() {
    lab::run(|lab| async move {
        let addresses = [
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "169.254.169.123",
            "169.254.0.23",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
        ];
        for address in addresses {
            let stream = lab.guest.connect_address((address.parse::<Ipv4Addr>().unwrap(), 80)).await.unwrap();
            let request = Request::get("/latest/meta-data/").header("host", address);
            assert_eq!(lab.guest.send_http1(stream, request, "").await.status, 403, "{address}");
        }
        let names = [
            "metadata",
            "instance-data",
            "metadata.google.internal",
            "x.metadata.google.internal",
            "metadata.goog",
            "metadata.azure.internal",
            "instance-data.ec2.internal",
        ];
        for name in names {
            let reply = lab.guest.query(Ipv4Addr::new(10, 0, 0, 1), &format!("{name}."), RecordType::A).await;
            assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
        }
        let rows = lab.complete_rows(addresses.len() + names.len()).await;
        for (row, host) in rows.iter().zip(addresses.iter().chain(&names)) {
            assert_eq!((row.intent.host.as_str(), row.rejected_by()), (*host, Some("denied_address")));
            assert_eq!(row.completion.as_ref().unwrap().address, None, "refused before the dial");
        }
        assert_eq!(lab::LOOKUPS.load(Ordering::Relaxed), 0, "nobody was even asked for a name");
    });
}

#[test]
fn c14_e11_the_installation_s_own_public_addresses_are_closed_to_guests() {
    let own_addresses = vec![format!("{PUBLIC}/32").parse().unwrap()];
    let settings = Settings { own_addresses, ..Settings::default() };
    lab::run_with(Options { settings, ..Options::default() }, |lab| async move {
        let upstream = Upstream::http(80).await;
        // A preview of another tenant, or the guest's own: by name, and by address.
        let stream = lab.guest.connect("3000-mine.example.com", 80).await;
        let request = Request::get("/").header("host", "3000-mine.example.com");
        assert_eq!(lab.guest.send_http1(stream, request, "").await.status, 403);
        assert_eq!(ends(&lab, PUBLIC, 9443, b"\0").await, ErrorKind::ConnectionReset);
        for row in lab.complete_rows(2).await {
            assert_eq!(row.rejected_by(), Some("denied_address"), "{row:?}");
        }
        assert_eq!(upstream.connections(), 0);
    });
}
