//! What flows once a request was admitted, and its end: a body or a WebSocket stops when its reason is gone.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

const TUNNEL_BUFFER_BYTES: usize = 16 * 1024;

/// The body of every answer of a preview.
pub(super) type PreviewBody = UnsyncBoxBody<Bytes, Error>;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the application broke off")]
    Guest(#[from] hyper::Error),
    #[error("the access that opened this has ended")]
    Ended,
}

/// Until when a stream has its reason: the route's word, and the time of the token.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    pub revoked: CancellationToken,
    /// From now; none for a public preview.
    pub expires_in: Option<Duration>,
}

impl Ending {
    async fn come(self) {
        let expired = async {
            match self.expires_in {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.revoked.cancelled() => {}
            () = expired => {}
        }
    }
}

/// A guest's body, cut off when its reason is gone.
pub(super) fn guarded(body: Incoming, ending: Ending, place: Option<OwnedSemaphorePermit>) -> PreviewBody {
    Guarded { body, ending: Box::pin(ending.come()), _place: place }.boxed_unsync()
}

/// A body of our own.
pub(super) fn whole(content: Bytes) -> PreviewBody {
    http_body_util::Full::new(content).map_err(|never| match never {}).boxed_unsync()
}

struct Guarded {
    body: Incoming,
    ending: Pin<Box<dyn Future<Output = ()> + Send>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Body for Guarded {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.ending.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Error::Ended)));
        }
        Pin::new(&mut self.body).poll_frame(context).map_err(Error::Guest)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Carries a WebSocket both ways until either side closes or its reason is gone.
pub(super) fn tunnel(
    browser: OnUpgrade,
    guest: OnUpgrade,
    ending: Ending,
    place: Option<OwnedSemaphorePermit>,
) {
    tokio::spawn(async move {
        let carried = async {
            let (browser, guest) = tokio::try_join!(browser, guest)?;
            let (mut browser, mut guest) = (TokioIo::new(browser), TokioIo::new(guest));
            let size = TUNNEL_BUFFER_BYTES;
            // An end without a closing handshake is how most sockets end: no event.
            let _ = tokio::io::copy_bidirectional_with_sizes(&mut browser, &mut guest, size, size).await;
            Ok::<_, hyper::Error>(())
        };
        tokio::select! {
            result = carried => if let Err(error) = result {
                tracing::debug!(%error, "a WebSocket was not taken up");
            },
            () = ending.come() => {}
        }
        drop(place);
    });
}
