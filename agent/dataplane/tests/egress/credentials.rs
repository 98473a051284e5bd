//! Placeholders: whose value goes where, and everywhere it does not.

use std::sync::atomic::Ordering;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use roost_domain::audit::Action;
use roost_proto::host::{Credential, LeaseChange, resolution::Outcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{self, Lab, Reply, SECRET, Upstream, credential, placeholder};

/// Both hosts of the tests, behind one server.
async fn upstream(lab: &Lab) -> Upstream {
    let names = ["api.example.com", "other.example.com"];
    Upstream::https(&lab.upstream_root, &names, 443, &["h2", "http/1.1"]).await
}

/// A placeholder that stands for [`SECRET`] in this sandbox.
fn bound(lab: &Lab, change: impl FnOnce(&mut Credential)) -> String {
    let mut leased = credential();
    change(&mut leased);
    lab.leases.set(&placeholder(1), Outcome::Credential(leased));
    placeholder(1)
}

async fn get(lab: &Lab, host: &str, header: &str, value: impl AsRef<str>) -> Reply {
    lab.guest.https(host, Request::get("/v1/models").header(header, value.as_ref()), "").await
}

/// Neither the guest nor the audit trail has seen the value; the upstream is the positive control.
fn assert_secret_only_upstream(lab: &Lab, replies: &[&Reply]) {
    for reply in replies {
        assert!(!reply.text().contains(SECRET) && !format!("{:?}", reply.headers).contains(SECRET));
    }
    for entry in std::fs::read_dir(lab.directory.join("audit/shipped")).unwrap() {
        let content = std::fs::read(entry.unwrap().path()).unwrap();
        for needle in [SECRET.to_owned(), STANDARD.encode(SECRET)] {
            assert!(!content.windows(needle.len()).any(|window| window == needle.as_bytes()));
        }
    }
}

#[test]
fn sec_07_a_placeholder_is_swapped_in_every_default_slot_and_nowhere_else() {
    lab::run(|lab| async move {
        let upstream = upstream(&lab).await;
        let ph = bound(&lab, |_| {});
        let basic = |text: String| format!("Basic {}", STANDARD.encode(text));
        let mut replies = Vec::new();
        for (header, sent, arrives) in [
            ("authorization", format!("Bearer {ph}"), format!("Bearer {SECRET}")),
            ("authorization", format!("token {ph}"), format!("token {SECRET}")),
            ("authorization", basic(format!("{ph}:")), basic(format!("{SECRET}:"))),
            ("authorization", basic(format!("x-token:{ph}")), basic(format!("x-token:{SECRET}"))),
            ("x-api-key", ph.clone(), SECRET.to_owned()),
            ("api-key", ph.clone(), SECRET.to_owned()),
            ("x-goog-api-key", ph.clone(), SECRET.to_owned()),
            ("private-token", ph.clone(), SECRET.to_owned()),
        ] {
            let reply = get(&lab, "api.example.com", header, &sent).await;
            assert_eq!(reply.status, 200, "{header}: {}", reply.text());
            let seen = upstream.seen().pop().unwrap();
            assert_eq!(seen.headers.get(header).unwrap().to_str().unwrap(), arrives, "{header}");
            replies.push(reply);
        }
        let request =
            Request::get("https://api.example.com/h2").header("authorization", format!("Bearer {ph}"));
        replies.push(lab.guest.https2("api.example.com", request, "").await);
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.headers.get("authorization").unwrap().to_str().unwrap(), format!("Bearer {SECRET}"));

        let rows = lab.complete_rows(9).await;
        let used = &rows[0].intent.secrets[0];
        assert_eq!((used.env.as_str(), used.resolved_by.as_str()), ("OPENAI_API_KEY", "external_user"));
        assert_eq!((used.location.as_deref(), used.swapped), (Some("authorization"), true));
        assert_eq!(lab.leases.asked(), 1, "one lease serves them all");
        assert_secret_only_upstream(&lab, &replies.iter().collect::<Vec<_>>());
    });
}

#[test]
fn a1_a_placeholder_for_another_host_is_refused() {
    lab::run(|lab| async move {
        let upstream = upstream(&lab).await;
        let ph = bound(&lab, |_| {});
        let reply = get(&lab, "other.example.com", "authorization", format!("Bearer {ph}")).await;
        assert_eq!(reply.status, 403);
        assert!(
            reply.text().contains("blocked_host") && reply.text().contains("allowed_hosts"),
            "{}",
            reply.text()
        );
        assert_eq!(upstream.connections(), 0);
        let (intent, completion) = lab.only_row().await;
        assert_eq!(
            (completion.action, completion.rejected_by.as_deref()),
            (Action::Reject, Some("blocked_host"))
        );
        assert_eq!(
            (intent.secrets[0].swapped, intent.secrets[0].reason.as_deref()),
            (false, Some("blocked_host"))
        );
        assert_secret_only_upstream(&lab, &[&reply]);
    });
}

#[test]
fn c15_a_placeholder_on_a_connection_by_address_is_refused() {
    lab::run(|lab| async move {
        let upstream = upstream(&lab).await;
        let ph = bound(&lab, |_| {});
        let stream = lab.guest.connect_address((std::net::Ipv4Addr::new(198, 41, 0, 4), 443)).await.unwrap();
        let stream = lab.guest.handshake(stream, "api.example.com", &["http/1.1"]).await.unwrap();
        let request = Request::get("/").header("host", "api.example.com").header("x-api-key", ph);
        assert_eq!(lab.guest.send_http1(stream, request, "").await.status, 403);
        assert_eq!(upstream.seen().len(), 0);
    });
}

#[test]
fn a2_a3_a18_a_placeholder_in_any_other_place_is_refused() {
    lab::run(|lab| async move {
        let upstream = upstream(&lab).await;
        let ph = bound(&lab, |_| {});
        let escaped: String = ph.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let requests = [
            Request::get(format!("/{ph}")),
            Request::get(format!("/?key={ph}")),
            Request::get(format!("/?key={escaped}")),
            Request::get("/").header("user-agent", &ph),
            Request::get("/").header("cookie", format!("session={ph}")),
            Request::get("/").header("x-custom", &ph),
            Request::get("/").header("sec-websocket-protocol", &ph),
            Request::get("/").header("x-api-key", format!("prefix {ph}")),
            Request::get("/").header("authorization", format!("Digest {ph}")),
        ];
        let count = requests.len();
        for request in requests {
            let what = format!("{request:?}");
            let reply = lab.guest.https("api.example.com", request, "").await;
            assert!(
                reply.status == 403 && reply.text().contains("blocked_location"),
                "{what}: {}",
                reply.text()
            );
        }
        assert_eq!(upstream.seen().len(), 0);
        for row in lab.complete_rows(count).await {
            assert_eq!(row.rejected_by(), Some("blocked_location"));
        }
    });
}

#[test]
fn dec_31_a_header_the_secret_names_becomes_a_slot() {
    lab::run(|lab| async move {
        let upstream = upstream(&lab).await;
        let ph = bound(&lab, |leased| leased.slots = vec!["Cookie".to_owned(), "X-Custom".to_owned()]);
        let request = Request::get("/").header("cookie", format!("a=1; session={ph}; b=2"));
        assert_eq!(lab.guest.https("api.example.com", request, "").await.status, 200);
        assert_eq!(get(&lab, "api.example.com", "x-custom", &ph).await.status, 200);
        let seen = upstream.seen();
        assert_eq!(
            seen[0].headers.get("cookie").unwrap().to_str().unwrap(),
            format!("a=1; session={SECRET}; b=2")
        );
        assert_eq!(seen[1].headers.get("x-custom").unwrap(), SECRET);
    });
}

#[test]
fn a5_one_refused_placeholder_refuses_the_request() {
    lab::run(|lab| async move {
        let upstream = upstream(&lab).await;
        let good = bound(&lab, |_| {});
        let other = placeholder(2);
        let elsewhere =
            Credential { allowed_hosts: vec!["elsewhere.example.com".to_owned()], ..credential() };
        lab.leases.set(&other, Outcome::Credential(elsewhere));
        let both = STANDARD.encode(format!("{good}:{other}"));
        let reply = get(&lab, "api.example.com", "authorization", format!("Basic {both}")).await;
        assert_eq!(reply.status, 403);
        assert_eq!(upstream.seen().len(), 0);
        let (intent, _) = lab.only_row().await;
        assert!(intent.secrets.iter().all(|used| !used.swapped), "nothing was swapped: {:?}", intent.secrets);
        assert_eq!(intent.secrets.len(), 2);
    });
}

#[test]
fn a6_many_occurrences_are_refused_unasked() {
    lab::run(|lab| async move {
        let upstream = upstream(&lab).await;
        let ph = bound(&lab, |_| {});
        let reply = get(&lab, "api.example.com", "x-many", vec![ph; 1000].join(",")).await;
        assert!(reply.status == 403 && reply.text().contains("occurrences"), "{}", reply.text());
        assert_eq!((upstream.seen().len(), lab.leases.asked()), (0, 0));
    });
}

#[test]
fn a8_a9_a_placeholder_of_another_sandbox_is_refused() {
    lab::run(|lab| async move {
        let upstream = upstream(&lab).await;
        lab.leases.set(&placeholder(3), Outcome::Foreign("other_lineage".to_owned()));
        let reply = get(&lab, "api.example.com", "x-api-key", placeholder(3)).await;
        assert!(reply.status == 403 && reply.text().contains("foreign_placeholder"), "{}", reply.text());
        assert_eq!(upstream.seen().len(), 0);
        assert_eq!(lab.only_row().await.1.rejected_by.as_deref(), Some("foreign_placeholder"));
    });
}

#[test]
fn sec_10_a_placeholder_without_a_secret_is_forwarded_untouched() {
    lab::run(|lab| async move {
        let upstream = upstream(&lab).await;
        let ph = placeholder(4);
        assert_eq!(get(&lab, "api.example.com", "authorization", format!("Bearer {ph}")).await.status, 200);
        assert_eq!(
            upstream.seen()[0].headers.get("authorization").unwrap().to_str().unwrap(),
            format!("Bearer {ph}")
        );
        let (intent, completion) = lab.only_row().await;
        assert_eq!(completion.action, Action::Allow);
        assert_eq!(
            (intent.secrets[0].resolved_by.as_str(), intent.secrets[0].reason.as_deref()),
            ("none", Some("no_match"))
        );
        // Stored a moment later, it is seen a moment later.
        bound(&lab, |_| {});
        lab.leases.set(&ph, Outcome::Credential(credential()));
        let arrived = async {
            loop {
                get(&lab, "api.example.com", "authorization", format!("Bearer {ph}")).await;
                let seen = upstream.seen().pop().unwrap();
                if seen.headers.get("authorization").unwrap().to_str().unwrap().ends_with(SECRET) {
                    return;
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(2), arrived).await.expect("within moments");
    });
}

#[test]
fn dec_12_an_unbound_secret_is_never_swapped() {
    lab::run(|lab| async move {
        let upstream = upstream(&lab).await;
        let ph = bound(&lab, |leased| {
            leased.unbound = true;
            leased.allowed_hosts.clear();
        });
        assert_eq!(get(&lab, "api.example.com", "x-api-key", &ph).await.status, 200);
        assert_eq!(upstream.seen()[0].headers.get("x-api-key").unwrap(), ph.as_str());
        assert_eq!(lab.only_row().await.0.secrets[0].reason.as_deref(), Some("unbound"));
    });
}

#[test]
fn c20_a_placeholder_without_tls_is_refused() {
    lab::run(|lab| async move {
        let upstream = Upstream::http(80).await;
        let ph = bound(&lab, |_| {});
        let stream = lab.guest.connect("api.example.com", 80).await;
        let request = Request::get("/").header("host", "api.example.com").header("x-api-key", ph);
        let reply = lab.guest.send_http1(stream, request, "").await;
        assert!(reply.status == 403 && reply.text().contains("plaintext"), "{}", reply.text());
        assert_eq!(upstream.seen().len(), 0);
    });
}

#[test]
fn c16_nothing_of_the_value_reaches_an_upstream_that_does_not_verify() {
    lab::run(|lab| async move {
        let upstream =
            Upstream::https(&lab.upstream_root, &["imposter.example.com"], 443, &["http/1.1"]).await;
        let ph = bound(&lab, |_| {});
        let reply = get(&lab, "api.example.com", "x-api-key", &ph).await;
        assert_eq!(reply.status, 502);
        assert_eq!(upstream.seen().len(), 0);
        assert_secret_only_upstream(&lab, &[&reply]);
    });
}

#[test]
fn a10_a19_a_pushed_change_is_seen_by_the_next_request_of_the_connection() {
    lab::run(|lab| async move {
        let upstream = upstream(&lab).await;
        let ph = bound(&lab, |_| {});
        assert_eq!(get(&lab, "api.example.com", "x-api-key", &ph).await.status, 200);
        lab.leases.set(&ph, Outcome::None("disabled".to_owned()));
        assert_eq!(get(&lab, "api.example.com", "x-api-key", &ph).await.status, 200);
        assert_eq!(upstream.seen()[1].headers.get("x-api-key").unwrap(), SECRET, "the lease still holds");
        lab.egress.forget_leases(&LeaseChange {
            version: 2,
            executions: vec![lab.attachment.execution.to_string()],
            secret_ids: vec![credential().secret_id],
            heartbeat: false,
        });
        assert_eq!(get(&lab, "api.example.com", "x-api-key", &ph).await.status, 200);
        assert_eq!(upstream.seen()[2].headers.get("x-api-key").unwrap(), ph.as_str(), "revoked");
    });
}

#[test]
fn e16_without_the_scheduler_credentials_fail_closed_and_the_rest_goes_on() {
    lab::run(|lab| async move {
        let upstream = upstream(&lab).await;
        let ph = bound(&lab, |leased| leased.expires_us = roost_daemon::clock::now_us() + 1_500_000);
        assert_eq!(get(&lab, "api.example.com", "x-api-key", &ph).await.status, 200);
        lab.leases.away.store(true, Ordering::Relaxed);
        assert_eq!(get(&lab, "api.example.com", "x-api-key", &ph).await.status, 200, "the lease holds");
        let reply = async {
            loop {
                let reply = get(&lab, "api.example.com", "x-api-key", &ph).await;
                if reply.status != 200 {
                    return reply;
                }
            }
        };
        let reply =
            tokio::time::timeout(std::time::Duration::from_secs(5), reply).await.expect("the lease ends");
        assert!(reply.status == 503 && reply.text().contains("scheduler_unavailable"), "{}", reply.text());
        let before = upstream.seen().len();
        assert_eq!(lab.guest.get("api.example.com", "/plain").await.status, 200);
        assert_eq!(upstream.seen().len(), before + 1);
    });
}

#[test]
fn a17_a_value_that_would_change_the_request_is_not_put_into_it() {
    lab::run(|lab| async move {
        let upstream = upstream(&lab).await;
        let ph = bound(&lab, |leased| leased.value = "sk\r\nX-Evil: 1".into());
        let reply = get(&lab, "api.example.com", "x-api-key", &ph).await;
        assert!(reply.status == 403 && reply.text().contains("invalid_value"), "{}", reply.text());
        assert_eq!(upstream.seen().len(), 0);
    });
}

#[test]
fn b11_a_redirect_is_the_guest_s_to_follow_and_takes_no_value_along() {
    lab::run(|lab| async move {
        let names = ["api.example.com", "other.example.com"];
        lab::raw_tls(&lab.upstream_root, &names, 443, |mut stream| async move {
            let mut request = [0; 4096];
            let count = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..count]).into_owned();
            assert!(request.contains(SECRET) && request.contains("api.example.com"), "{request}");
            let answer =
                "HTTP/1.1 302 Found\r\nLocation: https://other.example.com/\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
        .await;
        let ph = bound(&lab, |_| {});
        let reply = get(&lab, "api.example.com", "authorization", format!("Bearer {ph}")).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.headers["location"]),
            (302, &"https://other.example.com/".parse().unwrap())
        );
        assert_eq!(lab.complete_rows(1).await[0].intent.host, "api.example.com", "nothing followed it");
        let followed = get(&lab, "other.example.com", "authorization", format!("Bearer {ph}")).await;
        assert_eq!(followed.status, 403);
        assert_secret_only_upstream(&lab, &[&reply, &followed]);
    });
}

#[test]
fn b15_a_placeholder_in_trailers_goes_nowhere() {
    lab::run(|lab| async move {
        let upstream = upstream(&lab).await;
        let ph = bound(&lab, |_| {});
        let stream = lab.guest.connect_tls("api.example.com", 443, &["http/1.1"]).await;
        let request = format!(
            "POST / HTTP/1.1\r\nHost: api.example.com\r\nTransfer-Encoding: chunked\r\nTrailer: x-api-key\r\n\r\n\
             5\r\nhello\r\n0\r\nx-api-key: {ph}\r\n\r\n"
        );
        lab.guest.exchange(stream, request).await;
        for seen in upstream.seen() {
            assert_eq!(seen.body, "hello");
            assert!(seen.trailers.is_empty() && !seen.headers.contains_key("x-api-key"), "{seen:?}");
        }
        lab.complete_rows(1).await;
    });
}
