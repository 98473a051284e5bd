//! HTTP from guests: parsed by hyper, checked, and written again; no byte of it is passed through as it came.
//!
//! [`exchange`] is the story of one request. This module owns a connection: which versions are spoken, its
//! limits and its timeouts.

mod body;
mod check;
pub(crate) mod client;
mod exchange;
mod header;
mod refusal;
mod upgrade;

pub(crate) use refusal::Refusal;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::Version;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use roost_daemon::telemetry::chain;
use tokio::io::{AsyncRead, AsyncWrite};

use super::execution::TaskExecutor;
use super::listener::Flow;
use super::stream::GuestStream;

/// A request head must be complete after this; an idle connection is closed after it, too.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 128;
const MAX_STREAMS: u32 = 128;
const STREAM_WINDOW_BYTES: u32 = 128 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
const SEND_BUFFER_BYTES: usize = 64 * 1024;
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// A guest's HTTP connection: where all its requests go.
#[derive(Debug)]
struct Connection {
    flow: Flow,
    tls: bool,
}

/// Serves HTTP on a connection without TLS.
pub(crate) async fn serve_plain(flow: Flow, guest: GuestStream, version: Version) {
    serve(Connection { flow, tls: false }, guest, version).await;
}

/// Serves HTTP on an inspected TLS connection.
pub(crate) async fn serve_tls<S>(flow: Flow, guest: S, version: Version)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    serve(Connection { flow, tls: true }, guest, version).await;
}

async fn serve<S>(connection: Connection, guest: S, version: Version)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let execution = connection.flow.execution.id;
    let executor = TaskExecutor::of(&connection.flow.execution);
    let connection = Arc::new(connection);
    let service = service_fn(move |request| {
        let connection = Arc::clone(&connection);
        async move { Ok::<_, Infallible>(exchange::exchange(&connection, request).await) }
    });
    let guest = TokioIo::new(guest);
    let served = if version == Version::HTTP_2 {
        http2_builder(executor).serve_connection(guest, service).await
    } else {
        http1_builder().serve_connection(guest, service).with_upgrades().await
    };
    if let Err(error) = served {
        tracing::debug!(%execution, error = chain(&error), "a guest's connection ended early");
    }
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS);
    builder
}

fn http2_builder(executor: TaskExecutor) -> http2::Builder<TaskExecutor> {
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}
