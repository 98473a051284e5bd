//! Bodies on their way through: counted, and the response's closes the row of its request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use roost_domain::audit::{Action, reason};

use crate::egress::audit::{Outcome, Pending};

/// An answer of the proxy, or one of the upstream.
pub(crate) type ResponseBody = Either<Full<Bytes>, UpstreamBody>;

/// A guest's request body. Trailers are dropped: nothing inspects them.
#[derive(Debug)]
pub(crate) struct RequestBody {
    inner: Incoming,
    bytes: Arc<AtomicU64>,
}

impl RequestBody {
    pub(crate) fn new(inner: Incoming, bytes: Arc<AtomicU64>) -> Self {
        Self { inner, bytes }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        loop {
            let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
            if let Some(Ok(frame)) = &frame {
                let Some(data) = frame.data_ref() else { continue };
                self.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
            }
            return Poll::Ready(frame);
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An upstream's response body with the open row of its request.
#[derive(Debug)]
pub(crate) struct UpstreamBody {
    inner: Incoming,
    row: ResponseRow,
}

/// The row of a request whose response has begun; completes when it is dropped at the latest.
#[derive(Debug)]
pub(crate) struct ResponseRow {
    pub(crate) pending: Option<Pending>,
    /// The outcome if all goes well.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) bytes_out: Arc<AtomicU64>,
    pub(crate) bytes_in: u64,
}

impl ResponseRow {
    fn finish(&mut self, change: impl FnOnce(&mut Outcome)) {
        if let (Some(pending), Some(mut outcome)) = (self.pending.take(), self.outcome.take()) {
            outcome.bytes_in = self.bytes_in;
            outcome.bytes_out = self.bytes_out.load(Ordering::Relaxed);
            change(&mut outcome);
            pending.finish(outcome);
        }
    }
}

impl Drop for ResponseRow {
    fn drop(&mut self) {
        self.finish(|outcome| outcome.action = Action::ClientCancel);
    }
}

impl UpstreamBody {
    pub(crate) fn new(inner: Incoming, mut row: ResponseRow) -> Self {
        if inner.is_end_stream() {
            row.finish(|_| {});
        }
        Self { inner, row }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                self.row.bytes_in += frame.data_ref().map_or(0, |data| data.len() as u64);
                // The server does not poll again once it has written the announced length.
                if self.inner.is_end_stream() {
                    self.row.finish(|_| {});
                }
            }
            None => self.row.finish(|_| {}),
            Some(Err(error)) => {
                let detail = roost_daemon::telemetry::chain(error);
                self.row.finish(|outcome| {
                    outcome.action = Action::Error;
                    outcome.rejected_by = Some(reason::UPSTREAM_PROTOCOL);
                    outcome.detail = Some(detail);
                });
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
