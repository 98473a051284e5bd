//! Serving the Gateway on a connection that exists already: HTTP/2 with every limit set.

use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use roost_proto::host::gateway_server::GatewayServer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

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
