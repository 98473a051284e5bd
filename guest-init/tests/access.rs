//! Who may talk to a guest: the peer, the token, the epoch, and which connections outlive a restore.
#![allow(clippy::disallowed_methods, reason = "the test is the peer")]

mod harness;

use std::net::{Ipv4Addr, SocketAddr};

use harness::{Server, TOKEN, claim, personalisation, run, shell};
use roost_proto::guest::{Personalisation, PersonaliseRequest, StatusRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request};

const CONTRACT: &str = include_str!("../../crates/proto/proto/roost/guest.proto");
const NEW_TOKEN: &str = "test-token-after-a-restore-1234567890";

/// Every call of the contract, so that a new one is checked as soon as it is declared.
fn calls() -> Vec<&'static str> {
    let calls: Vec<_> =
        CONTRACT.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next()).collect();
    assert!(calls.len() > 15 && calls.contains(&"Exec"), "the contract is read: {calls:?}");
    calls
}

/// Calls by name with an empty message.
async fn call(channel: &Channel, name: &str) -> Code {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("connected");
    let path = PathAndQuery::try_from(format!("/roost.guest.v1.Guest/{name}")).expect("valid");
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    match client.unary(Request::new(()), path, codec).await {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}

#[tokio::test]
async fn every_call_but_the_first_needs_the_token() {
    let server = Server::start().await;
    let channel = server.channel().await;
    let others = || calls().into_iter().filter(|name| !["Claim", "Personalise"].contains(name));
    for name in others() {
        assert_eq!(call(&channel, name).await, Code::FailedPrecondition, "{name} before the claim");
    }
    server.client(TOKEN).await.claim(claim(TOKEN, 1)).await.expect("claim");
    for name in others() {
        assert_eq!(call(&channel, name).await, Code::Unauthenticated, "{name} without the token");
    }
    let mut stranger = server.client("another-token-of-the-same-length-00").await;
    assert_eq!(stranger.status(StatusRequest {}).await.expect_err("refused").code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_claim_is_repeatable_by_its_owner_only() {
    let (_server, mut client) = Server::claimed().await;
    client.claim(claim(TOKEN, 1)).await.expect("the identical repeat");
    let code = |result: Result<_, tonic::Status>| result.map(drop).expect_err("refused").code();
    assert_eq!(code(client.claim(claim(NEW_TOKEN, 2)).await), Code::Unauthenticated);
    assert_eq!(code(client.claim(claim(TOKEN, 2)).await), Code::FailedPrecondition);
    assert_eq!(client.status(StatusRequest {}).await.expect("still ours").into_inner().epoch, 1);
}

#[tokio::test]
async fn a_personalisation_that_is_not_complete_changes_nothing() {
    let server = Server::start().await;
    let mut client = server.client(TOKEN).await;
    type Spoil = fn(&mut Personalisation);
    let breakages: [(&str, Spoil); 6] = [
        ("entropy", |it| it.entropy = vec![1; 31].into()),
        ("time", |it| it.time_us = 0),
        ("host name", |it| it.host_name = "a b".into()),
        ("machine id", |it| it.machine_id = "xyz".into()),
        ("boot id", |it| it.boot_id.clear()),
        ("trust", |it| it.trust_bundle_pem = "not PEM".into()),
    ];
    for (what, spoil) in breakages {
        let mut request = claim(TOKEN, 1);
        spoil(request.personalisation.as_mut().expect("present"));
        let status = client.claim(request).await.expect_err(what);
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
    }
    let status = client.status(StatusRequest {}).await.expect_err("not claimed");
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_restore_changes_the_token_and_drops_older_connections() {
    let (server, mut before) = Server::claimed().await;
    let mut stale = TcpStream::connect(server.address).await.expect("connect");
    stale.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("preface");
    let mut buffer = vec![0; 1024];
    assert!(stale.read(&mut buffer).await.expect("served") > 0);

    let request = |old: &str, new: &str, epoch| PersonaliseRequest {
        old_token: old.into(),
        new_token: new.into(),
        personalisation: Some(personalisation(epoch)),
    };
    let mut after = server.client(NEW_TOKEN).await;
    let refused = after.personalise(request(NEW_TOKEN, NEW_TOKEN, 2)).await.expect_err("wrong old token");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = after.personalise(request(TOKEN, NEW_TOKEN, 1)).await.expect_err("same epoch");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    after.personalise(request(TOKEN, NEW_TOKEN, 2)).await.expect("personalised");
    after.personalise(request(TOKEN, NEW_TOKEN, 2)).await.expect("the identical repeat");

    let ended = tokio::time::timeout(harness::PATIENCE, async {
        while stale.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    });
    ended.await.expect("the stale connection was dropped");
    assert_eq!(before.status(StatusRequest {}).await.expect_err("old token").code(), Code::Unauthenticated);
    assert_eq!(after.status(StatusRequest {}).await.expect("new token").into_inner().epoch, 2);
    assert_eq!(run(&mut after, shell("echo $FROM_GUEST")).await.out(), "epoch-2\n");
}

#[tokio::test]
async fn nobody_but_the_host_gets_an_answer() {
    let server = Server::start().await;
    let socket = TcpSocket::new_v4().expect("socket");
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), 0))).expect("any loopback address");
    let mut stream = socket.connect(server.address).await.expect("the port is open");
    // Whether the request still left or not, nothing comes back.
    let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(harness::PATIENCE, stream.read_to_end(&mut answer)).await;
    drop(read.expect("closed at once"));
    assert!(answer.is_empty(), "{answer:?}");
}
