//! What a guest does: looks names up, connects, speaks TLS with the root it trusts, sends requests or mere
//! bytes.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::authority::Root;

pub(crate) type TlsGuest = TlsStream<TcpStream>;

/// A response as the guest reads it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// Acts in the guest's namespace.
#[derive(Clone)]
pub(crate) struct Guest {
    runtime: tokio::runtime::Handle,
    trust: Arc<RootCertStore>,
    /// As a resolver in the guest would, so that tests do not meet the rate limit by accident.
    cache: Arc<Mutex<HashMap<String, Ipv4Addr>>>,
}

impl Guest {
    pub(crate) fn new(runtime: tokio::runtime::Handle, root: Root) -> Self {
        let mut trust = RootCertStore::empty();
        trust.add(root.der()).unwrap();
        Self { runtime, trust: Arc::new(trust), cache: Arc::default() }
    }

    /// Runs something in the guest.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.spawn(work).await.unwrap()
    }

    /// Asks the server at `server` for records of a name.
    pub(crate) async fn query(&self, server: Ipv4Addr, name: &str, record_type: RecordType) -> Message {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
        let reply =
            self.send_udp(server, query.to_vec().unwrap(), Duration::from_secs(5)).await.expect("an answer");
        Message::from_vec(&reply).unwrap()
    }

    /// Sends a datagram to port 53 and waits for an answer from exactly there.
    pub(crate) async fn send_udp(
        &self,
        server: Ipv4Addr,
        packet: Vec<u8>,
        patience: Duration,
    ) -> Option<Vec<u8>> {
        self.run(async move {
            let socket = UdpSocket::bind("10.0.0.2:0").await.unwrap();
            // Only packets from the server that was asked are received.
            socket.connect((server, 53)).await.unwrap();
            socket.send(&packet).await.unwrap();
            let mut buffer = vec![0; 2048];
            let received = tokio::time::timeout(patience, socket.recv(&mut buffer)).await.ok()?;
            buffer.truncate(received.unwrap());
            Some(buffer)
        })
        .await
    }

    /// The synthetic address of a name.
    pub(crate) async fn resolve(&self, name: &str) -> Ipv4Addr {
        let reply = self.query(Ipv4Addr::new(10, 0, 0, 1), &format!("{name}."), RecordType::A).await;
        match reply.answers.first().map(|answer| &answer.data) {
            Some(RData::A(address)) => address.0,
            other => panic!("{name} has no address: {other:?}"),
        }
    }

    pub(crate) async fn connect_address(&self, address: impl Into<SocketAddr>) -> io::Result<TcpStream> {
        let address = address.into();
        self.run(TcpStream::connect(address)).await
    }

    pub(crate) async fn connect(&self, name: &str, port: u16) -> TcpStream {
        let cached = self.cache.lock().unwrap().get(name).copied();
        let address = match cached {
            Some(address) => address,
            None => self.resolve(name).await,
        };
        self.cache.lock().unwrap().insert(name.to_owned(), address);
        self.connect_address((address, port)).await.unwrap()
    }

    /// TLS over a connection, believing to talk to `server_name`.
    pub(crate) async fn handshake(
        &self,
        stream: TcpStream,
        server_name: &str,
        alpn: &[&str],
    ) -> io::Result<TlsGuest> {
        let mut config = self.tls_config();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(server_name.to_owned()).unwrap();
        self.run(async move { TlsConnector::from(Arc::new(config)).connect(name, stream).await }).await
    }

    pub(crate) fn tls_config(&self) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        builder.with_root_certificates(Arc::clone(&self.trust)).with_no_client_auth()
    }

    pub(crate) async fn connect_tls(&self, name: &str, port: u16, alpn: &[&str]) -> TlsGuest {
        let stream = self.connect(name, port).await;
        self.handshake(stream, name, alpn).await.unwrap()
    }

    /// One HTTPS request on a connection of its own; HTTP/2 if the target says `h2`.
    pub(crate) async fn https(&self, name: &str, request: http::request::Builder, body: &str) -> Reply {
        let stream = self.connect_tls(name, 443, &["http/1.1"]).await;
        self.send_http1(stream, host(request, name), body).await
    }

    pub(crate) async fn https2(&self, name: &str, request: http::request::Builder, body: &str) -> Reply {
        let stream = self.connect_tls(name, 443, &["h2"]).await;
        self.send_http2(stream, request, body).await.unwrap()
    }

    /// A GET of `target` over HTTPS.
    pub(crate) async fn get(&self, name: &str, target: &str) -> Reply {
        self.https(name, Request::get(target), "").await
    }

    pub(crate) async fn send_http1<S>(&self, stream: S, request: http::request::Builder, body: &str) -> Reply
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        self.run(async move {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            read(sender.send_request(request).await.unwrap()).await.unwrap()
        })
        .await
    }

    pub(crate) async fn send_http2<S>(
        &self,
        stream: S,
        request: http::request::Builder,
        body: &str,
    ) -> hyper::Result<Reply>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        self.run(async move {
            let stream = TokioIo::new(stream);
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            read(sender.send_request(request).await?).await
        })
        .await
    }

    /// Writes bytes and reads all there is until the other side closes or is silent for a while.
    pub(crate) async fn exchange<S>(&self, mut stream: S, bytes: impl Into<Vec<u8>>) -> Vec<u8>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let bytes = bytes.into();
        self.run(async move {
            // The proxy may close while the rest is on its way.
            let _ = stream.write_all(&bytes).await;
            let mut answer = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                match tokio::time::timeout(Duration::from_millis(700), stream.read(&mut buffer)).await {
                    Ok(Ok(read)) if read > 0 => answer.extend_from_slice(&buffer[..read]),
                    _ => return answer,
                }
            }
        })
        .await
    }
}

fn host(request: http::request::Builder, name: &str) -> http::request::Builder {
    match request.headers_ref().is_some_and(|headers| headers.contains_key("host")) {
        true => request,
        false => request.header("host", name),
    }
}

async fn read(response: http::Response<hyper::body::Incoming>) -> hyper::Result<Reply> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Reply { status: parts.status, headers: parts.headers, body })
}
