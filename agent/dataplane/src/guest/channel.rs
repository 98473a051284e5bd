//! The gRPC channel to one guest's init: bounded HTTP/2, the bearer token, and calls that can be cut off.
//!
//! A guest's init may be hostile. Its headers, windows and messages are bounded here, its answers in time by the
//! callers. A call whose caller is gone is *reset*, never ended: to the guest an ended upload is a complete one.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper_util::rt::TokioIo;
use roost_proto::guest::GUEST_RPC_PORT;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint, channel::ResponseFuture};
use tower::Service;

use super::dial::{Dialler, WhenRefused};

// One dial of the channel; who waits for a boot tries again.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
// With a call open and silence for so long, the guest is asked whether it lives, and given up after the timeout.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
const HEADERS_MAX_BYTES: u32 = 16 * 1024;
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Opens the channel to a guest: nothing is dialled before the first call, and again when it broke.
pub(super) fn open(dialler: Dialler) -> Channel {
    let connector = tower::service_fn(move |_: http::Uri| {
        let dialler = dialler.clone();
        async move {
            let deadline = Instant::now() + DIAL_TIMEOUT;
            dialler.dial(GUEST_RPC_PORT, deadline, WhenRefused::Retry).await.map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://guest.invalid")
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .http2_max_header_list_size(HEADERS_MAX_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect_with_connector_lazy(connector)
}

/// A channel for one call: carries the token, and resets the call when `cancel` is cancelled.
#[derive(Debug, Clone)]
pub(super) struct Authorised {
    pub channel: Channel,
    pub authorization: http::HeaderValue,
    pub cancel: CancellationToken,
    /// The call's place among those of the guest. The request holds it too: a guest that takes nothing keeps a
    /// request alive after its caller is gone, and must not collect them.
    pub place: Arc<OwnedSemaphorePermit>,
}

impl Service<http::Request<Body>> for Authorised {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let cancelled = Box::pin(self.cancel.clone().cancelled_owned());
        let place = self.place.clone();
        let mut request = request.map(|body| Body::new(Resettable { body, cancelled, _place: place }));
        let headers = request.headers_mut();
        headers.insert(http::header::AUTHORIZATION, self.authorization.clone());
        self.channel.call(request)
    }
}

/// A request body that fails when the call is cancelled, which resets the HTTP/2 stream.
struct Resettable {
    body: Body,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: Arc<OwnedSemaphorePermit>,
}

impl http_body::Body for Resettable {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.cancelled.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Status::cancelled("the caller is gone"))));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The header that carries a token; marked sensitive, so that nothing prints it.
pub(super) fn bearer(token: &str) -> http::HeaderValue {
    let text = zeroize::Zeroizing::new(format!("Bearer {token}"));
    // A guest token is visible ASCII by construction; an impossible one is answered with UNAUTHENTICATED.
    let mut value = http::HeaderValue::from_str(&text).unwrap_or(http::HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}
