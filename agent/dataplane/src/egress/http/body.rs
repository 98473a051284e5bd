//! Bodies on their way through: counted, and the response's closes the row of its request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use roost_domain::audit::{Action, reason};

use super::header;
use crate::egress::audit::{Outcome, Pending};
use crate::egress::scrub::{Scrub, Scrubber};

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
    /// Takes credentials out, if the request carried any.
    scrubber: Option<ScrubbedBody>,
}

/// A body being scrubbed.
#[derive(Debug)]
struct ScrubbedBody {
    scrubs: Vec<Arc<Scrub>>,
    scrubber: Scrubber,
    /// Trailers that wait behind the rest of the body.
    trailers: Option<HeaderMap>,
    /// What was held when the upstream ended.
    rest: Bytes,
    ended: bool,
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

type Polled = Poll<Option<Result<Frame<Bytes>, hyper::Error>>>;

impl UpstreamBody {
    /// `scrubs` are those of the credentials the request carried.
    pub(crate) fn new(inner: Incoming, mut row: ResponseRow, scrubs: Vec<Arc<Scrub>>) -> Self {
        if inner.is_end_stream() {
            row.finish(|_| {});
        }
        let scrubbed = |scrubs: Vec<Arc<Scrub>>| {
            let scrubber = Scrubber::new(&scrubs);
            ScrubbedBody {
                scrubs,
                scrubber,
                trailers: None,
                rest: Bytes::new(),
                ended: inner.is_end_stream(),
            }
        };
        let scrubber = (!scrubs.is_empty()).then_some(scrubs).map(scrubbed);
        Self { inner, row, scrubber }
    }

    /// The next frame as the upstream sent it; the row completes with the last.
    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Polled {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                self.row.bytes_in += frame.data_ref().map_or(0, |data| data.len() as u64);
                // The server does not poll again once it has written the announced length.
                if self.scrubber.is_none() && self.inner.is_end_stream() {
                    self.row.finish(|_| {});
                }
            }
            None => {
                let replaced = self.scrubber.as_mut().map_or(0, ScrubbedBody::end);
                self.row.finish(|outcome| {
                    if replaced > 0 {
                        outcome.detail =
                            Some(format!("took a credential out of the response {replaced} times"));
                    }
                });
            }
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
}

impl ScrubbedBody {
    /// Marks the end; returns how many occurrences were replaced, the held rest included.
    fn end(&mut self) -> usize {
        self.rest = self.scrubber.finish();
        self.ended = true;
        self.scrubber.replaced()
    }

    /// What may be passed on of a frame now; none if all of it is held.
    fn take(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        match frame.into_data() {
            Ok(data) => {
                let clean = self.scrubber.push(&data);
                (!clean.is_empty()).then(|| Frame::data(clean))
            }
            Err(frame) => {
                let mut trailers = frame.into_trailers().ok()?;
                header::scrub(&mut trailers, &self.scrubs);
                self.trailers = Some(trailers);
                None
            }
        }
    }

    /// What is left after the upstream's end: the held rest, then the trailers.
    fn next_after_end(&mut self) -> Option<Frame<Bytes>> {
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            return Some(Frame::data(rest));
        }
        self.trailers.take().map(Frame::trailers)
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        loop {
            match &mut self.scrubber {
                None => return self.poll_inner(cx),
                Some(scrubbed) if scrubbed.ended => return Poll::Ready(scrubbed.next_after_end().map(Ok)),
                Some(_) => {}
            }
            match ready!(self.poll_inner(cx)) {
                Some(Ok(frame)) => {
                    if let Some(frame) = self.scrubber.as_mut().and_then(|scrubbed| scrubbed.take(frame)) {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                // The rest comes with the next turn.
                None => {}
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.scrubber {
            None => self.inner.is_end_stream(),
            Some(scrubbed) => scrubbed.ended && scrubbed.rest.is_empty() && scrubbed.trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.scrubber {
            None => self.inner.size_hint(),
            Some(_) if self.is_end_stream() => SizeHint::with_exact(0),
            // A replacement has another length.
            Some(_) => SizeHint::default(),
        }
    }
}
