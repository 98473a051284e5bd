//! Guests that take more than they use: connections without a word, words without an end, answers nobody reads.
//!
//! The full number of idle connections comes from here; the real VM of `vm_hostile` has memory for fewer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::Request;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use roost_dataplane::control::Handler;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{self, Guest, Lab, PUBLIC, Root, Upstream, World, eventually, raw};
use crate::support::agent::{Agent, Reply, attach, execution, sandbox};
use crate::support::process::Dataplane;

const IDLE_CONNECTIONS: usize = 10_000;
/// What egress serves for one guest at once.
const SERVED: usize = 256;
const GROWTH_MAX_KIB: u64 = 64 << 10;

fn resident_kib(process: &Dataplane) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn descriptors(process: &Dataplane) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.child.id())).unwrap().count()
}

/// One request by address, which needs no resolver, and how long it took.
async fn ask(guest: &Guest) -> Duration {
    let begun = Instant::now();
    let stream = guest.connect_address((PUBLIC, 80)).await.unwrap();
    let request = Request::get("/").header("host", PUBLIC.to_string());
    assert_eq!(guest.send_http1(stream, request, "").await.status, 200);
    begun.elapsed()
}

/// Connections under way or open, on which nothing is ever said.
async fn hoard(guest: &Guest, count: usize) -> Vec<Socket> {
    let target = SocketAddr::from((PUBLIC, 443));
    guest
        .run(async move {
            let open = |_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
                socket.set_nonblocking(true).unwrap();
                // Under way, which is an error by name.
                let _ = socket.connect(&target.into());
                socket
            };
            (0..count).map(open).collect()
        })
        .await
}

#[test]
fn d21_ten_thousand_idle_connections_take_one_guest_s_places_and_no_more() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = IDLE_CONNECTIONS as u64 + 1000;
    assert!(hard >= wanted, "this test opens {wanted} files and may open {hard} (ulimit -Hn)");
    let world = World::build();
    // After the world was built: what it dials is the test's internet, and its limits are its own.
    let process = Dataplane::start("egress", "");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(wanted), hard).unwrap();
    let beside = World::beside();
    lab::block_on(async {
        let upstream = Upstream::http(80).await;
        let (mut agent, _) = Agent::connect(&process.control).await;
        for (number, world) in [&world, &beside].into_iter().enumerate() {
            let map = process.directory().join(format!("{number}.map"));
            let reply = agent.call(attach(execution(), sandbox(), 1), world.descriptors(&map)).await;
            assert!(matches!(reply, Reply::Ack(_)), "{reply:?}");
        }
        let (attacker, neighbour) = (world.guest(Root::new("nobody")), beside.guest(Root::new("nobody")));
        ask(&attacker).await;
        ask(&neighbour).await;
        assert_eq!(upstream.seen().len(), 2, "both were answered by the test's own server");
        let before = (resident_kib(&process), descriptors(&process));

        let idle = hoard(&attacker, IDLE_CONNECTIONS).await;
        let all = || (descriptors(&process) >= before.1 + SERVED - 8).then_some(());
        eventually("the attacker's places to be taken", all).await;
        for _ in 0..5 {
            ask(&neighbour).await;
        }
        let grown = resident_kib(&process).saturating_sub(before.0);
        assert!(grown < GROWTH_MAX_KIB, "{grown} KiB for {IDLE_CONNECTIONS} connections");
        let more = descriptors(&process) - before.1;
        assert!(more <= SERVED + 8, "{more} descriptors for {IDLE_CONNECTIONS} connections");

        drop(idle);
        let none = || (descriptors(&process) <= before.1 + 8).then_some(());
        eventually("the descriptors to be free again", none).await;
        ask(&attacker).await;
        assert!(process.stop().success());
    });
}

#[test]
fn d19_a_guest_that_does_not_read_holds_its_upstream_back() {
    lab::run(|lab| async move {
        let sent = Arc::new(AtomicU64::new(0));
        let counting = sent.clone();
        raw(8080, move |mut stream| {
            let sent = counting.clone();
            async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                while stream.write_all(&[b'x'; 16 << 10]).await.is_ok() {
                    sent.fetch_add(16 << 10, Ordering::Relaxed);
                }
            }
        })
        .await;
        let mut stream = lab.guest.connect("api.example.com", 8080).await;
        let begun = lab.guest.run(async move {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: api.example.com:8080\r\n\r\n").await.unwrap();
            // One byte at a time, a few of them.
            for _ in 0..50 {
                stream.read_u8().await.unwrap();
            }
            stream
        });
        let stream = begun.await;
        let (mut last, mut still) = (0, 0);
        while still < 50 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = sent.load(Ordering::Relaxed);
            still = if now == last { still + 1 } else { 0 };
            last = now;
        }
        assert!(last < 16 << 20, "{last} bytes are under way to a guest that does not read");
        drop(stream);
        lab.complete_rows(1).await;
    });
}

/// Half of what each protocol begins with, then a byte at a time.
async fn drip(lab: &Lab, port: u16, begin: &'static [u8]) -> tokio::task::JoinHandle<Duration> {
    let stream = lab.guest.connect("slow.example.com", port).await;
    let guest = lab.guest.clone();
    let begun = Instant::now();
    tokio::spawn(async move {
        let dripping = guest.run(async move {
            let (mut read, mut write) = stream.into_split();
            if write.write_all(begin).await.is_err() {
                return;
            }
            let mut buffer = [0; 1024];
            let mut drops = tokio::time::interval(Duration::from_millis(500));
            loop {
                tokio::select! {
                    // An alert or an answer comes before the end.
                    count = read.read(&mut buffer) => if !matches!(count, Ok(1..)) { return },
                    _ = drops.tick() => if write.write_all(b"x").await.is_err() { return },
                }
            }
        });
        dripping.await;
        begun.elapsed()
    })
}

#[test]
fn d20_who_is_slow_waits_alone_and_not_for_ever() {
    lab::run(|lab| async move {
        Upstream::http(80).await;
        let mut tls = Vec::new();
        let mut others = Vec::new();
        for _ in 0..40 {
            // A greeting of 512 bytes of which ten came; a head; a body.
            tls.push(drip(&lab, 443, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03").await);
            others.push(drip(&lab, 80, b"GET /slow HTTP/1.1\r\nHost: slow.exa").await);
            let upload = b"POST / HTTP/1.1\r\nHost: slow.example.com\r\nContent-Length: 100000\r\n\r\n";
            others.push(drip(&lab, 80, upload).await);
        }
        for _ in 0..5 {
            let stream = lab.guest.connect("api.example.com", 80).await;
            let request = Request::get("/").header("host", "api.example.com");
            assert_eq!(lab.guest.send_http1(stream, request, "").await.status, 200);
        }
        // The greeting has its time, however many bytes still come.
        for slow in tls {
            let took = tokio::time::timeout(Duration::from_secs(30), slow).await.expect("an end").unwrap();
            assert!(took > Duration::from_secs(5), "{took:?}");
        }
        // A detach ends all others at once.
        lab.egress.detach(lab.attachment.execution).await;
        for slow in others {
            tokio::time::timeout(Duration::from_secs(10), slow).await.expect("an end").unwrap();
        }
    });
}
