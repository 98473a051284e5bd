//! The door for browsers: TLS, then HTTP/1.1 or HTTP/2, every limit set.
//!
//! Owns the accept loop, the number of connections in all and per client, and the time a client may take. What a
//! request gets is the service's.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, Request};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use roost_daemon::shutdown::Shutdown;
use roost_daemon::telemetry::chain;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificate::PreviewCertificate;
use super::service::{PreviewService, Visitor};

const CONNECTIONS_MAX: usize = 8192;
const CONNECTIONS_PER_CLIENT_MAX: usize = 512;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
// From the first byte of a request's head to its last; also how long a connection may wait for one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 128;
const STREAMS_MAX: u32 = 128;
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const SEND_BUFFER_BYTES: usize = 256 * 1024;
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
// A WebSocket may be silent for hours; its client must not be gone for hours.
const KEEP_ALIVE_TIME: Duration = Duration::from_secs(60);
// A failing accept (no descriptors left) must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all listeners share.
#[derive(Debug)]
pub struct Door {
    certificate: Arc<PreviewCertificate>,
    service: Arc<PreviewService>,
    places: Arc<Semaphore>,
    clients: Mutex<HashMap<IpAddr, usize>>,
}

/// A client's place among its own connections.
struct Place {
    door: Arc<Door>,
    client: IpAddr,
}

impl Door {
    pub(super) fn new(certificate: Arc<PreviewCertificate>, service: Arc<PreviewService>) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Arc::new(Self { certificate, service, places, clients: Mutex::default() })
    }

    /// Serves browsers until the shutdown is requested.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: Shutdown) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.requested() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "cannot accept a browser's connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = self.places.clone().try_acquire_owned() else { continue };
            let Some(own_place) = self.clone().take_place(peer.ip()) else { continue };
            let (door, stop) = (self.clone(), shutdown.clone());
            shutdown.spawn(async move {
                door.serve_connection(stream, peer, stop).await;
                drop((place, own_place));
            });
        }
    }

    fn take_place(self: Arc<Self>, client: IpAddr) -> Option<Place> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(client).or_default();
        if *count >= CONNECTIONS_PER_CLIENT_MAX {
            return None;
        }
        *count += 1;
        drop(clients);
        Some(Place { door: self, client })
    }

    async fn serve_connection(&self, stream: TcpStream, peer: SocketAddr, shutdown: Shutdown) {
        // Only delays small packets, or finds a vanished client later, when these fail.
        let _ = stream.set_nodelay(true);
        let keep_alive = TcpKeepalive::new().with_time(KEEP_ALIVE_TIME);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keep_alive);
        let Some(config) = self.certificate.find() else { return };
        let handshake = TlsAcceptor::from(config).accept(stream);
        // A client that does not finish its handshake is no event.
        let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await else { return };
        let visitor = Visitor::browser(peer.ip());
        if let Err(error) = self.serve_http(stream, move |_| visitor, &shutdown).await {
            tracing::debug!(%peer, error, "a browser's connection broke");
        }
    }

    /// Serves requests that came in at another host, on a connection of its edge.
    pub async fn serve_relayed(&self, stream: TlsStream<TcpStream>, shutdown: &Shutdown) {
        let Ok(peer) = stream.get_ref().0.peer_addr() else { return };
        let visitor = move |headers: &HeaderMap| Visitor::relayed(headers, peer.ip());
        if let Err(error) = self.serve_http(stream, visitor, shutdown).await {
            tracing::debug!(%peer, error, "the connection of another host's edge broke");
        }
    }

    async fn serve_http(
        &self,
        stream: TlsStream<TcpStream>,
        visitor: impl Fn(&HeaderMap) -> Visitor + Send + Sync + Copy,
        shutdown: &Shutdown,
    ) -> Result<(), String> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        let service = service_fn(move |request: Request<Incoming>| {
            let (service, visitor) = (self.service.clone(), visitor(request.headers()));
            async move { Ok::<_, Infallible>(service.serve(request, visitor).await) }
        });
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(|error| chain(error.as_ref())),
            () = shutdown.requested() => connection.as_mut().graceful_shutdown(),
        }
        connection.await.map_err(|error| chain(error.as_ref()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.door.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.client);
            }
        }
    }
}
