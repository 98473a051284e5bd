//! Carries one TCP connection to a server on the guest's own loopback, which previews reach through here.
#![expect(clippy::disallowed_methods, reason = "the guest's own loopback is all it dials")]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Bytes, BytesMut};
use roost_proto::guest::forward_frame::Frame;
use roost_proto::guest::{ForwardFrame, GUEST_RPC_PORT};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::exec::output::MESSAGE_BYTES_MAX;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the first message must be `open`")]
    NoOpen,
    #[error("port {0} cannot be forwarded")]
    Port(u32),
    #[error("nothing listens on port {port} of the guest's loopback")]
    Refused { port: u16, source: io::Error },
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::NoOpen | Error::Port(_) => Self::invalid_argument(text),
            Error::Refused { source, .. } => Self::unavailable(format!("{text}: {source}")),
        }
    }
}

pub type FrameSender = mpsc::Sender<Result<ForwardFrame, Status>>;

fn frame(frame: Frame) -> Result<ForwardFrame, Status> {
    Ok(ForwardFrame { frame: Some(frame) })
}

/// Connects to the port the first frame names: 127.0.0.1, then ::1.
pub async fn connect(input: &mut Streaming<ForwardFrame>) -> Result<TcpStream, Status> {
    let Some(Frame::Open(open)) = input.message().await?.and_then(|message| message.frame) else {
        return Err(Error::NoOpen.into());
    };
    let port = match u16::try_from(open.port) {
        Ok(port) if port != 0 && port != GUEST_RPC_PORT => port,
        _ => return Err(Error::Port(open.port).into()),
    };
    let mut refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    for address in
        [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))]
    {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => refused = error,
        }
    }
    Err(Error::Refused { port, source: refused }.into())
}

/// Copies both ways until both sides are closed, or the caller leaves.
pub async fn carry(stream: TcpStream, input: Streaming<ForwardFrame>, sender: FrameSender) {
    if sender.send(frame(Frame::Opened(true))).await.is_err() {
        return;
    }
    let (read, write) = stream.into_split();
    let both = async {
        tokio::join!(carry_in(input, write), carry_out(read, &sender));
    };
    tokio::select! {
        () = both => {}
        () = sender.closed() => {}
    }
}

async fn carry_out(mut read: OwnedReadHalf, sender: &FrameSender) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(MESSAGE_BYTES_MAX);
        let bytes: Bytes = match read.read_buf(&mut buffer).await {
            Ok(0) => break drop(sender.send(frame(Frame::CloseWrite(true))).await),
            Ok(_) => buffer.split().freeze(),
            Err(error) => break drop(sender.send(Err(Status::unavailable(error.to_string()))).await),
        };
        if sender.send(frame(Frame::Data(bytes))).await.is_err() {
            break;
        }
    }
}

async fn carry_in(mut input: Streaming<ForwardFrame>, mut write: OwnedWriteHalf) {
    while let Ok(Some(message)) = input.message().await {
        match message.frame {
            Some(Frame::Data(bytes)) => {
                if write.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Some(Frame::CloseWrite(_)) => {
                let _ = write.shutdown().await;
            }
            Some(Frame::Open(_) | Frame::Opened(_)) | None => {}
        }
    }
}
