//! Routes: which sandbox a preview host name leads to, as a lease, and the word when that changes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use roost_domain::host_name::Host;
use roost_domain::preview_host::{PreviewHost, Target};
use roost_proto::host as proto;
use roost_proto::host::route_change::Change;
use tokio::sync::mpsc;
use tonic::Status;

use super::news::News;
use super::{Fleet, server};
use crate::secret;
use crate::store::preview::Preview;
use crate::store::sandbox::Sandbox;
use crate::store::{self, Tx, host, preview, sandbox, setting, tenant};

const HOSTS_MAX: usize = 4096;
const HOST_BYTES_MAX: usize = 512;
const HEARTBEAT: Duration = Duration::from_secs(10);
const WAITING_MAX: usize = 64;
const FRAME_ANCESTORS: &str = "previews.frame_ancestors";
const PRODUCT_NAME: &str = "branding.product_name";
const LOGO_URL: &str = "branding.logo_url";

/// What a host name leads to, without what depends on the moment of asking.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    entry: proto::RouteEntry,
}

impl Fleet {
    /// What a host name leads to. With `resume` a visitor whom edge admitted waits, and a paused sandbox is woken.
    pub(super) async fn lookup(&self, host_name: &str, resume: bool) -> Result<proto::LookupReply, Status> {
        let failed = |error| server::internal(&error);
        let mut found = self.find_route(host_name).await.map_err(failed)?;
        if let Some(asleep) = found.as_ref().filter(|found| resume && found.entry.state == "paused") {
            self.wake(&asleep.entry.sandbox).await.map_err(failed)?;
            found = self.find_route(host_name).await.map_err(failed)?;
        }
        let outcome = match found {
            Some(found) => proto::lookup_reply::Outcome::Route(self.leased(found)),
            None => proto::lookup_reply::Outcome::Absent(true),
        };
        Ok(proto::LookupReply { outcome: Some(outcome) })
    }

    async fn find_route(&self, host_name: &str) -> Result<Option<Found>, store::Error> {
        if host_name.len() > HOST_BYTES_MAX {
            return Ok(None);
        }
        let asked = Host::parse(host_name).ok().as_ref().and_then(PreviewHost::find);
        let Some(asked) = asked else { return Ok(None) };
        let (name, ancestors) = (host_name.to_owned(), self.shared.settings.frame_ancestors.clone());
        self.shared.store.read(move |tx| find(tx, &name, &asked, &ancestors)).await
    }

    fn leased(&self, found: Found) -> proto::RouteEntry {
        let bound = i64::try_from(self.shared.settings.revocation_bound.as_micros()).unwrap_or(i64::MAX);
        proto::RouteEntry { expires_us: self.now_us().saturating_add(bound), ..found.entry }
    }

    /// The stream of one edge: keys first, then every change of a watched host, a heartbeat otherwise. A heartbeat
    /// renews every lease of the stream.
    pub(super) fn watch_routes(
        &self,
        hosts: Vec<String>,
    ) -> Result<mpsc::Receiver<Result<proto::RouteChange, Status>>, Status> {
        if hosts.len() > HOSTS_MAX {
            return Err(Status::invalid_argument(format!("more than {HOSTS_MAX} hosts in one watch")));
        }
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let fleet = self.clone();
        tokio::spawn(async move {
            let watch = Watch { fleet: &fleet, sender: &sender, known: HashMap::new(), keys: None };
            let ended = tokio::select! {
                () = fleet.shared.stop.cancelled() => return,
                () = sender.closed() => return,
                ended = watch.run(hosts) => ended,
            };
            if let Err(Ended::Failed(status)) = ended {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(receiver)
    }

    async fn keys(&self) -> Result<proto::PublicKeys, secret::Error> {
        let keys = self.shared.vault.public_keys().await?;
        let public = |key: secret::PublicKey| proto::PublicKey {
            key_id: key.kid,
            public_key: key.bytes.into(),
            not_after_us: key.not_after_us,
        };
        Ok(proto::PublicKeys {
            keys: keys.into_iter().map(public).collect(),
            issuer: self.shared.settings.issuer.clone(),
            token_prefix: self.shared.settings.token_prefix.clone(),
        })
    }
}

/// Why a watch ended.
enum Ended {
    Gone,
    Failed(Status),
}

struct Watch<'a> {
    fleet: &'a Fleet,
    sender: &'a mpsc::Sender<Result<proto::RouteChange, Status>>,
    /// What was last told of each watched host.
    known: HashMap<String, Option<Found>>,
    keys: Option<proto::PublicKeys>,
}

impl Watch<'_> {
    async fn run(mut self, hosts: Vec<String>) -> Result<(), Ended> {
        let mut news = self.fleet.shared.feed.subscribe();
        self.tell_keys().await?;
        for host in &hosts {
            self.tell(host).await?;
        }
        let mut beat = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    self.tell_keys().await?;
                    self.send(Change::Heartbeat(true)).await?;
                }
                news = news.next() => {
                    for host in self.affected(&news) {
                        self.tell(&host).await?;
                    }
                }
            }
        }
    }

    fn affected(&self, news: &Arc<News>) -> Vec<String> {
        let is_affected = |found: &Option<Found>| match found {
            None => !news.sandboxes.is_empty(),
            Some(found) => {
                news.sandboxes.contains(&found.entry.sandbox) || news.tenants.contains(&found.entry.tenant)
            }
        };
        let affected = self.known.iter().filter(|(_, found)| news.everything || is_affected(found));
        affected.map(|(host, _)| host.clone()).collect()
    }

    /// Tells what a host leads to if it is not what was told last.
    async fn tell(&mut self, host: &str) -> Result<(), Ended> {
        let found =
            self.fleet.find_route(host).await.map_err(|error| Ended::Failed(server::internal(&error)))?;
        if self.known.get(host) == Some(&found) {
            return Ok(());
        }
        self.known.insert(host.to_owned(), found.clone());
        match found {
            Some(found) => self.send(Change::Route(self.fleet.leased(found))).await,
            None => self.send(Change::RemovedHost(host.to_owned())).await,
        }
    }

    async fn tell_keys(&mut self) -> Result<(), Ended> {
        let keys = self.fleet.keys().await.map_err(|error| Ended::Failed(server::internal(&error)))?;
        if self.keys.as_ref() != Some(&keys) {
            self.keys = Some(keys.clone());
            self.send(Change::Keys(keys)).await?;
        }
        Ok(())
    }

    async fn send(&self, change: Change) -> Result<(), Ended> {
        self.sender.send(Ok(proto::RouteChange { change: Some(change) })).await.map_err(|_| Ended::Gone)
    }
}

fn find(
    tx: &mut Tx<'_>,
    name: &str,
    asked: &PreviewHost,
    ancestors: &[String],
) -> Result<Option<Found>, store::Error> {
    let Some((row, preview)) = find_preview(tx, asked)? else { return Ok(None) };
    let is_active = tenant::find(tx, &row.tenant_id)?.is_some_and(|tenant| tenant.state == "active");
    if !is_active || row.desired_run == "destroyed" {
        return Ok(None);
    }
    let owner = match &row.host_id {
        Some(id) => host::find(tx, id)?,
        None => None,
    };
    let mut text = |name| -> Result<String, store::Error> {
        let value = setting::find(tx, &row.tenant_id, name)?;
        Ok(value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default())
    };
    let (product_name, logo_url) = (text(PRODUCT_NAME)?, text(LOGO_URL)?);
    let own = setting::find(tx, &row.tenant_id, FRAME_ANCESTORS)?;
    let own = own.and_then(|value| serde_json::from_value::<Vec<String>>(value).ok()).unwrap_or_default();
    let running = row.state == "running";
    // What is wanted shows before the host has begun, so that a visitor knows to wait.
    let is_waking = row.desired_run == "running" && matches!(row.state.as_str(), "paused" | "stopped");
    let entry = proto::RouteEntry {
        host: name.to_owned(),
        preview_id: preview.id,
        sandbox: row.id,
        execution: row.execution_id.filter(|_| running).unwrap_or_default(),
        state: if is_waking { "resuming".to_owned() } else { row.state },
        port: u32::try_from(preview.port).unwrap_or(0),
        visibility: preview.visibility,
        share_generation: u64::try_from(preview.share_generation).unwrap_or(u64::MAX),
        tenant: row.tenant_id,
        frame_ancestors: ancestors.iter().cloned().chain(own).collect(),
        product_name,
        logo_url,
        expires_us: 0,
        owner_host_id: owner.as_ref().map(|host| host.id.clone()).unwrap_or_default(),
        owner_address: owner.map(|host| host.gateway_address).unwrap_or_default(),
    };
    Ok(Some(Found { entry }))
}

fn find_preview(tx: &mut Tx<'_>, asked: &PreviewHost) -> Result<Option<(Sandbox, Preview)>, store::Error> {
    let domain = asked.domain.to_string();
    match &asked.target {
        Target::Port { port, slug } => {
            let Some(row) = sandbox::find_by_domain(tx, &domain, &slug.to_string())? else { return Ok(None) };
            let preview = preview::find_by_port(tx, &row.id, *port)?;
            Ok(preview.map(|preview| (row, preview)))
        }
        Target::Key(key) => {
            let Some(preview) = preview::find_by_key(tx, key.as_str())? else { return Ok(None) };
            let row = sandbox::find_any(tx, &preview.sandbox_id)?.filter(|row| row.preview_domain == domain);
            Ok(row.map(|row| (row, preview)))
        }
    }
}
