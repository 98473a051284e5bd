//! Upstream connections of one execution: never shared with another's, dialled through the checked connector.
//!
//! One pool for each protocol a guest may have chosen. The host of a request's target is the one that was
//! checked against the connection, so it is resolved, dialled and verified as it stands.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::ReadBufCursor;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioIo, TokioTimer};
use roost_domain::audit::reason;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::body::RequestBody;
use crate::egress::execution::TaskExecutor;
use crate::egress::tls::{HandshakeError, Offer, Sessions};
use crate::egress::{Host, Services, upstream};

const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// A guest that has more requests under way at once than this opens connections, each with a handshake, for nothing.
/// What one request can leave idle is one connection, so that a greater number gives a hostile guest no more of them.
const MAX_IDLE_PER_HOST: usize = 64;
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 128;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the request target has no host")]
    NoHost,
    #[error("dialling")]
    Dial(#[from] roost_dial::Error),
    #[error("securing the connection")]
    Tls(#[from] HandshakeError),
}

impl Error {
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NoHost => reason::MALFORMED,
            Self::Dial(error) => upstream::dial_reason(error),
            Self::Tls(error) => error.reason(),
        }
    }

    /// Whether the deny floor said no.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Dial(error) if error.is_refusal())
    }
}

/// The address an upstream connection was dialled at, in the extensions of its responses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address(pub(crate) SocketAddr);

pub(crate) type Client = legacy::Client<Connector, RequestBody>;

/// How an upstream is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speak {
    /// HTTP/1, with TLS if the scheme says so.
    Http1,
    /// HTTP/2 over TLS, HTTP/1 if the upstream prefers it.
    Http2,
    /// HTTP/2 without TLS and without asking, as the guest did.
    Http2Plain,
}

/// The pools of one execution; made when first used.
pub(crate) struct Clients {
    services: Arc<Services>,
    executor: TaskExecutor,
    sessions: Sessions,
    http1: OnceLock<Client>,
    http2: OnceLock<Client>,
    http2_plain: OnceLock<Client>,
}

impl fmt::Debug for Clients {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Clients").finish_non_exhaustive()
    }
}

impl Clients {
    pub(crate) fn new(services: Arc<Services>, executor: TaskExecutor) -> Self {
        Self {
            services,
            executor,
            sessions: Sessions::new(),
            http1: OnceLock::new(),
            http2: OnceLock::new(),
            http2_plain: OnceLock::new(),
        }
    }

    pub(crate) fn client(&self, speak: Speak) -> &Client {
        let pool = match speak {
            Speak::Http1 => &self.http1,
            Speak::Http2 => &self.http2,
            Speak::Http2Plain => &self.http2_plain,
        };
        pool.get_or_init(|| self.make(speak))
    }

    fn make(&self, speak: Speak) -> Client {
        let offer = if speak == Speak::Http2 { Offer::Http2 } else { Offer::Http1 };
        let connector =
            Connector { services: Arc::clone(&self.services), sessions: self.sessions.clone(), offer };
        legacy::Client::builder(self.executor.clone())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE_PER_HOST)
            .http1_max_buf_size(MAX_HEAD_BYTES)
            .http1_max_headers(MAX_HEADERS)
            .http2_max_header_list_size(MAX_HEAD_BYTES as u32)
            .http2_only(speak == Speak::Http2Plain)
            .build(connector)
    }
}

/// Opens connections for a pool.
#[derive(Clone)]
pub(crate) struct Connector {
    services: Arc<Services>,
    sessions: Sessions,
    offer: Offer,
}

impl Service<Uri> for Connector {
    type Response = UpstreamStream;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<UpstreamStream, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(&uri).await })
    }
}

impl Connector {
    async fn connect(&self, uri: &Uri) -> Result<UpstreamStream, Error> {
        let host = uri.host().and_then(|host| Host::parse(host).ok()).ok_or(Error::NoHost)?;
        let tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let (stream, address) = upstream::dial(&self.services, &host, port).await?;
        let stream = match tls {
            false => Stream::Plain(TokioIo::new(stream)),
            true => {
                let tls = &self.services.upstream_tls;
                let stream = tls.handshake(&host, self.offer, &self.sessions, stream).await?;
                Stream::Tls(Box::new(TokioIo::new(stream)))
            }
        };
        Ok(UpstreamStream { stream, address })
    }
}

/// A connection to an upstream.
pub(crate) struct UpstreamStream {
    stream: Stream,
    address: SocketAddr,
}

enum Stream {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for UpstreamStream {
    fn connected(&self) -> Connected {
        let connected = Connected::new().extra(Address(self.address));
        match &self.stream {
            Stream::Tls(stream) if stream.inner().get_ref().1.alpn_protocol() == Some(b"h2") => {
                connected.negotiated_h2()
            }
            _ => connected,
        }
    }
}

/// Calls the same method of whichever stream it is.
macro_rules! either {
    ($this:expr, $stream:ident => $call:expr) => {
        match &mut $this.get_mut().stream {
            Stream::Plain($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Stream::Tls($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $call
            }
        }
    };
}

impl hyper::rt::Read for UpstreamStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buf))
    }
}

impl hyper::rt::Write for UpstreamStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write_vectored(cx, bufs))
    }
}
