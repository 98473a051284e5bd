//! The scheduler's side of the hosts: who may call what, what is wanted of each host, what each reports.
//!
//! Owns the mutual-TLS server (`server`, `gate`), the services hosts call (`join`, `sync`, `upload`, `lease`, `route`,
//! `ship`), the clients to a host's `Ensure` and `Gateway`, and the adoption of what hosts report (`observed`). Must
//! not decide what is wanted (that is `app`'s), and must not believe a host about whose a sandbox is.
//!
//! ```text
//! app ──commit──▶ store ──ensure_soon──▶ host ──Upload, Sync──▶ observed ──commit──▶ store ──changes()──▶ app
//! ```

mod client;
mod event;
mod gate;
mod join;
mod lease;
mod news;
mod observed;
mod route;
mod server;
mod ship;
mod sync;
mod upload;
mod wake;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use roost_daemon::clock::Clock;
use roost_proto::host::SandboxStatus;
use roost_proto::host::ensure_client::EnsureClient;
use roost_proto::host::gateway_client::GatewayClient;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub use gate::{Allowed, CALLERS, Caller};
pub use join::hash_token;
pub use server::{Bound, bind};

use crate::audit::Audit;
use crate::pki::{Pki, Role};
use crate::secret::Vault;
use crate::store::{self, Store, host, sandbox};

/// How long one push of a wanted state may take; Sync repairs what fails.
const ENSURE_DEADLINE: Duration = Duration::from_secs(5);
const ENSURE_ATTEMPTS: u32 = 3;
const ENSURE_PAUSE: Duration = Duration::from_millis(200);
/// Pushes under way at once.
const ENSURE_PUSHES: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the store failed")]
    Store(#[from] store::Error),
    #[error("no host {host_id}")]
    NoHost { host_id: String },
    #[error("sandbox {sandbox_id} is placed on no host")]
    NotPlaced { sandbox_id: String },
    #[error("the address {address:?} of host {host_id} cannot be dialled")]
    Address { host_id: String, address: String, source: tonic::transport::Error },
    #[error("host {host_id} did not answer {call} ({code:?}): {message}")]
    Silent { host_id: String, call: &'static str, code: tonic::Code, message: String },
    #[error("serve hosts at {address}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("set up TLS for hosts")]
    Tls(#[source] tonic::transport::Error),
}

/// How routes look to browsers, and how long what hosts know may be used.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `iss` of browser tokens.
    pub issuer: String,
    /// What browser tokens begin with, like `miosa_pv_`.
    pub token_prefix: String,
    /// Origins that may frame any preview.
    pub frame_ancestors: Vec<String>,
    /// How long credentials and private previews go on without us.
    pub revocation_bound: Duration,
}

/// A cheap handle on everything about hosts.
#[derive(Debug, Clone)]
pub struct Fleet {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    clock: Arc<dyn Clock>,
    pki: Arc<Pki>,
    vault: Vault,
    audit: Audit,
    settings: Settings,
    clients: client::Clients,
    pushes: Arc<Semaphore>,
    changes: watch::Sender<u64>,
    feed: news::Feed,
    calls: gate::Calls,
    /// Ends streams and background work of the server.
    stop: CancellationToken,
}

impl Fleet {
    pub fn new(
        store: Store,
        clock: Arc<dyn Clock>,
        pki: Arc<Pki>,
        vault: Vault,
        audit: Audit,
        settings: Settings,
    ) -> Fleet {
        let clients = client::Clients::new(&pki);
        let (changes, _) = watch::channel(0);
        let pushes = Arc::new(Semaphore::new(ENSURE_PUSHES));
        let (feed, stop) = (news::Feed::new(), CancellationToken::new());
        let calls = gate::Calls::default();
        let shared =
            Shared { store, clock, pki, vault, audit, settings, clients, pushes, changes, feed, calls, stop };
        Fleet { shared: Arc::new(shared) }
    }

    /// Shows the hosts' calls on /metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "roost_fleet_calls",
            "Calls of hosts, by RPC and whether they were let in",
            self.shared.calls.clone(),
        );
    }

    /// Marks a change each time something about a sandbox was committed here. Another scheduler's commits do not
    /// show: look at the store again after a moment all the same.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Tells waiting calls and watching hosts that something they may care about was committed.
    pub fn note_change(&self) {
        self.shared.changes.send_modify(|count| *count += 1);
    }

    /// Pushes the wanted state of a sandbox to its host, in the background: what fails is repaired by the next Sync.
    pub fn ensure_soon(&self, sandbox_id: &str) {
        self.note_change();
        let (fleet, sandbox_id) = (self.clone(), sandbox_id.to_owned());
        tokio::spawn(async move {
            let Ok(_push) = fleet.shared.pushes.clone().acquire_owned().await else { return };
            for attempt in 1..=ENSURE_ATTEMPTS {
                match fleet.ensure(&sandbox_id).await {
                    Ok(()) => return,
                    Err(error) if attempt == ENSURE_ATTEMPTS => {
                        let error = roost_daemon::telemetry::chain(&error);
                        tracing::warn!(
                            sandbox = sandbox_id,
                            error,
                            "a wanted state was not pushed; Sync will bring it"
                        );
                    }
                    Err(_) => tokio::time::sleep(ENSURE_PAUSE * attempt).await,
                }
            }
        });
    }

    /// Pushes the wanted state of a sandbox to its host and adopts what the host answers.
    pub async fn ensure(&self, sandbox_id: &str) -> Result<(), Error> {
        let id = sandbox_id.to_owned();
        let found = self.shared.store.read(move |tx| {
            let Some(row) = sandbox::find_any(tx, &id)? else { return Ok(None) };
            let Some(host_id) = &row.host_id else { return Ok(None) };
            Ok(host::find(tx, host_id)?.map(|host| (row, host)))
        });
        let (row, host) =
            found.await?.ok_or_else(|| Error::NotPlaced { sandbox_id: sandbox_id.to_owned() })?;
        let channel = self.shared.clients.channel(&host.id, Role::Agent, &host.ensure_address)?;
        let mut request = tonic::Request::new(wire::ensure_request(&row));
        request.set_timeout(ENSURE_DEADLINE);
        let answer = tokio::time::timeout(ENSURE_DEADLINE, EnsureClient::new(channel).ensure(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer in time")));
        let reply = answer.map_err(|status| Error::Silent {
            host_id: host.id.clone(),
            call: "Ensure",
            code: status.code(),
            message: status.message().to_owned(),
        })?;
        if let Some(status) = reply.into_inner().status {
            self.adopt(&host.id, vec![status]).await?;
        }
        Ok(())
    }

    /// A way into the guests of a host. Connections are kept and made again by themselves; each call sets its own
    /// deadline and names its sandbox in [`roost_proto::host::SANDBOX_METADATA`].
    pub async fn gateway(&self, host_id: &str) -> Result<GatewayClient<Channel>, Error> {
        let id = host_id.to_owned();
        let host = self.shared.store.read(move |tx| host::find(tx, &id)).await?;
        let host = host.ok_or_else(|| Error::NoHost { host_id: host_id.to_owned() })?;
        let channel = self.shared.clients.channel(&host.id, Role::Edge, &host.gateway_address)?;
        Ok(GatewayClient::new(channel).max_decoding_message_size(client::MESSAGE_BYTES_MAX))
    }

    /// Stores what a host reports, as far as it is newer and the host's to report.
    async fn adopt(&self, host_id: &str, statuses: Vec<SandboxStatus>) -> Result<(), Error> {
        let (host_id, now_us) = (host_id.to_owned(), self.now_us());
        let adopted = self.shared.store.write(move |tx| {
            let mut adopted = observed::Adopted::default();
            for status in &statuses {
                adopted.add(observed::adopt(tx, &host_id, status, now_us)?);
            }
            Ok(adopted)
        });
        self.after_adoption(adopted.await?);
        Ok(())
    }

    fn after_adoption(&self, adopted: observed::Adopted) {
        if adopted.changed {
            self.note_change();
        }
        for sandbox_id in adopted.offers {
            self.ensure_soon(&sandbox_id);
        }
    }

    fn now_us(&self) -> i64 {
        self.shared.clock.now_us()
    }
}
