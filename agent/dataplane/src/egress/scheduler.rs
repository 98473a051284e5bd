//! The scheduler as egress uses it: leases asked for, their changes followed, the audit trail shipped.
//!
//! Owns the channel, which is opened anew when the process's certificate changes. Keeps no lease and no
//! record.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use roost_daemon::telemetry::chain;
use roost_proto::host::audit_client::AuditClient;
use roost_proto::host::lease_client::LeaseClient;
use roost_proto::host::{LeaseChange, Resolution, ResolveRequest, ShipRequest, WatchLeasesRequest};
use tonic::Status;
use tonic::transport::Channel;

use super::audit::ship::{self, Shipper};
use super::credentials::{LeaseError, Leases};
use super::handler::Egress;
use crate::identity::Identity;

const SHIP_TIMEOUT: Duration = Duration::from_secs(15);
// A stream this silent is dead: heartbeats come every 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(25);
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The scheduler over the process's own mutual TLS.
#[derive(Debug)]
pub(super) struct Scheduler {
    identity: Arc<Identity>,
    address: String,
    channel: ArcSwapOption<Channel>,
}

/// There is no channel before the host has joined.
#[derive(Debug, thiserror::Error)]
#[error("this host has not joined yet")]
struct NotJoined;

impl Scheduler {
    pub(super) fn new(identity: Arc<Identity>, address: String) -> Arc<Self> {
        Arc::new(Self { identity, address, channel: ArcSwapOption::empty() })
    }

    fn channel(&self) -> Result<Channel, NotJoined> {
        self.channel.load().as_ref().map(|channel| channel.as_ref().clone()).ok_or(NotJoined)
    }

    /// Opens the channel when there are credentials, and anew when they change, for ever.
    pub(super) async fn keep_connected(self: Arc<Self>) {
        let mut changes = self.identity.changes();
        loop {
            if let Some(credentials) = self.identity.find() {
                match credentials.scheduler_channel(&self.address) {
                    Ok(channel) => self.channel.store(Some(Arc::new(channel))),
                    Err(error) => tracing::warn!(error = chain(&error), "cannot reach the scheduler"),
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Ships the audit trail once the host has joined, for ever.
    pub(super) async fn ship_audit(self: Arc<Self>, egress: Arc<Egress>) {
        // Looked for rather than awaited: whoever hears of the identity first may be this task, before the
        // channel is.
        while self.channel().is_err() {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        egress.ship_audit(self.as_ref()).await;
    }

    /// Drops leases as the scheduler says, for ever. What was missed while the stream was away is not known,
    /// so each new stream begins with every lease dropped.
    pub(super) async fn follow(self: Arc<Self>, egress: Arc<Egress>) {
        let mut is_there = true;
        loop {
            if let Ok(channel) = self.channel() {
                let ended = follow_once(LeaseClient::new(channel), &egress, &mut is_there).await;
                if let Err(status) = ended
                    && std::mem::take(&mut is_there)
                {
                    tracing::warn!(error = chain(&status), "lost the scheduler's lease changes");
                }
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

async fn follow_once(
    mut client: LeaseClient<Channel>,
    egress: &Egress,
    is_there: &mut bool,
) -> Result<(), Status> {
    let mut changes = client.watch(WatchLeasesRequest {}).await?.into_inner();
    egress.forget_leases(&LeaseChange::default());
    *is_there = true;
    loop {
        let next = tokio::time::timeout(SILENCE_MAX, changes.message()).await;
        match next.map_err(|_| Status::deadline_exceeded("no heartbeat"))?? {
            Some(change) => egress.forget_leases(&change),
            None => return Err(Status::unavailable("the stream ended")),
        }
    }
}

#[async_trait::async_trait]
impl Leases for Scheduler {
    async fn resolve(&self, request: ResolveRequest) -> Result<Vec<Resolution>, LeaseError> {
        let unavailable = |error: Box<dyn std::error::Error + Send + Sync>| LeaseError::Unavailable(error);
        let channel = self.channel().map_err(|error| unavailable(error.into()))?;
        let reply =
            LeaseClient::new(channel).resolve(request).await.map_err(|status| unavailable(status.into()))?;
        Ok(reply.into_inner().resolutions)
    }
}

#[async_trait::async_trait]
impl Shipper for Scheduler {
    async fn ship(&self, segment: &str, offset: u64, records: Bytes) -> Result<u64, ship::Error> {
        let channel = self.channel().map_err(|error| ship::Error::Send(error.into()))?;
        let request = ShipRequest { segment: segment.to_owned(), offset, records };
        let reply = tokio::time::timeout(SHIP_TIMEOUT, AuditClient::new(channel).ship(request)).await;
        let reply = reply.map_err(|error| ship::Error::Send(error.into()))?;
        Ok(reply.map_err(|status| ship::Error::Send(status.into()))?.into_inner().acked_offset)
    }
}
