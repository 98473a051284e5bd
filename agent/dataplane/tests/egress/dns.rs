//! Names: whoever is asked, this host answers, from the address that was asked, and nothing is looked up.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use roost_domain::audit::{Action, Scheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;

use crate::lab;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const GOOGLE: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

fn query(name: &str) -> Vec<u8> {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    query.to_vec().unwrap()
}

#[test]
fn e7_any_server_that_is_asked_answers_as_itself() {
    lab::run(|lab| async move {
        for server in [GATEWAY, GOOGLE, Ipv4Addr::new(192, 168, 77, 5)] {
            let reply = lab.guest.query(server, "api.example.com.", RecordType::A).await;
            let expected = RData::A(Ipv4Addr::new(198, 18, 0, 1).into());
            assert_eq!(reply.answers[0].data, expected, "{server}: the same name, the same address");
        }
        let map = std::fs::read_to_string(lab.dns_map()).unwrap();
        assert_eq!(map, "198.18.0.1 api.example.com\n");
        assert_eq!(lab.rows().len(), 0, "a lookup is no outbound call");
    });
}

#[test]
fn e7_tcp_to_port_53_of_any_address_is_dns_too() {
    lab::run(|lab| async move {
        let mut stream = lab.guest.connect_address((GOOGLE, 53)).await.unwrap();
        let first = lab.guest.run(async move {
            let mut replies = Vec::new();
            for name in ["one.example.com.", "two.example.com."] {
                let query = query(name);
                stream.write_u16(query.len() as u16).await.unwrap();
                stream.write_all(&query).await.unwrap();
                let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut reply).await.unwrap();
                replies.push(Message::from_vec(&reply).unwrap().answers[0].data.clone());
            }
            replies
        });
        let expected = [1, 2].map(|last| RData::A(Ipv4Addr::new(198, 18, 0, last).into()));
        assert_eq!(first.await, expected);
    });
}

#[test]
fn e7_udp_to_any_other_port_vanishes() {
    lab::run(|lab| async move {
        let answered = lab.guest.run(async {
            let socket = UdpSocket::bind("10.0.0.2:0").await.unwrap();
            let mut buffer = [0; 64];
            for port in [443, 123, 5353] {
                socket.send_to(b"hello", (GOOGLE, port)).await.unwrap();
            }
            tokio::time::timeout(Duration::from_millis(300), socket.recv_from(&mut buffer)).await.is_ok()
        });
        assert!(!answered.await);
        assert_eq!(
            lab.guest.resolve("api.example.com").await,
            Ipv4Addr::new(198, 18, 0, 1),
            "and DNS goes on"
        );
    });
}

#[test]
fn e8_only_a_records_exist_and_a_denied_name_does_not() {
    lab::run(|lab| async move {
        for record_type in [RecordType::AAAA, RecordType::HTTPS, RecordType::TXT, RecordType::NULL] {
            let reply = lab.guest.query(GATEWAY, "api.example.com.", record_type).await;
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
            assert!(reply.answers.is_empty(), "{record_type}");
        }
        let reply = lab.guest.query(GATEWAY, "metadata.google.internal.", RecordType::A).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        let (intent, completion) = lab.only_row().await;
        assert_eq!((intent.scheme, intent.host.as_str()), (Scheme::Dns, "metadata.google.internal"));
        assert_eq!(
            (completion.action, completion.rejected_by.as_deref()),
            (Action::Reject, Some("denied_address"))
        );
        assert_eq!(std::fs::read_to_string(lab.dns_map()).unwrap(), "", "nothing was given an address");
    });
}

#[test]
fn e8_rubbish_gets_no_answer_and_does_no_harm() {
    lab::run(|lab| async move {
        for packet in [vec![], vec![0; 3], vec![0xff; 600], vec![0; 1400]] {
            let answer = lab.guest.send_udp(GATEWAY, packet.clone(), Duration::from_millis(200)).await;
            assert_eq!(answer, None, "{} bytes", packet.len());
        }
        lab.guest.resolve("api.example.com").await;
    });
}

#[test]
fn e8_a_flood_of_queries_is_answered_at_the_rate_of_the_execution() {
    lab::run(|lab| async move {
        let answers = lab.guest.run(async {
            let socket = UdpSocket::bind("10.0.0.2:0").await.unwrap();
            socket.connect((GATEWAY, 53)).await.unwrap();
            let (mut answers, mut buffer) = (0, [0; 512]);
            for index in 0..400 {
                socket.send(&query(&format!("n{index}.example.com."))).await.unwrap();
                while socket.try_recv(&mut buffer).is_ok() {
                    answers += 1;
                }
                tokio::task::yield_now().await;
            }
            while tokio::time::timeout(Duration::from_millis(200), socket.recv(&mut buffer)).await.is_ok() {
                answers += 1;
            }
            answers
        });
        let answers = answers.await;
        assert!((100..=200).contains(&answers), "{answers} of 400: the burst and little more");
    });
}

#[test]
fn e8_a_tunnel_through_names_carries_nothing_out() {
    lab::run(|lab| async move {
        let upstream = lab::Upstream::http(80).await;
        let long = |byte: &str, index: usize| format!("{}{index:02}", byte.repeat(61));
        for index in 0..40 {
            let name =
                format!("{}.{}.{}.tunnel.example.net.", long("a", index), long("b", index), long("c", index));
            for record_type in [RecordType::TXT, RecordType::NULL] {
                let reply = lab.guest.query(GOOGLE, &name, record_type).await;
                assert!(reply.answers.is_empty(), "{record_type}");
            }
        }
        assert_eq!(
            std::fs::read_to_string(lab.dns_map()).unwrap(),
            "",
            "no name of them was given an address"
        );
        assert_eq!(
            (lab::LOOKUPS.load(Ordering::Relaxed), lab.rows().len()),
            (0, 0),
            "nothing left this host"
        );
        // Positive control: a lookup that leads somewhere is counted.
        let stream = lab.guest.connect("api.example.com", 80).await;
        let request = http::Request::get("/").header("host", "api.example.com");
        assert_eq!(lab.guest.send_http1(stream, request, "").await.status, 200);
        assert_eq!((lab::LOOKUPS.load(Ordering::Relaxed), upstream.connections()), (1, 1));
    });
}
