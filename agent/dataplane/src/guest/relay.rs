//! One gateway call, carried into the guest and back: three shapes, each bounded, each with backpressure.
//!
//! Messages are decoded and written anew, so that framing, metadata and status details of a guest end here.
//! When the caller goes away the guest's call is reset, never ended. Knows no particular method.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use roost_proto::guest::guest_client::GuestClient;
use roost_proto::host::GUEST_STATUS_METADATA;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

use super::channel::Authorised;
use super::link::{Call, Link};

/// How long a guest may take to answer a question, to begin a stream, or to take the next part of an upload.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
// How long a call may take to be reset after its caller is gone.
const RESET_TIMEOUT: Duration = Duration::from_secs(5);
// Of a status text of the guest, this much is passed on.
const STATUS_CHARS_MAX: usize = 512;

type Guest = GuestClient<Authorised>;

/// One question, one answer.
pub(super) async fn ask<Q, A, F>(
    link: &Link,
    request: Request<Q>,
    method: impl FnOnce(Guest, Q) -> F,
) -> Result<Response<A>, Status>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    let call = link.begin()?;
    let answer = method(call.asking(), request.into_inner());
    let response = in_time(link, answer).await?;
    Ok(Response::new(response.into_inner()))
}

/// One question, a stream of answers.
pub(super) async fn listen<Q, A, F>(
    link: &Link,
    request: Request<Q>,
    method: impl FnOnce(Guest, Q) -> F,
) -> Result<Response<Answers<A>>, Status>
where
    F: Future<Output = Result<Response<Streaming<A>>, Status>>,
{
    let call = link.begin()?;
    let answers = in_time(link, method(call.streaming(), request.into_inner())).await?;
    Ok(Response::new(Answers { messages: answers.into_inner(), _call: call }))
}

/// Streams both ways.
pub(super) async fn converse<Q, A, F>(
    link: &Link,
    request: Request<Streaming<Q>>,
    method: impl FnOnce(Guest, Input<Q>) -> F,
) -> Result<Response<Answers<A>>, Status>
where
    F: Future<Output = Result<Response<Streaming<A>>, Status>>,
{
    let call = link.begin()?;
    let (input, _) = Input::new(request.into_inner(), call.cancel.clone());
    let answers = in_time(link, method(call.streaming(), input)).await?;
    Ok(Response::new(Answers { messages: answers.into_inner(), _call: call }))
}

/// A stream, then one answer. A guest that takes nothing more for [`ANSWER_TIMEOUT`] is given up.
pub(super) async fn upload<Q, A, F>(
    link: &Link,
    request: Request<Streaming<Q>>,
    method: impl FnOnce(Guest, Input<Q>) -> F,
) -> Result<Response<A>, Status>
where
    F: Future<Output = Result<Response<A>, Status>> + Send + 'static,
    A: Send + 'static,
{
    let call = link.begin()?;
    let (input, progress) = Input::new(request.into_inner(), call.cancel.clone());
    let answer = tokio::spawn(until_reset(method(call.asking(), input), call.cancel.clone()));
    tokio::select! {
        answer = answer => {
            let answer = answer.map_err(|_| Status::internal("the upload was cut off"))?;
            Ok(Response::new(answer.map_err(from_guest)?.into_inner()))
        }
        () = progress.stalled() => {
            link.renew_channel();
            Err(Status::unavailable("the guest takes nothing more"))
        }
    }
}

/// Outlives a caller that goes away, so that the call is reset with an error by its request body. Dropping the
/// call at once would reset it with CANCEL, which HTTP libraries show to the other side as an orderly end.
async fn until_reset<T>(
    answer: impl Future<Output = Result<T, Status>>,
    cancel: CancellationToken,
) -> Result<T, Status> {
    let overdue = async {
        cancel.cancelled().await;
        tokio::time::sleep(RESET_TIMEOUT).await;
    };
    tokio::select! {
        answer = answer => answer,
        () = overdue => Err(Status::cancelled("the caller is gone")),
    }
}

async fn in_time<T>(link: &Link, answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(from_guest),
        Err(_) => {
            link.renew_channel();
            Err(Status::unavailable("the guest does not answer"))
        }
    }
}

/// What goes into the guest. When the caller breaks off, this does not end: the call is cancelled instead.
pub(super) struct Input<Q> {
    messages: Streaming<Q>,
    cancel: CancellationToken,
    progress: Arc<Progress>,
}

impl<Q> Input<Q> {
    fn new(messages: Streaming<Q>, cancel: CancellationToken) -> (Self, Arc<Progress>) {
        let progress = Arc::new(Progress { started: Instant::now(), handed_over_ms: AtomicU64::new(0) });
        (Self { messages, cancel, progress: progress.clone() }, progress)
    }
}

impl<Q> Stream for Input<Q> {
    type Item = Q;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Q>> {
        match Pin::new(&mut self.messages).poll_next(context) {
            Poll::Ready(Some(Ok(message))) => {
                self.progress.record_handed_over();
                Poll::Ready(Some(message))
            }
            Poll::Ready(Some(Err(_))) => {
                self.cancel.cancel();
                Poll::Pending
            }
            Poll::Ready(None) => {
                self.progress.record_handed_over();
                Poll::Ready(None)
            }
            Poll::Pending => {
                self.progress.record_waiting();
                Poll::Pending
            }
        }
    }
}

/// Whether the guest or the caller is the one that is waited for.
pub(super) struct Progress {
    started: Instant,
    /// When the guest got the last message; 0 while the caller's next one is waited for.
    handed_over_ms: AtomicU64,
}

impl Progress {
    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn record_handed_over(&self) {
        self.handed_over_ms.store(self.elapsed_ms().max(1), Ordering::Relaxed);
    }

    fn record_waiting(&self) {
        self.handed_over_ms.store(0, Ordering::Relaxed);
    }

    /// Completes once the guest has had a message for too long.
    async fn stalled(&self) {
        loop {
            tokio::time::sleep(ANSWER_TIMEOUT / 12).await;
            let since = self.handed_over_ms.load(Ordering::Relaxed);
            let waited = Duration::from_millis(self.elapsed_ms().saturating_sub(since));
            if since > 0 && waited > ANSWER_TIMEOUT {
                return;
            }
        }
    }
}

/// What comes out of the guest. Dropping it resets the guest's call.
#[derive(Debug)]
pub struct Answers<A> {
    messages: Streaming<A>,
    _call: Call,
}

impl<A> Stream for Answers<A> {
    type Item = Result<A, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = Pin::new(&mut self.messages).poll_next(context);
        polled.map(|message| message.map(|result| result.map_err(from_guest)))
    }
}

/// A status as the caller may see it: code and text of the guest, marked as such, nothing else of it.
fn from_guest(status: Status) -> Status {
    if std::error::Error::source(&status).is_some() {
        return Status::unavailable("the connection to the guest broke");
    }
    if status.code() == Code::Unauthenticated {
        return Status::unavailable("the guest does not know the gateway's token");
    }
    let text: String = status
        .message()
        .chars()
        .take(STATUS_CHARS_MAX)
        .map(|character| if character.is_control() { ' ' } else { character })
        .collect();
    let mut passed_on = Status::new(status.code(), text);
    let mark = tonic::metadata::MetadataValue::from_static("1");
    passed_on.metadata_mut().insert(GUEST_STATUS_METADATA, mark);
    passed_on
}
