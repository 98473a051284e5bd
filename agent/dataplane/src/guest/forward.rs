//! A connection to a server on the guest's own loopback, carried by the guest's init.
//!
//! Looks like any other stream. Each direction is bounded by the pipe between the stream and the call; dropping the
//! stream ends the call.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use roost_proto::guest::forward_frame::Frame;
use roost_proto::guest::{ForwardFrame, ForwardOpen};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf,
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status, Streaming};

use super::link::{Call, Link};

const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
const FRAME_BYTES_MAX: usize = 64 * 1024;
const PIPE_BYTES: usize = 128 * 1024;
const FRAMES_MAX: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nothing listens on port {port} of the guest's loopback")]
    Refused { port: u16 },
    #[error("the guest's init does not forward to port {port}")]
    Failed { port: u16, source: Status },
    #[error("no answer from the guest's init about port {port}")]
    Timeout { port: u16 },
}

/// A connection to a port on the guest's loopback.
#[derive(Debug)]
pub struct ForwardStream {
    pipe: DuplexStream,
    _end: DropGuard,
}

impl Link {
    /// Connects to a port on the guest's 127.0.0.1 or ::1.
    pub async fn forward(&self, port: u16) -> Result<ForwardStream, Error> {
        let opening = self.open_forward(port);
        let opened = tokio::time::timeout(OPEN_TIMEOUT, opening).await;
        let (call, sender, frames) =
            opened.map_err(|_| Error::Timeout { port })?.map_err(|source| match source.code() {
                Code::Unavailable => Error::Refused { port },
                _ => Error::Failed { port, source },
            })?;
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let (read, write) = tokio::io::split(far);
        let end = CancellationToken::new();
        let guard = end.clone().drop_guard();
        tokio::spawn(async move {
            tokio::select! {
                () = async { tokio::join!(send(read, sender), receive(frames, write)); } => {}
                () = end.cancelled() => {}
            }
            drop(call);
        });
        Ok(ForwardStream { pipe: near, _end: guard })
    }

    async fn open_forward(
        &self,
        port: u16,
    ) -> Result<(Call, mpsc::Sender<ForwardFrame>, Streaming<ForwardFrame>), Status> {
        let call = self.begin()?;
        let (sender, receiver) = mpsc::channel(FRAMES_MAX);
        let open = Frame::Open(ForwardOpen { port: port.into() });
        let _ = sender.send(ForwardFrame { frame: Some(open) }).await;
        let mut frames = call.streaming().forward(ReceiverStream::new(receiver)).await?.into_inner();
        match frames.next().await.transpose()?.and_then(|frame| frame.frame) {
            Some(Frame::Opened(true)) => Ok((call, sender, frames)),
            _ => Err(Status::internal("the first frame is not `opened`")),
        }
    }
}

async fn send(mut pipe: ReadHalf<DuplexStream>, sender: mpsc::Sender<ForwardFrame>) {
    let mut buffer = bytes::BytesMut::with_capacity(FRAME_BYTES_MAX);
    loop {
        buffer.reserve(FRAME_BYTES_MAX);
        let frame = match (&mut pipe).take(FRAME_BYTES_MAX as u64).read_buf(&mut buffer).await {
            Ok(0) | Err(_) => Frame::CloseWrite(true),
            Ok(_) => Frame::Data(buffer.split().freeze()),
        };
        let is_last = matches!(frame, Frame::CloseWrite(_));
        if sender.send(ForwardFrame { frame: Some(frame) }).await.is_err() || is_last {
            return;
        }
    }
}

async fn receive(mut frames: Streaming<ForwardFrame>, mut pipe: WriteHalf<DuplexStream>) {
    while let Some(Ok(frame)) = frames.next().await {
        let data = match frame.frame {
            Some(Frame::Data(data)) => data,
            Some(Frame::CloseWrite(_)) => Bytes::new(),
            _ => break,
        };
        if data.is_empty() || pipe.write_all(&data).await.is_err() {
            break;
        }
    }
    // The reader sees the end; what it still sends is taken until the guest closes.
    let _ = pipe.shutdown().await;
}

impl AsyncRead for ForwardStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(context, buffer)
    }
}

impl AsyncWrite for ForwardStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(context)
    }
}
