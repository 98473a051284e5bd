//! The scheduler's Route service as this process uses it: questions, and the stream of changes and keys.
//!
//! Owns the channel, which is opened anew when the process's certificate changes. One stream watches every known
//! host; it is opened anew when hosts were added. Judges nothing.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use roost_daemon::telemetry::chain;
use roost_proto::host::route_change::Change;
use roost_proto::host::route_client::RouteClient;
use roost_proto::host::{LookupRequest, RouteChange, RouteEntry, WatchRoutesRequest, lookup_reply};
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::route::{RouteTable, Routes, Unavailable};
use super::verify::Verifier;
use crate::identity::Identity;

const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
// A stream this silent is dead: heartbeats come every 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(25);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
// Hosts added within this time are added to the stream together.
const GATHER_TIME: Duration = Duration::from_millis(300);

/// The scheduler over the process's own mutual TLS.
#[derive(Debug)]
pub struct SchedulerRoutes {
    identity: Arc<Identity>,
    address: String,
    channel: ArcSwapOption<Channel>,
}

impl SchedulerRoutes {
    pub fn new(identity: Arc<Identity>, address: String) -> Arc<Self> {
        Arc::new(Self { identity, address, channel: ArcSwapOption::empty() })
    }

    fn client(&self) -> Result<RouteClient<Channel>, Unavailable> {
        let channel = self.channel.load();
        let channel = channel.as_ref().ok_or(Unavailable)?;
        Ok(RouteClient::new(channel.as_ref().clone()))
    }

    /// Opens the channel when there are credentials, and anew when they change, for ever.
    pub async fn keep_connected(self: Arc<Self>) {
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

    /// Follows changes of routes and keys, for ever.
    pub async fn follow(self: Arc<Self>, table: Arc<RouteTable>, verifier: Arc<Verifier>) {
        let mut is_there = true;
        loop {
            let ended = match self.client() {
                Ok(client) => follow_once(client, &table, &verifier).await.map_err(Some),
                Err(Unavailable) => Err(None),
            };
            match ended {
                Ok(()) => {
                    is_there = true;
                    continue;
                }
                Err(Some(status)) if is_there => {
                    is_there = false;
                    tracing::warn!(error = chain(&status), "lost the scheduler's route changes");
                }
                Err(_) => {}
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// One stream, until it breaks or hosts were added.
async fn follow_once(
    mut client: RouteClient<Channel>,
    table: &RouteTable,
    verifier: &Verifier,
) -> Result<(), Status> {
    let hosts = table.hosts();
    let mut changes = client.watch(WatchRoutesRequest { hosts: hosts.clone() }).await?.into_inner();
    // One future for the whole stream: it must not forget what it has heard whenever a change comes.
    let added = added(table, &hosts);
    tokio::pin!(added);
    loop {
        tokio::select! {
            change = next(&mut changes) => apply(change?, &hosts, table, verifier),
            () = added.as_mut() => return Ok(()),
        }
    }
}

async fn next(changes: &mut Streaming<RouteChange>) -> Result<Change, Status> {
    let next = tokio::time::timeout(SILENCE_MAX, changes.next()).await;
    let next = next.map_err(|_| Status::deadline_exceeded("no heartbeat"))?;
    let change = next.ok_or_else(|| Status::unavailable("the stream ended"))??;
    change.change.ok_or_else(|| Status::internal("a change without content"))
}

/// Completes when a host is known that is not watched.
async fn added(table: &RouteTable, watched: &[String]) {
    loop {
        table.added.notified().await;
        tokio::time::sleep(GATHER_TIME).await;
        if table.hosts().iter().any(|host| !watched.contains(host)) {
            return;
        }
    }
}

fn apply(change: Change, watched: &[String], table: &RouteTable, verifier: &Verifier) {
    match change {
        // Only of what was asked for: a pushed route must not become one that is known by itself.
        Change::Route(entry) if table.is_known(&entry.host) => {
            let host = entry.host.clone();
            table.record(&host, entry);
        }
        Change::Route(_) => {}
        Change::RemovedHost(host) => table.remove(&host),
        Change::Keys(keys) => {
            tracing::info!(keys = keys.keys.len(), "token keys");
            verifier.set_keys(keys);
        }
        Change::Heartbeat(_) => table.renew(watched),
    }
}

#[tonic::async_trait]
impl Routes for SchedulerRoutes {
    async fn lookup(&self, host: &str, resume: bool) -> Result<Option<RouteEntry>, Unavailable> {
        let mut client = self.client()?;
        let request = client.lookup(LookupRequest { host: host.to_owned(), resume });
        let reply = tokio::time::timeout(LOOKUP_TIMEOUT, request).await.map_err(|_| Unavailable)?;
        let reply = reply.map_err(|status| {
            tracing::info!(error = chain(&status), "a route could not be asked for");
            Unavailable
        })?;
        match reply.into_inner().outcome {
            Some(lookup_reply::Outcome::Route(entry)) => Ok(Some(entry)),
            Some(lookup_reply::Outcome::Absent(_)) => Ok(None),
            None => Err(Unavailable),
        }
    }
}
