//! Serving the Gateway on a connection that exists already: HTTP/2 with every limit set.
//!
//! A caller that resets its call must not look like one that is done: see [`Whole`].

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use roost_proto::host::gateway_server::GatewayServer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tower::ServiceExt;

use super::gateway::GatewayService;

// Calls open at once on one connection; how many one guest takes is bounded apart from this.
const STREAMS_MAX: u32 = 1024;
const HEADERS_MAX_BYTES: u32 = 16 * 1024;
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const SEND_BUFFER_BYTES: usize = 256 * 1024;
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest message a caller sends: the start of an exec with its environment.
const MESSAGE_MAX_BYTES: usize = 1024 * 1024;

/// Serves the gateway until the peer closes; after `stop` calls under way are finished, new ones refused.
pub async fn serve_stream<S>(stream: S, service: GatewayService, stop: CancellationToken) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = GatewayServer::new(service).max_decoding_message_size(MESSAGE_MAX_BYTES);
    let service = service.map_request(|request: http::Request<Incoming>| request.map(Whole));
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// A request body that ends only when the caller ended it. hyper shows a call reset with CANCEL as an orderly end,
/// which would make half an upload a whole one; so does tonic with the status `cancelled`.
struct Whole(Incoming);

impl Body for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.0).poll_frame(context) {
            Poll::Ready(None) if !self.0.is_end_stream() => {
                Poll::Ready(Some(Err(Status::aborted("the caller broke off"))))
            }
            Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(Status::aborted("the caller broke off")))),
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(frame))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
