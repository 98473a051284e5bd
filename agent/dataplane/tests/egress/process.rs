//! The real process, confined, with its real resolver and dialler, and what it leaves when it is killed.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use http::Request;
use roost_domain::id::ExecutionId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{self, PUBLIC, Root, Row, Upstream, World, eventually, raw};
use crate::support::agent::{Agent, Reply, attach, execution, sandbox};
use crate::support::process::Dataplane;

async fn attach_to(
    process: &Dataplane,
    execution: ExecutionId,
    generation: u64,
    sockets: Vec<OwnedFd>,
) -> Agent {
    let (mut agent, _) = Agent::connect(&process.control).await;
    let reply = agent.call(attach(execution, sandbox(), generation), sockets).await;
    assert!(matches!(reply, Reply::Ack(_)), "{reply:?}");
    agent
}

fn rows(process: &Dataplane) -> Vec<Row> {
    lab::rows(&process.directory().join("state/audit/shipped"))
}

#[test]
fn f3_killed_between_dial_and_response_it_leaves_exactly_one_row_aborted() {
    let world = World::build();
    lab::block_on(async {
        raw(80, |mut stream| async move {
            let _ = tokio::io::copy(&mut stream.split().0, &mut tokio::io::sink()).await;
        })
        .await;
        let mut process = Dataplane::start("egress", "");
        let execution = execution();
        let dns_map = process.directory().join("dns.map");
        let _agent = attach_to(&process, execution, 1, world.descriptors(&dns_map)).await;
        let guest = world.guest(Root::new("nobody"));
        let mut stream = guest.connect_address((PUBLIC, 80)).await.unwrap();
        let request = format!("GET /slow HTTP/1.1\r\nHost: {PUBLIC}\r\n\r\n");
        let _stream = guest.run(async move {
            stream.write_all(request.as_bytes()).await.unwrap();
            stream
        });
        let _stream = _stream.await;
        let open = || (rows(&process).len() == 1).then_some(());
        eventually("the intent", open).await;
        assert!(rows(&process)[0].completion.is_none());
        for _ in 0..2 {
            process.kill_and_start_again("egress");
            let rows = rows(&process);
            assert_eq!(rows.len(), 1);
            assert_eq!(
                (rows[0].rejected_by(), rows[0].intent.path.as_deref()),
                (Some("aborted"), Some("/slow"))
            );
        }
    });
}

#[test]
fn the_confined_process_answers_resolves_dials_and_keeps_its_executions() {
    let world = World::build();
    lab::block_on(async {
        let upstream = Upstream::http(80).await;
        let process = Dataplane::start("egress", "");
        let execution = execution();
        let dns_map = process.directory().join("dns.map");
        let agent = attach_to(&process, execution, 1, world.descriptors(&dns_map)).await;
        let guest = world.guest(Root::new("nobody"));
        assert_eq!(guest.resolve("nowhere.example.com").await, Ipv4Addr::new(198, 18, 0, 1));
        let stream = guest.connect_address((PUBLIC, 80)).await.unwrap();
        let request = Request::get("/").header("host", PUBLIC.to_string());
        assert_eq!(guest.send_http1(stream, request, "").await.status, 200);
        // No resolver is reachable here: what counts is that asking one is permitted to the process.
        let stream = guest.connect("nowhere.example.com", 80).await;
        let request = Request::get("/").header("host", "nowhere.example.com");
        let reply = guest.send_http1(stream, request, "").await;
        assert!(reply.status == 502, "{}: {}", reply.status, reply.text());

        drop(agent);
        let stream = guest.connect_address((PUBLIC, 80)).await.unwrap();
        let request = Request::get("/").header("host", PUBLIC.to_string());
        assert_eq!(guest.send_http1(stream, request, "").await.status, 200, "it survives its agent");
        let (_, holding) = Agent::connect(&process.control).await;
        let held: Vec<_> =
            holding.executions.iter().map(|held| (held.execution.clone(), held.attach_generation)).collect();
        assert_eq!(held, [(execution.to_string(), 1)]);
        assert_eq!(upstream.seen().len(), 2);

        let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap();
        for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.contains(line), "{line}: {status}");
        }
        assert!(process.stop().success());
    });
}

#[test]
fn e15_a_connection_of_the_guest_ends_with_the_process() {
    let world = World::build();
    lab::block_on(async {
        raw(6379, |mut stream| async move {
            let _ = tokio::io::copy(&mut stream.split().0, &mut tokio::io::sink()).await;
        })
        .await;
        let mut process = Dataplane::start("egress", "");
        let dns_map = process.directory().join("dns.map");
        let _agent = attach_to(&process, execution(), 1, world.descriptors(&dns_map)).await;
        let guest = world.guest(Root::new("nobody"));
        let mut stream = guest.connect_address((PUBLIC, 6379)).await.unwrap();
        let begun = guest.run(async move {
            stream.write_all(b"*1\r\n").await.unwrap();
            stream
        });
        let mut stream = begun.await;
        eventually("the relay", || (rows(&process).len() == 1).then_some(())).await;
        process.kill_and_start_again("egress");
        let end = guest.run(async move { stream.read(&mut [0; 1]).await.unwrap_or(0) });
        assert_eq!(end.await, 0, "nothing opens when egress dies");
    });
}
