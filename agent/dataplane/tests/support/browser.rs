//! A browser as the edge sees one: TLS with the right name, then HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

#[derive(Clone)]
pub(crate) struct Browser {
    pub(crate) address: SocketAddr,
    roots: Arc<rustls::RootCertStore>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Page {
    pub(crate) fn code(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).expect("a JSON error");
        json["error"]["code"].as_str().unwrap().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}")).to_str().unwrap()
    }
}

impl Browser {
    pub(crate) fn new(address: SocketAddr, root_pem: &str) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(root_pem.as_bytes()).unwrap()).unwrap();
        Self { address, roots: Arc::new(roots) }
    }

    pub(crate) async fn connect(&self, host: &str, alpn: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let stream = TcpStream::connect(self.address).await?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// Sends a request over HTTP/1.1 and returns the head of the answer.
    pub(crate) async fn send(&self, host: &str, mut request: Request<Full<Bytes>>) -> Response<Incoming> {
        let stream = self.connect(host, "http/1.1").await.unwrap();
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection.with_upgrades());
        request.headers_mut().entry("host").or_insert(host.parse().unwrap());
        let answer = tokio::time::timeout(Duration::from_secs(20), sender.send_request(request));
        answer.await.expect("an answer in time").unwrap()
    }

    /// The same over HTTP/2.
    pub(crate) async fn send_h2(&self, host: &str, request: Request<Full<Bytes>>) -> Page {
        let stream = self.connect(host, "h2").await.unwrap();
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        read(sender.send_request(request).await.unwrap()).await
    }

    pub(crate) async fn fetch(&self, host: &str, request: Request<Full<Bytes>>) -> Page {
        read(self.send(host, request).await).await
    }

    /// A plain GET with the given headers.
    pub(crate) async fn get(&self, host: &str, path: &str, headers: &[(&str, &str)]) -> Page {
        self.fetch(host, get(path, headers)).await
    }
}

pub(crate) fn get(path: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

async fn read(response: Response<Incoming>) -> Page {
    let (head, body) = response.into_parts();
    let body = tokio::time::timeout(Duration::from_secs(20), body.collect()).await.expect("a whole body");
    Page { status: head.status, headers: head.headers, body: body.unwrap().to_bytes() }
}
