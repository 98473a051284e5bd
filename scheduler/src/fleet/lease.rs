//! Leases of credentials: what egress processes ask for, and the word that what they hold is over.

use std::sync::Arc;
use std::time::Duration;

use roost_domain::sabotage::Defence;
use roost_proto::host as proto;
use tokio::sync::mpsc;
use tonic::Status;

use super::news::News;
use super::{Fleet, server};
use crate::secret::{self, Lease, Outcome};
use crate::store::sandbox::Sandbox;
use crate::store::{self, host, sandbox};

const PLACEHOLDERS_MAX: usize = 64;
const HEARTBEAT: Duration = Duration::from_secs(10);
/// A host whose clock is further off holds leases too long or not at all.
const CLOCK_SKEW_US_MAX: i64 = 30_000_000;
const WAITING_MAX: usize = 16;

impl Fleet {
    pub(super) async fn resolve(
        &self,
        host_id: &str,
        request: proto::ResolveRequest,
    ) -> Result<proto::ResolveReply, Status> {
        if request.placeholders.len() > PLACEHOLDERS_MAX {
            return Err(Status::invalid_argument(format!(
                "more than {PLACEHOLDERS_MAX} placeholders at once"
            )));
        }
        let (host_id, vault, bound) =
            (host_id.to_owned(), self.shared.vault.clone(), self.shared.settings.revocation_bound);
        let version = u64::try_from(self.now_us()).unwrap_or(0);
        let answered = self.shared.store.examine(move |tx| {
            let clock = host::find(tx, &host_id)?.map_or(0, |host| host.clock_skew_us);
            if clock.abs() > CLOCK_SKEW_US_MAX {
                return Err(Refused::Clock);
            }
            // The asker is who our own row says runs there now; anything else is not current and gets nothing.
            let asked = sandbox::find_any(tx, &request.sandbox)?
                .filter(|row| is_current(row, &host_id, &request.execution));
            let asked = asked.ok_or(Refused::NotCurrent)?;
            Ok(vault.resolve(tx, &asked, &request.placeholders, bound)?)
        });
        let outcomes = answered.await.map_err(Status::from)?;
        let resolutions =
            outcomes.into_iter().map(|(placeholder, outcome)| resolution(placeholder, outcome)).collect();
        Ok(proto::ResolveReply { resolutions, version })
    }

    /// The stream of one egress process: a heartbeat while nothing happens, and which executions must ask again.
    pub(super) fn watch_leases(&self, host_id: String) -> mpsc::Receiver<Result<proto::LeaseChange, Status>> {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let (fleet, mut news) = (self.clone(), self.shared.feed.subscribe());
        tokio::spawn(async move {
            let mut beat = tokio::time::interval(HEARTBEAT);
            loop {
                let change = tokio::select! {
                    () = fleet.shared.stop.cancelled() => return,
                    () = sender.closed() => return,
                    _ = beat.tick() => Ok(Some(fleet.lease_change(vec![], true))),
                    news = news.next() => fleet.leases_over(&host_id, &news).await,
                };
                match change {
                    Ok(None) => {}
                    Ok(Some(change)) => {
                        if sender.send(Ok(change)).await.is_err() {
                            return;
                        }
                    }
                    // Ending the stream makes egress drop what it holds and ask again.
                    Err(error) => {
                        let _ = sender.send(Err(server::internal(&error))).await;
                        return;
                    }
                }
            }
        });
        receiver
    }

    /// Executions of this host whose leases are over. Any change within a tenant ends all of them, whatever secret it
    /// was about: a new one may win over one that is held, and a lease is cheap to ask for.
    async fn leases_over(
        &self,
        host_id: &str,
        news: &Arc<News>,
    ) -> Result<Option<proto::LeaseChange>, store::Error> {
        let is_about_leases = news.everything || !news.secrets.is_empty() || !news.tenants.is_empty();
        if !is_about_leases {
            return Ok(None);
        }
        let id = host_id.to_owned();
        let placed = self.shared.store.read(move |tx| sandbox::list_placed(tx, &id)).await?;
        let concerns = |row: &Sandbox| {
            news.everything || news.tenants.contains(&row.tenant_id) || news.secrets.contains(&row.tenant_id)
        };
        let executions: Vec<String> =
            placed.into_iter().filter(|row| concerns(row)).filter_map(|row| row.execution_id).collect();
        if executions.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.lease_change(executions, false)))
    }

    fn lease_change(&self, executions: Vec<String>, heartbeat: bool) -> proto::LeaseChange {
        let version = u64::try_from(self.now_us()).unwrap_or(0);
        proto::LeaseChange { version, executions, secret_ids: vec![], heartbeat }
    }
}

fn is_current(row: &Sandbox, host_id: &str, execution: &str) -> bool {
    row.host_id.as_deref() == Some(host_id) && row.execution_id.as_deref() == Some(execution)
        || Defence::LeasePlacement.is_off()
}

fn resolution(placeholder: String, outcome: Outcome) -> proto::Resolution {
    use proto::resolution::Outcome as Wire;
    let outcome = match outcome {
        Outcome::Lease(lease) => Wire::Credential(credential(*lease)),
        Outcome::Nothing { reason } => Wire::None(reason),
        Outcome::Foreign { reason } => Wire::Foreign(reason.to_owned()),
    };
    proto::Resolution { placeholder, outcome: Some(outcome) }
}

fn credential(lease: Lease) -> proto::Credential {
    let value = lease.secret_bytes().to_vec().into();
    let secret = lease.secret;
    proto::Credential {
        unbound: secret.allowed_hosts.is_empty() && !secret.swap_anywhere,
        secret_id: secret.id,
        name: secret.name,
        logical_key: lease.logical_key,
        scope: lease.step.text().to_owned(),
        value,
        allowed_hosts: secret.allowed_hosts,
        slots: secret.slots,
        version: secret.version,
        expires_us: lease.expires_us,
    }
}

enum Refused {
    Clock,
    NotCurrent,
    Vault(secret::Error),
}

impl From<store::Error> for Refused {
    fn from(error: store::Error) -> Refused {
        Refused::Vault(error.into())
    }
}

impl From<secret::Error> for Refused {
    fn from(error: secret::Error) -> Refused {
        Refused::Vault(error)
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Status {
        match refused {
            Refused::Clock => {
                Status::failed_precondition("the host's clock is more than 30 s off: no leases")
            }
            Refused::NotCurrent => {
                Status::failed_precondition("this execution is not the sandbox's current one here")
            }
            Refused::Vault(error) => server::internal(&error),
        }
    }
}
