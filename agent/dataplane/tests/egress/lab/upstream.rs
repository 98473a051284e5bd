//! Servers out there, which remember what reached them.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::authority::Root;
use super::world::PUBLIC;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

/// An HTTP server that answers every request with 200, or what `answer` makes of its path.
#[derive(Clone, Default)]
pub(crate) struct Upstream {
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<Mutex<usize>>,
}

impl Upstream {
    /// Without TLS, on a public address.
    pub(crate) async fn http(port: u16) -> Self {
        let upstream = Self::default();
        let listener = TcpListener::bind((PUBLIC, port)).await.unwrap();
        let serving = upstream.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                serving.accepted();
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        upstream
    }

    /// With a certificate for these names.
    pub(crate) async fn https(root: &Root, names: &[&str], port: u16, alpn: &[&str]) -> Self {
        let upstream = Self::default();
        let acceptor = acceptor(root, names, alpn);
        let listener = TcpListener::bind((PUBLIC, port)).await.unwrap();
        let serving = upstream.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                serving.accepted();
                let (serving, acceptor) = (serving.clone(), acceptor.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serving.serve(stream).await;
                    }
                });
            }
        });
        upstream
    }

    fn accepted(&self) {
        *self.connections.lock().unwrap() += 1;
    }

    /// Connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(move |request: Request<Incoming>| {
            let this = self.clone();
            async move { Ok::<_, Infallible>(this.respond(request).await) }
        });
        let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        // Ends with an error when the proxy closes first.
        let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let collected = body.collect().await.ok();
        let trailers = collected.as_ref().and_then(|body| body.trailers().cloned()).unwrap_or_default();
        let body = collected.map(|body| body.to_bytes()).unwrap_or_default();
        let target = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let seen = Seen {
            method: parts.method.to_string(),
            target: target.clone(),
            version: parts.version,
            headers: parts.headers,
            body,
            trailers,
        };
        self.seen.lock().unwrap().push(seen);
        answer(&target)
    }
}

/// `/status/401` answers 401, `/bytes/1000` that many bytes, everything else 200.
fn answer(target: &str) -> Response<Full<Bytes>> {
    let number = |prefix: &str| target.strip_prefix(prefix).and_then(|rest| rest.parse::<usize>().ok());
    let body = match number("/bytes/") {
        Some(count) => Bytes::from(vec![b'x'; count]),
        None => Bytes::from_static(b"upstream says hello"),
    };
    let status = number("/status/").and_then(|status| u16::try_from(status).ok()).unwrap_or(200);
    Response::builder()
        .status(status)
        .header("alt-svc", "h3=\":443\"")
        .header("x-upstream", "1")
        .body(Full::new(body))
        .unwrap()
}

fn acceptor(root: &Root, names: &[&str], alpn: &[&str]) -> TlsAcceptor {
    let (chain, key) = root.sign_server(names);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// A server of another kind: every connection is given to `serve`.
pub(crate) async fn raw<F>(port: u16, serve: impl Fn(TcpStream) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((PUBLIC, port)).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream));
        }
    });
}

/// The same behind TLS.
pub(crate) async fn raw_tls<F>(
    root: &Root,
    names: &[&str],
    port: u16,
    serve: impl Fn(tokio_rustls::server::TlsStream<TcpStream>) -> F + Send + Sync + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let acceptor = acceptor(root, names, &["http/1.1"]);
    let serve = Arc::new(serve);
    raw(port, move |stream| {
        let (acceptor, serve) = (acceptor.clone(), Arc::clone(&serve));
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                serve(stream).await;
            }
        }
    })
    .await;
}
