//! Connections to the servers in guests: dialled, used again, bounded per guest.
//!
//! A connection belongs to one port of one execution and is never used for another. Servers bound to the guest's
//! loopback are reached through its init. Speaks HTTP/1.1; changes no header.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use roost_domain::id::ExecutionId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;

use super::page::Problem;
use crate::guest::{DialError, Guest, WhenRefused};

const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
// How long a request waits for one of the guest's places.
const PLACE_TIMEOUT: Duration = Duration::from_secs(10);
// From the request to the head of the response, an upload included.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(300);
// An unused connection is kept this long; servers close theirs after 5 s and more.
const IDLE_TIME: Duration = Duration::from_secs(4);
const IDLE_MAX: usize = 16;
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 128;

/// One port of one execution.
pub(super) type Target = (ExecutionId, u16);

/// A guest's answer, and what keeps its connection counted.
#[derive(Debug)]
pub(super) struct Answer {
    pub response: Response<Incoming>,
    /// Present for a connection that was upgraded: to be held as long as the tunnel.
    pub place: Option<OwnedSemaphorePermit>,
}

/// Connections that wait for their next request.
#[derive(Debug, Default)]
pub(super) struct Upstream {
    idle: Mutex<HashMap<Target, Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<Incoming>,
    place: OwnedSemaphorePermit,
    since: Instant,
}

impl Upstream {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Sends a request to a port of a guest and waits for the head of the response.
    pub(super) async fn send(
        self: &Arc<Self>,
        guest: &Guest,
        target: Target,
        mut request: Request<Incoming>,
    ) -> Result<Answer, Problem> {
        let deadline = tokio::time::Instant::now() + RESPONSE_TIMEOUT;
        // A kept connection may have been closed by the server just now: what it did not take goes to the next.
        while let Some(Idle { mut sender, place, .. }) = self.take(target) {
            let sending = sender.try_send_request(request);
            match tokio::time::timeout_at(deadline, sending).await {
                Err(_) => return Err(Problem::AppTimeout),
                Ok(Ok(response)) => return Ok(self.answered(guest, target, sender, place, response)),
                Ok(Err(mut error)) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(Problem::AppBroke),
                },
            }
        }
        let waiting = guest.previews.clone().acquire_owned();
        let place = tokio::time::timeout(PLACE_TIMEOUT, waiting).await.map_err(|_| Problem::Busy)?;
        let place = place.map_err(|_| Problem::Starting)?;
        let mut sender = connect(guest, target.1).await?;
        let sending = sender.send_request(request);
        let response = tokio::time::timeout_at(deadline, sending).await.map_err(|_| Problem::AppTimeout)?;
        let response = response.map_err(|_| Problem::AppBroke)?;
        Ok(self.answered(guest, target, sender, place, response))
    }

    fn answered(
        self: &Arc<Self>,
        guest: &Guest,
        target: Target,
        mut sender: SendRequest<Incoming>,
        place: OwnedSemaphorePermit,
        response: Response<Incoming>,
    ) -> Answer {
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            return Answer { response, place: Some(place) };
        }
        let (this, pool) = (self.clone(), guest.dialler.pool.clone());
        tokio::spawn(async move {
            // Ready once the body was read to its end; an error once the connection is closed.
            if sender.ready().await.is_ok() && !pool.is_scarce() {
                this.keep(target, Idle { sender, place, since: Instant::now() });
            }
        });
        Answer { response, place: None }
    }

    fn take(&self, target: Target) -> Option<Idle> {
        let mut idle = self.lock();
        let kept = idle.get_mut(&target)?;
        kept.retain(Idle::is_usable);
        kept.pop()
    }

    fn keep(&self, target: Target, connection: Idle) {
        let mut idle = self.lock();
        let kept = idle.entry(target).or_default();
        if kept.len() < IDLE_MAX {
            kept.push(connection);
        }
    }

    /// Closes connections that nobody used for a while, for ever.
    pub(super) async fn close_unused(self: Arc<Self>) {
        loop {
            tokio::time::sleep(IDLE_TIME / 4).await;
            self.lock().retain(|_, kept| {
                kept.retain(Idle::is_usable);
                !kept.is_empty()
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Target, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    fn is_usable(&self) -> bool {
        self.since.elapsed() < IDLE_TIME && self.sender.is_ready()
    }
}

/// Directly, or through the guest's init where the server listens on its loopback only.
async fn connect(guest: &Guest, port: u16) -> Result<SendRequest<Incoming>, Problem> {
    let deadline = tokio::time::Instant::now() + DIAL_TIMEOUT;
    match guest.dialler.dial(port, deadline, WhenRefused::Fail).await {
        Ok(stream) => handshake(stream).await,
        Err(DialError::Refused { .. }) => match guest.link.forward(port).await {
            Ok(stream) => handshake(stream).await,
            Err(error) => {
                tracing::debug!(%error, "no server in the guest");
                Err(Problem::AppNotListening)
            }
        },
        Err(DialError::Timeout { .. }) => Err(Problem::AppTimeout),
        Err(DialError::Socket(_)) => Err(Problem::Busy),
        Err(DialError::Connect { source, .. }) if source.kind() == io::ErrorKind::TimedOut => {
            Err(Problem::AppTimeout)
        }
        Err(DialError::Connect { .. }) => Err(Problem::AppNotListening),
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Incoming>, Problem>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| Problem::AppBroke)?;
    // Ends with the connection; how it ended is told to whoever waits for a response.
    tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}
