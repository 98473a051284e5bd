//! Previews whose sandbox is on another host: carried there once, over mutual TLS, edge to edge.
//!
//! The owner's edge judges the request again, credentials included, and never carries it further. Changes nothing
//! but what is hop-by-hop.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::page::Problem;
use super::route::Route;
use super::upstream::Answer;
use crate::identity::Identity;

// Requests under way to other hosts, all together.
const RELAYS_MAX: usize = 512;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
// A little longer than the owner waits for its guest, so that its word is the one that counts.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(310);
const HEAD_BYTES_MAX: usize = 96 * 1024;
const HEADERS_MAX: usize = 192;

/// The edges of other hosts.
#[derive(Debug)]
pub(super) struct Owners {
    identity: Arc<Identity>,
    places: Arc<Semaphore>,
}

impl Owners {
    pub(super) fn new(identity: Arc<Identity>) -> Self {
        Self { identity, places: Arc::new(Semaphore::new(RELAYS_MAX)) }
    }

    /// Whether the scheduler names another host than this one as the owner.
    pub(super) fn is_elsewhere(&self, route: &Route) -> bool {
        let is_named = !route.owner_host.is_empty() && !route.owner_address.is_empty();
        let own = self.identity.find().and_then(|credentials| credentials.host_id.clone());
        is_named && own.is_some_and(|own| own != route.owner_host)
    }

    /// Sends a request to the owner's edge and waits for the head of the response.
    pub(super) async fn send(&self, route: &Route, request: Request<Incoming>) -> Result<Answer, Problem> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| Problem::Busy)?;
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, self.connect(route));
        let mut sender = connecting.await.map_err(|_| Problem::Starting)??;
        let sending = tokio::time::timeout(RESPONSE_TIMEOUT, sender.send_request(request));
        let response = sending.await.map_err(|_| Problem::AppTimeout)?.map_err(|_| Problem::AppBroke)?;
        Ok(Answer { response, place: Some(place) })
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the address of a host of the fleet, named by the scheduler"
    )]
    async fn connect(&self, route: &Route) -> Result<SendRequest<Incoming>, Problem> {
        let credentials = self.identity.find().ok_or(Problem::SchedulerUnavailable)?;
        let name = ServerName::try_from(format!("edge.{}.roost.internal", route.owner_host));
        let name = name.map_err(|_| Problem::Starting)?;
        let unreachable = |error: std::io::Error| {
            tracing::warn!(owner = route.owner_host, %error, "cannot reach the edge of another host");
            Problem::Starting
        };
        let stream = TcpStream::connect(&route.owner_address).await.map_err(unreachable)?;
        // Only delays small packets when it fails.
        let _ = stream.set_nodelay(true);
        let connector = TlsConnector::from(credentials.client.clone());
        let stream = connector.connect(name, stream).await.map_err(unreachable)?;
        let (sender, connection) = Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Problem::AppBroke)?;
        tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }
}
