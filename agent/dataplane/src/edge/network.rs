//! The fleet's door: mutual TLS, for the scheduler's gateway calls and for previews that came in at another host.
//!
//! Owns the accept loop and its limits. A caller that is neither is closed before a byte of HTTP is read.

use std::sync::Arc;
use std::time::Duration;

use roost_daemon::shutdown::Shutdown;
use roost_daemon::telemetry::chain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::preview::Door;
use crate::guest::{GatewayService, Guests, Scope, serve_stream};
use crate::identity::{Caller, Identity, find_caller};

// Connections at once: a few for each replica of the scheduler, and one for each relayed request.
const CONNECTIONS_MAX: usize = 1024;
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
    #[error("the caller may not call here")]
    Caller,
    #[error("HTTP/2 connection")]
    Http(#[source] hyper::Error),
}

/// What the fleet may call.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub guests: Arc<Guests>,
    /// None on a host that serves no previews.
    pub previews: Option<Arc<Door>>,
}

/// Serves the fleet until the shutdown is requested.
pub(super) async fn serve_network(
    listener: TcpListener,
    identity: Arc<Identity>,
    served: Served,
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
        let (identity, served, stop) = (identity.clone(), served.clone(), shutdown.clone());
        shutdown.spawn(async move {
            if let Err(error) = serve_connection(stream, &identity, served, &stop).await {
                tracing::info!(%peer, error = chain(&error), "gateway connection ended");
            }
            drop(place);
        });
    }
}

async fn serve_connection(
    stream: TcpStream,
    identity: &Identity,
    served: Served,
    shutdown: &Shutdown,
) -> Result<(), Error> {
    // Only delays small packets when it fails.
    let _ = stream.set_nodelay(true);
    let credentials = identity.find().ok_or(Error::NoIdentity)?;
    let handshake = TlsAcceptor::from(credentials.server.clone()).accept(stream);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
    let stream = handshake.map_err(|_| Error::Slow)?.map_err(Error::Handshake)?;
    match (find_caller(stream.get_ref().1), served.previews) {
        (Some(Caller::Scheduler), _) => {
            let service = GatewayService::new(served.guests, Scope::NamedSandbox);
            serve_stream(stream, service, shutdown.token().clone()).await.map_err(Error::Http)
        }
        (Some(Caller::Edge), Some(door)) => {
            door.serve_relayed(stream, shutdown).await;
            Ok(())
        }
        _ => Err(Error::Caller),
    }
}
