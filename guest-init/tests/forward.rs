//! Connections to servers on the guest's own loopback.

mod harness;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use harness::Server;
use roost_proto::guest::forward_frame::Frame;
use roost_proto::guest::{ForwardFrame, ForwardOpen, GUEST_RPC_PORT};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

struct Forward {
    sender: mpsc::Sender<ForwardFrame>,
    frames: Streaming<ForwardFrame>,
}

fn frame(frame: Frame) -> ForwardFrame {
    ForwardFrame { frame: Some(frame) }
}

async fn open(client: &mut harness::Client, port: u32) -> Result<Forward, Status> {
    let (sender, receiver) = mpsc::channel(4);
    sender.send(frame(Frame::Open(ForwardOpen { port }))).await.expect("queued");
    let mut frames = client.forward(ReceiverStream::new(receiver)).await?.into_inner();
    let opened = frames.message().await?.and_then(|message| message.frame);
    assert_eq!(opened, Some(Frame::Opened(true)));
    Ok(Forward { sender, frames })
}

/// A server that answers with everything it got, once the other side stops writing, then stops too.
async fn echo_at_end(address: IpAddr) -> u32 {
    let listener = TcpListener::bind((address, 0)).await.expect("bind");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect("read");
        stream.write_all(&all).await.expect("write");
    });
    port.into()
}

#[tokio::test]
async fn servers_on_either_loopback_are_reached_and_half_closes_carried() {
    let (_server, mut client) = Server::claimed().await;
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let port = echo_at_end(address).await;
        let Forward { sender, mut frames } = open(&mut client, port).await.expect("connected");
        let pieces: Vec<_> = (0..50u8).map(|n| vec![n; 50_000]).collect();
        let writing = pieces.clone();
        tokio::spawn(async move {
            for piece in writing {
                sender.send(frame(Frame::Data(piece.into()))).await.expect("sent");
            }
            sender.send(frame(Frame::CloseWrite(true))).await.expect("sent");
            sender.closed().await;
        });
        let mut back = Vec::new();
        loop {
            match frames.message().await.expect("connected").and_then(|message| message.frame) {
                Some(Frame::Data(bytes)) => back.extend_from_slice(&bytes),
                Some(Frame::CloseWrite(true)) => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(back == pieces.concat(), "{address}: {} bytes came back", back.len());
    }
}

#[tokio::test]
async fn a_port_nobody_listens_on_is_unavailable_and_ours_is_refused() {
    let (_server, mut client) = Server::claimed().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
    let port = listener.local_addr().expect("bound").port();
    drop(listener);
    let code = async |client: &mut harness::Client, port: u32| {
        open(client, port).await.map(drop).expect_err("refused").code()
    };
    assert_eq!(code(&mut client, port.into()).await, Code::Unavailable);
    for port in [0, u32::from(GUEST_RPC_PORT), 65_536, u32::MAX] {
        assert_eq!(code(&mut client, port).await, Code::InvalidArgument, "{port}");
    }
}

#[tokio::test]
async fn a_caller_that_leaves_closes_the_connection() {
    let (_server, mut client) = Server::claimed().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
    let port = listener.local_addr().expect("bound").port();
    let forward = open(&mut client, port.into()).await.expect("connected");
    let (mut stream, _) = listener.accept().await.expect("accept");
    drop(forward);
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(harness::PATIENCE, stream.read_to_end(&mut rest));
    // A reset is as good an end.
    drop(ended.await.expect("ended in time"));
    assert!(rest.is_empty());
}
