//! The session with the scheduler: join once, then serve, sync and upload for as long as the agent lives.
//!
//! ```text
//! not joined ──Join──▶ joined ──▶ every 30 s or after a change: Upload until the outbox is empty, then Sync
//! ```

use std::sync::Arc;
use std::time::Duration;

use roost_daemon::shutdown::Shutdown;
use roost_proto::host::ensure_server::EnsureServer;
use roost_proto::host::fleet_client::FleetClient;
use roost_proto::host::{HostInfo, SandboxStatus, SyncRequest, UploadRequest};
use tokio::time::timeout;
use tonic::transport::{Channel, Server, ServerTlsConfig};
use tracing::{info, warn};

use super::identity::{self, Identity};
use super::{Error, ensure, wire};
use crate::config;
use crate::sandbox::Manager;
use crate::sandbox::record::Origin;
use crate::store::{self, Store};

const SYNC_EVERY: Duration = Duration::from_secs(30);
const CALL_DEADLINE: Duration = Duration::from_secs(10);
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Messages of the scheduler; a sync may bring every sandbox of this host.
const MESSAGE_MAX_BYTES: usize = 16 * 1024 * 1024;

/// What the session works with.
#[derive(Debug, Clone)]
pub struct Context {
    pub manager: Manager,
    pub store: Store,
    pub settings: config::Scheduler,
    pub info: HostInfo,
    pub identity_dir: std::path::PathBuf,
    pub joined: roost_daemon::health::Check,
}

/// Runs until shutdown is requested.
pub async fn run(context: Context, shutdown: Shutdown) {
    let work = async {
        // Each round serves and calls with the certificates of its beginning; a renewal starts the next.
        loop {
            let identity = join(&context).await;
            let serving = tokio::spawn(serve_ensure(context.clone(), identity.clone()));
            keep_in_step(&context, &identity).await;
            serving.abort();
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.requested() => {}
    }
}

/// Tries until the host has an identity.
async fn join(context: &Context) -> Arc<Identity> {
    let mut pause = RETRY_MIN;
    let mut complained = String::new();
    loop {
        match identity::ensure(context).await {
            Ok(identity) => {
                info!(host = %identity.host_id, "joined the fleet");
                context.joined.pass();
                return Arc::new(identity);
            }
            Err(error) => {
                let chain = roost_daemon::telemetry::chain(&error);
                context.joined.fail(chain.clone());
                // Each new reason once: while processes start up the same one repeats every moment.
                if chain != complained {
                    warn!(error = %chain, "not joined yet");
                    complained = chain;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

async fn serve_ensure(context: Context, identity: Arc<Identity>) {
    let tls = ServerTlsConfig::new()
        .identity(identity.for_tls())
        .client_ca_root(tonic::transport::Certificate::from_pem(&identity.fleet_roots_pem));
    let service = EnsureServer::new(ensure::Service { manager: context.manager.clone() });
    let listen = context.settings.ensure_listen;
    let served = async {
        Server::builder()
            .tls_config(tls)?
            .tcp_nodelay(true)
            .concurrency_limit_per_connection(64)
            .timeout(CALL_DEADLINE)
            .add_service(service)
            .serve(listen)
            .await
    };
    if let Err(error) = served.await {
        tracing::error!(%listen, error = %roost_daemon::telemetry::chain(&error), "cannot serve the scheduler");
    }
}

/// Returns when the host's certificates were renewed.
async fn keep_in_step(context: &Context, identity: &Identity) {
    let committed = context.manager.committed();
    let mut client: Option<FleetClient<Channel>> = None;
    let mut pause = RETRY_MIN;
    loop {
        let turn = async {
            let client = match &mut client {
                Some(client) => client,
                None => client.insert(connect(context, identity).await?),
            };
            upload(client, context, identity).await?;
            sync(client, context, identity).await?;
            identity::renew_if_due(context, client).await
        };
        match turn.await {
            Ok(true) => {
                info!("the host's certificates were renewed");
                return;
            }
            Ok(false) => {
                pause = RETRY_MIN;
                tokio::select! {
                    () = committed.notified() => {}
                    () = tokio::time::sleep(SYNC_EVERY) => {}
                }
            }
            Err(error) => {
                warn!(error = %roost_daemon::telemetry::chain(&error), "the scheduler cannot be told");
                client = None;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }
}

async fn connect(context: &Context, identity: &Identity) -> Result<FleetClient<Channel>, Error> {
    let (tls, endpoint) = identity::endpoint(&context.settings, &identity.fleet_roots_pem)?;
    let channel = endpoint.tls_config(tls.identity(identity.for_tls()))?.connect().await?;
    Ok(FleetClient::new(channel).max_decoding_message_size(MESSAGE_MAX_BYTES))
}

/// Sends the outbox in batches until it is empty; rows go only when the scheduler has committed them.
async fn upload(
    client: &mut FleetClient<Channel>,
    context: &Context,
    identity: &Identity,
) -> Result<(), Error> {
    loop {
        let rows = context.store.write(store::outbox::list_batch).await?;
        let Some(last) = rows.last().map(|row| row.seq) else {
            return Ok(());
        };
        let request = UploadRequest { host_id: identity.host_id.clone(), rows };
        let reply = within("Upload", client.upload(request)).await?;
        // Never more than was sent, whatever the answer says.
        let acked = reply.acked_seq.min(last);
        context.store.write(move |tx| store::outbox::remove_acked(tx, acked)).await?;
        if acked < last {
            return Err(Error::Malformed(format!("{acked} of {last} outbox rows acknowledged")));
        }
    }
}

/// Compares both sides' versions; what is missing or newer here comes back whole.
async fn sync(
    client: &mut FleetClient<Channel>,
    context: &Context,
    identity: &Identity,
) -> Result<(), Error> {
    let sandboxes = context.manager.list().await?;
    let tenants = sandboxes.iter().filter(|sandbox| sandbox.origin == Origin::Tenant);
    let request = SyncRequest {
        host_id: identity.host_id.clone(),
        info: Some(context.info.clone()),
        sandboxes: tenants.map(SandboxStatus::from).collect(),
        time_us: roost_daemon::clock::now_us(),
    };
    let reply = within("Sync", client.sync(request)).await?;
    for wish in reply.ensure {
        context.manager.ensure(wire::draft(wish)?).await?;
    }
    for unknown in reply.unknown_sandboxes {
        // Kept: a scheduler restored from an old backup must not make hosts destroy what it forgot.
        warn!(sandbox = unknown, "the scheduler does not know a sandbox of this host");
    }
    Ok(())
}

async fn within<T>(
    call: &'static str,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Error> {
    match timeout(CALL_DEADLINE, answer).await {
        Ok(answer) => Ok(answer.map_err(Error::refused(call))?.into_inner()),
        Err(_) => Err(Error::refused(call)(tonic::Status::deadline_exceeded("no answer in time"))),
    }
}
