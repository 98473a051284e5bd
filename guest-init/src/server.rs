//! Accepts the host's connections and lets through only calls that may proceed.
//!
//! Owns the listener, the check of the peer, the open connections and the check of the token, which every call
//! passes but the two that bring one. Must not know what calls do: that is `service`.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use roost_proto::guest::guest_server::GuestServer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::guest::Guest;
use crate::service::GuestService;

/// Connections of the host; beyond that the oldest is dropped, so stale ones cannot lock the host out.
const CONNECTIONS_MAX: usize = 64;
const STREAMS_MAX: u32 = 512;
const MESSAGE_BYTES_MAX: usize = 4 << 20;
const STREAM_WINDOW_BYTES: u32 = 512 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
const FRAME_BYTES_MAX: u32 = 128 << 10;

/// The calls that bring the token instead of showing it.
const OPENING_CALLS: [&str; 2] = ["/roost.guest.v1.Guest/Claim", "/roost.guest.v1.Guest/Personalise"];

/// Serves until the listener fails.
pub async fn serve(
    listener: TcpListener,
    peer: IpAddr,
    guest: Arc<Guest>,
) -> Result<(), tonic::transport::Error> {
    let connections = Arc::new(Connections::default());
    let service = GuestService::new(guest.clone(), connections.clone());
    let service = GuestServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let incoming = async_accept(listener, peer, connections);
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .serve_with_incoming(Gate { inner: service, guest }, incoming)
        .await
}

fn async_accept(
    listener: TcpListener,
    peer: IpAddr,
    connections: Arc<Connections>,
) -> impl futures::Stream<Item = io::Result<Connection>> {
    futures::stream::unfold((listener, connections), move |(listener, connections)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    // Anybody but the host is a process of the guest: it gets no answer at all.
                    if is_peer(from, peer) && stream.set_nodelay(true).is_ok() {
                        let connection = connections.open(stream);
                        return Some((Ok(connection), (listener, connections)));
                    }
                }
                // Out of descriptors or memory: both pass.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
}

fn is_peer(from: SocketAddr, peer: IpAddr) -> bool {
    from.ip() == peer
}

/// The open connections of the host.
#[derive(Debug, Default)]
pub struct Connections {
    next: AtomicU64,
    open: Mutex<Vec<Arc<Link>>>,
}

#[derive(Debug)]
struct Link {
    number: u64,
    dropped: AtomicBool,
    waker: AtomicWaker,
}

impl Link {
    fn cut(&self) {
        self.dropped.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Connections {
    fn open(self: &Arc<Self>, stream: TcpStream) -> Connection {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let link = Arc::new(Link { number, dropped: AtomicBool::new(false), waker: AtomicWaker::new() });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= CONNECTIONS_MAX {
            open.remove(0).cut();
        }
        open.push(link.clone());
        Connection { stream, link, connections: self.clone() }
    }

    /// Drops every connection but the one that says so: they were accepted in another life of this guest.
    pub fn drop_others(&self, keep: Option<ConnectionNumber>) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for link in open.iter().filter(|link| Some(ConnectionNumber(link.number)) != keep) {
            link.cut();
        }
    }
}

/// Which connection a call came on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionNumber(u64);

#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    link: Arc<Link>,
    connections: Arc<Connections>,
}

impl Connected for Connection {
    type ConnectInfo = ConnectionNumber;

    fn connect_info(&self) -> Self::ConnectInfo {
        ConnectionNumber(self.link.number)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|link| link.number != self.link.number);
    }
}

impl Connection {
    fn check_dropped(&self, context: &Context<'_>) -> io::Result<()> {
        self.link.waker.register(context.waker());
        if self.link.dropped.load(Ordering::Acquire) {
            Err(io::ErrorKind::ConnectionReset.into())
        } else {
            Ok(())
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_dropped(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_dropped(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_dropped(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Refuses calls without the guest's token, whatever they are: a new call is checked unless it is listed.
#[derive(Debug, Clone)]
struct Gate<S> {
    inner: S,
    guest: Arc<Guest>,
}

impl<S> Service<http::Request<Body>> for Gate<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if !OPENING_CALLS.contains(&request.uri().path())
            && let Err(error) = self.guest.admit(bearer(&request))
        {
            let response = tonic::Status::from(error).into_http();
            return Box::pin(std::future::ready(Ok(response)));
        }
        Box::pin(self.inner.call(request))
    }
}

fn bearer(request: &http::Request<Body>) -> Option<&str> {
    request.headers().get(http::header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}
