//! The operator's view of a daemon over HTTP: `/healthz` (it runs), `/readyz` (named checks), `/metrics`.
//!
//! Listens on loopback unless the settings say that the network around the machine is trusted. Serves no
//! tenant and knows no secret. HTTP/1 only, one request per connection, everything bounded.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
pub use prometheus_client::registry::Registry;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::shutdown::Shutdown;

const CONNECTIONS_MAX: usize = 16;
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_BUFFER_BYTES: usize = 16 * 1024;
/// A failing accept (no descriptors left) must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("health address {address} is not loopback; set allow_remote to serve it to the network")]
    NotLoopback { address: SocketAddr },
    #[error("cannot listen on health address {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub listen: SocketAddr,
    #[serde(default)]
    pub allow_remote: bool,
}

impl Settings {
    /// Loopback, on the given port; 0 picks a free one.
    pub fn on_port(port: u16) -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], port)), allow_remote: false }
    }
}

/// The named checks of a daemon; clones share them. Ready when every one passes.
#[derive(Debug, Clone, Default)]
pub struct Health {
    checks: Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>,
}

/// One named check, told by the component it is about. It fails until the first [`Check::pass`].
#[derive(Debug, Clone)]
pub struct Check {
    name: &'static str,
    health: Health,
}

impl Health {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn check(&self, name: &'static str) -> Check {
        self.lock().insert(name, Err("starting".to_owned()));
        Check { name, health: self.clone() }
    }

    pub fn is_ready(&self) -> bool {
        self.lock().values().all(Result::is_ok)
    }

    /// Whether it is ready, and one line per check.
    fn report(&self) -> (bool, String) {
        let checks = self.lock();
        let mut text = String::new();
        for (name, result) in checks.iter() {
            let verdict = result.as_ref().map_or_else(String::as_str, |()| "ok");
            let _ = writeln!(text, "{name}: {verdict}");
        }
        (checks.values().all(Result::is_ok), text)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Result<(), String>>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Check {
    pub fn pass(&self) {
        self.health.lock().insert(self.name, Ok(()));
    }

    /// The reason is shown to whoever asks: no secrets, no addresses of tenants.
    pub fn fail(&self, reason: impl Into<String>) {
        self.health.lock().insert(self.name, Err(reason.into()));
    }
}

pub async fn bind(settings: &Settings) -> Result<TcpListener, Error> {
    let address = settings.listen;
    if !settings.allow_remote && !address.ip().is_loopback() {
        return Err(Error::NotLoopback { address });
    }
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

/// Serves until the shutdown is requested.
pub async fn serve(listener: TcpListener, health: Health, registry: Arc<Registry>, shutdown: Shutdown) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.requested() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a health connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (health, registry) = (health.clone(), registry.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = respond(&request, &health, &registry);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .keep_alive(false)
                .max_buf_size(REQUEST_BUFFER_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            // A client that breaks off or stalls concerns nobody else.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            drop(slot);
        });
    }
}

fn respond<B>(request: &Request<B>, health: &Health, registry: &Registry) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned());
    }
    match request.uri().path() {
        "/healthz" => response(StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/readyz" => {
            let (ready, text) = health.report();
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            response(status, TEXT, text)
        }
        "/metrics" => {
            let mut text = String::new();
            match encode(&mut text, registry) {
                Ok(()) => response(StatusCode::OK, METRICS, text),
                Err(_) => response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "cannot encode\n".to_owned()),
            }
        }
        _ => response(StatusCode::NOT_FOUND, TEXT, "no such page\n".to_owned()),
    }
}

fn response(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
