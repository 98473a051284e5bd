//! What the edge knows of one attached guest, and the calls the agent asks for: claim, personalise, quiesce.
//!
//! Owns the channel and the token. Nothing a guest answers is passed on to the agent but the protocol generation
//! and that it answered. Steps are repeatable: an agent that lost the reply asks again.
//!
//! ```text
//! unclaimed --Claim or Personalise succeeded, or attached with a token--> claimed (calls are possible)
//! ```

use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use roost_daemon::clock;
use roost_domain::id::ExecutionId;
use roost_proto::dataplane::{Claim, Claimed, GuestIdentity, Personalise, Quiesce};
use roost_proto::guest::guest_client::GuestClient;
use roost_proto::guest::{ClaimRequest, Personalisation, PersonaliseRequest, QuiesceRequest};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;
use tonic::{Code as StatusCode, Status};

use super::channel::{self, Authorised};
use super::dial::Dialler;
use crate::control::{Code, GuestAccess, GuestToken, Refusal};

/// Calls into one guest under way at once.
const CALLS_MAX: usize = 128;
/// The largest message of a stream from a guest: 64 KiB of content and its frame.
const MESSAGE_MAX_BYTES: usize = 64 * 1024 + 1024;
/// The largest answer to a single question, a listing of 10,000 entries.
const ANSWER_MAX_BYTES: usize = 4 * 1024 * 1024;
/// How long a claim may go on at the most.
const DEADLINE_MAX: Duration = Duration::from_secs(600);
// One try of a claim; a guest that accepts and says nothing is dialled anew.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);
const TRY_PAUSE: Duration = Duration::from_millis(50);

/// One guest as the gateway sees it.
#[derive(Debug)]
pub struct Link {
    execution: ExecutionId,
    dialler: Dialler,
    channel: ArcSwap<Channel>,
    access: ArcSwapOption<Access>,
    calls: Arc<Semaphore>,
}

#[derive(Debug)]
struct Access {
    authorization: http::HeaderValue,
    protocol_generation: u32,
}

/// A call under way: counted, and reset in the guest when this is dropped.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) cancel: CancellationToken,
    _reset: DropGuard,
    authorised: Authorised,
}

impl Call {
    /// A client for streams, whose messages are small.
    pub(super) fn streaming(&self) -> GuestClient<Authorised> {
        GuestClient::new(self.authorised.clone()).max_decoding_message_size(MESSAGE_MAX_BYTES)
    }

    /// A client for single answers.
    pub(super) fn asking(&self) -> GuestClient<Authorised> {
        GuestClient::new(self.authorised.clone()).max_decoding_message_size(ANSWER_MAX_BYTES)
    }
}

impl Link {
    pub fn new(execution: ExecutionId, dialler: Dialler) -> Self {
        Self {
            execution,
            channel: ArcSwap::from_pointee(channel::open(dialler.clone())),
            dialler,
            access: ArcSwapOption::empty(),
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
        }
    }

    /// The token and protocol generation that the guest answers to from now on.
    pub fn set_access(&self, access: &GuestAccess) {
        self.access.store(Some(Arc::new(Access {
            authorization: channel::bearer(access.token.expose()),
            protocol_generation: access.protocol_generation,
        })));
    }

    /// The guest's protocol generation, once it was claimed.
    pub fn find_protocol_generation(&self) -> Option<u32> {
        self.access.load().as_ref().map(|access| access.protocol_generation)
    }

    /// Starts a call on behalf of a gateway's caller.
    pub(super) fn begin(&self) -> Result<Call, Status> {
        let access = self.access.load();
        let Some(access) = access.as_ref() else {
            return Err(Status::unavailable("the guest is not claimed yet"));
        };
        self.call(access.authorization.clone())
            .ok_or_else(|| Status::resource_exhausted("too many calls into this guest"))
    }

    /// Forgets a connection that does not answer; the next call dials anew.
    pub(super) fn renew_channel(&self) {
        self.channel.store(Arc::new(channel::open(self.dialler.clone())));
    }

    fn call(&self, authorization: http::HeaderValue) -> Option<Call> {
        let permit = self.calls.clone().try_acquire_owned().ok()?;
        let cancel = CancellationToken::new();
        Some(Call {
            _reset: cancel.clone().drop_guard(),
            authorised: Authorised {
                channel: self.channel.load().as_ref().clone(),
                authorization,
                cancel: cancel.clone(),
                place: Arc::new(permit),
            },
            cancel,
        })
    }

    /// First call after a boot; dials until the guest is there or the deadline has passed.
    pub async fn claim(&self, request: Claim) -> Result<Claimed, Refusal> {
        let token = GuestToken::parse(request.token)?;
        let identity = request.identity.ok_or_else(|| Refusal::invalid("a claim comes with an identity"))?;
        let authorization = channel::bearer(token.expose());
        let (protocol_generation, waited) = self
            .until(request.deadline_ms, &authorization, |mut guest| {
                let request = ClaimRequest {
                    token: token.expose().to_owned(),
                    personalisation: Some(personalisation(&identity)),
                };
                async move { Ok(guest.claim(request).await?.into_inner().protocol_generation) }
            })
            .await?;
        self.set_access(&GuestAccess { token, protocol_generation });
        Ok(claimed(protocol_generation, waited))
    }

    /// First call after a restore.
    pub async fn personalise(&self, request: Personalise) -> Result<Claimed, Refusal> {
        let old_token = GuestToken::parse(request.old_token)?;
        let token = GuestToken::parse(request.new_token)?;
        let identity =
            request.identity.ok_or_else(|| Refusal::invalid("a personalise comes with an identity"))?;
        let authorization = channel::bearer(old_token.expose());
        let (protocol_generation, waited) = self
            .until(request.deadline_ms, &authorization, |mut guest| {
                let request = PersonaliseRequest {
                    old_token: old_token.expose().to_owned(),
                    new_token: token.expose().to_owned(),
                    personalisation: Some(personalisation(&identity)),
                };
                async move { Ok(guest.personalise(request).await?.into_inner().protocol_generation) }
            })
            .await?;
        self.set_access(&GuestAccess { token, protocol_generation });
        Ok(claimed(protocol_generation, waited))
    }

    /// Has the guest flush its file systems before a pause or stop.
    pub async fn quiesce(&self, request: Quiesce) -> Result<(), Refusal> {
        let access =
            self.access.load_full().ok_or_else(|| Refusal::invalid("the guest is not claimed yet"))?;
        self.until(request.deadline_ms, &access.authorization, |mut guest| async move {
            guest.quiesce(QuiesceRequest {}).await.map(|_| ())
        })
        .await?;
        Ok(())
    }

    /// Tries until the guest has answered, and tells how long that took.
    async fn until<T, F>(
        &self,
        deadline_ms: u64,
        authorization: &http::HeaderValue,
        ask: impl Fn(GuestClient<Authorised>) -> F,
    ) -> Result<(T, Duration), Refusal>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let started = Instant::now();
        let deadline = started + Duration::from_millis(deadline_ms).min(DEADLINE_MAX);
        loop {
            let attempt = Instant::now();
            let call = self
                .call(authorization.clone())
                .ok_or_else(|| Refusal::new(Code::Limit, "too many calls into this guest"))?;
            match tokio::time::timeout_at(deadline.min(attempt + TRY_TIMEOUT), ask(call.asking())).await {
                Ok(Ok(answer)) => return Ok((answer, started.elapsed())),
                Ok(Err(status)) if is_final(status.code()) => return Err(refused(&status)),
                Ok(Err(status)) => {
                    tracing::debug!(execution = %self.execution, code = ?status.code(), "guest not there yet");
                }
                Err(_) => self.renew_channel(),
            }
            if Instant::now() + TRY_PAUSE >= deadline {
                return Err(Refusal::new(Code::GuestTimeout, "the guest did not answer in time"));
            }
            tokio::time::sleep_until(attempt + TRY_PAUSE).await;
        }
    }
}

/// The clock is read here, as late as possible: the guest sets its own to it.
fn personalisation(identity: &GuestIdentity) -> Personalisation {
    Personalisation {
        epoch: identity.epoch,
        entropy: identity.entropy.clone(),
        time_us: clock::now_us(),
        host_name: identity.host_name.clone(),
        machine_id: identity.machine_id.clone(),
        boot_id: identity.boot_id.clone(),
        trust_bundle_pem: identity.trust_bundle_pem.clone(),
        environment: identity.environment.clone(),
    }
}

fn claimed(protocol_generation: u32, waited: Duration) -> Claimed {
    Claimed { protocol_generation, waited_us: u64::try_from(waited.as_micros()).unwrap_or(u64::MAX) }
}

/// Whether asking again cannot help: the guest understood and said no.
fn is_final(code: StatusCode) -> bool {
    matches!(
        code,
        StatusCode::FailedPrecondition
            | StatusCode::Unauthenticated
            | StatusCode::PermissionDenied
            | StatusCode::InvalidArgument
            | StatusCode::AlreadyExists
            | StatusCode::Unimplemented
    )
}

/// Only the code is passed on: the text is the guest's.
fn refused(status: &Status) -> Refusal {
    Refusal::new(Code::GuestRefused, format!("the guest answered {:?}", status.code()))
}
