//! The gateway on the network: mutual TLS, and only the scheduler.
//!
//! Owns the accept loop and its limits. A connection without the scheduler's identity is closed before a byte of
//! HTTP is read.

use std::sync::Arc;
use std::time::Duration;

use roost_daemon::shutdown::Shutdown;
use roost_daemon::telemetry::chain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::{GatewayService, Guests, Scope, serve_stream};
use crate::identity::{Identity, SCHEDULER_URI, find_peer_uri};

// Connections at once: a few for each replica of the scheduler.
const CONNECTIONS_MAX: usize = 128;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
// A failing accept (no descriptors left) must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("this host has not joined the fleet yet")]
    NoIdentity,
    #[error("TLS handshake took too long")]
    Slow,
    #[error("TLS handshake")]
    Handshake(#[source] std::io::Error),
    #[error("caller is not the scheduler but {0:?}")]
    Caller(Option<String>),
    #[error("HTTP/2 connection")]
    Http(#[source] hyper::Error),
}

/// Serves the scheduler until the shutdown is requested.
pub async fn serve_network(
    listener: TcpListener,
    identity: Arc<Identity>,
    guests: Arc<Guests>,
    shutdown: Shutdown,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.requested() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot accept a gateway connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            continue;
        };
        let (identity, guests, stop) = (identity.clone(), guests.clone(), shutdown.clone());
        shutdown.spawn(async move {
            if let Err(error) = serve_connection(stream, &identity, guests, &stop).await {
                tracing::info!(%peer, error = chain(&error), "gateway connection ended");
            }
            drop(place);
        });
    }
}

async fn serve_connection(
    stream: TcpStream,
    identity: &Identity,
    guests: Arc<Guests>,
    shutdown: &Shutdown,
) -> Result<(), Error> {
    // Only delays small packets when it fails.
    let _ = stream.set_nodelay(true);
    let credentials = identity.find().ok_or(Error::NoIdentity)?;
    let handshake = TlsAcceptor::from(credentials.server.clone()).accept(stream);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
    let stream = handshake.map_err(|_| Error::Slow)?.map_err(Error::Handshake)?;
    let caller = find_peer_uri(stream.get_ref().1);
    if caller.as_deref() != Some(SCHEDULER_URI) {
        return Err(Error::Caller(caller));
    }
    let service = GatewayService::new(guests, Scope::NamedSandbox);
    serve_stream(stream, service, shutdown.token().clone()).await.map_err(Error::Http)
}
