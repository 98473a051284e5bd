//! The agent's side of egress: executions come with their sockets and go, and settings change.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use roost_daemon::telemetry::chain;
use roost_domain::address::{Exception, parse_cidr};
use roost_domain::host_name::Pattern;
use roost_domain::id::ExecutionId;
use roost_domain::sabotage::Defence;
use roost_proto::dataplane::{Configure, FloorException, Traffic, from_dataplane};
use roost_proto::host::LeaseChange;

use super::credentials::Leases;
use super::execution::{Execution, Sockets};
use super::{Error, MakeConnector, Services, Settings, audit};
use crate::control::{Attachment, Code, Handler, Notices, Refusal, Role, process_run};

/// Between two reports of byte counters; an execution's last one goes with its detach.
const TRAFFIC_EVERY: Duration = Duration::from_secs(5);

/// The egress role: everything it holds survives the agent.
#[derive(Debug)]
pub struct Egress {
    settings: Settings,
    services: Arc<Services>,
    notices: Notices,
    executions: Mutex<HashMap<ExecutionId, Arc<Execution>>>,
    /// One attach or detach at a time, also when an agent replaces another in the middle of one.
    changing: tokio::sync::Mutex<()>,
}

impl Egress {
    /// Opens the process's own directory: audit trail, keys, certificates.
    pub fn open(
        settings: Settings,
        directory: &Path,
        leases: Arc<dyn Leases>,
        make_connector: MakeConnector,
        notices: Notices,
    ) -> Result<Self, Error> {
        let services = Arc::new(Services::open(&settings, directory, leases, make_connector)?);
        let (executions, changing) = (Mutex::default(), tokio::sync::Mutex::default());
        Ok(Self { settings, services, notices, executions, changing })
    }

    /// Takes up certificates the agent brings, for ever.
    pub async fn watch_certificates(&self) {
        self.services.authority.keep_current().await;
    }

    /// Ships the audit trail, for ever.
    pub async fn ship_audit(&self, shipper: &dyn audit::ship::Shipper) {
        self.services.audit.ship(shipper).await;
    }

    /// Drops the leases that a pushed change names.
    pub fn forget_leases(&self, change: &LeaseChange) {
        if change.heartbeat {
            return;
        }
        let executions: Vec<Arc<Execution>> = self.lock().values().cloned().collect();
        for execution in executions {
            if change.executions.is_empty() || change.executions.contains(&execution.subject.execution) {
                execution.leases.forget(&change.secret_ids);
            }
        }
    }

    /// Tells the agent the byte counters that changed, for ever.
    pub async fn report_traffic(&self) {
        let mut reported = HashMap::new();
        loop {
            tokio::time::sleep(TRAFFIC_EVERY).await;
            let executions: Vec<Arc<Execution>> = self.lock().values().cloned().collect();
            reported.retain(|id, _| executions.iter().any(|execution| execution.id == *id));
            for execution in executions {
                let now = traffic_of(&execution);
                if reported.get(&execution.id) != Some(&now) {
                    reported.insert(execution.id, now.clone());
                    self.notices.offer(from_dataplane::Message::Traffic(now));
                }
            }
        }
    }

    /// Ends an execution and tells the agent what it has used.
    async fn stop(&self, execution: &Execution) {
        execution.stop().await;
        self.notices.offer(from_dataplane::Message::Traffic(traffic_of(execution)));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ExecutionId, Arc<Execution>>> {
        self.executions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, execution: ExecutionId) -> Option<Arc<Execution>> {
        self.lock().get(&execution).cloned()
    }
}

impl Handler for Egress {
    const ROLE: Role = Role::Egress;

    fn held(&self) -> Vec<(ExecutionId, u64)> {
        self.lock().values().map(|execution| (execution.id, execution.generation)).collect()
    }

    async fn attach(&self, attachment: Attachment, descriptors: Vec<OwnedFd>) -> Result<(), Refusal> {
        let _turn = self.changing.lock().await;
        let former = self.find(attachment.execution);
        if let Some(former) = &former {
            if former.generation == attachment.generation {
                return Ok(());
            }
            if former.generation > attachment.generation && !Defence::AttachOrder.is_off() {
                let message = format!("generation {} is attached already", former.generation);
                return Err(Refusal::new(Code::StaleGeneration, message));
            }
        }
        let invalid = |error: super::execution::Error| Refusal::invalid(chain(&error));
        let sockets = match &former {
            Some(former) if descriptors.is_empty() => former.sockets().try_clone().map_err(invalid)?,
            _ => Sockets::try_from(descriptors).map_err(invalid)?,
        };
        // One run of the process, one counter: it does not begin anew.
        let traffic = former.as_ref().map(|former| Arc::clone(&former.traffic)).unwrap_or_default();
        // What was begun under the former identity ends before the new one serves.
        if let Some(former) = former {
            self.lock().remove(&former.id);
            self.stop(&former).await;
        }
        let execution = Execution::start(Arc::clone(&self.services), &attachment, sockets, traffic);
        let execution = execution.map_err(invalid)?;
        self.lock().insert(execution.id, execution);
        Ok(())
    }

    async fn detach(&self, execution: ExecutionId) -> Option<Traffic> {
        let _turn = self.changing.lock().await;
        let held = self.lock().remove(&execution)?;
        held.stop().await;
        Some(traffic_of(&held))
    }

    async fn configure(&self, settings: Configure) -> Result<(), Refusal> {
        let exceptions: Result<Vec<_>, _> =
            settings.floor_exceptions.into_iter().map(read_exception).collect();
        self.services.set_floor(&self.settings, exceptions?);
        Ok(())
    }
}

fn traffic_of(execution: &Execution) -> Traffic {
    Traffic {
        execution: execution.id.to_string(),
        to_guest_bytes: execution.traffic.written.load(Ordering::Relaxed),
        from_guest_bytes: execution.traffic.read.load(Ordering::Relaxed),
        run: process_run(),
    }
}

fn read_exception(message: FloorException) -> Result<Exception, Refusal> {
    let invalid = |error: &dyn std::fmt::Display| Refusal::invalid(format!("floor exception: {error}"));
    let port = u16::try_from(message.port).map_err(|error| invalid(&error))?;
    Ok(Exception {
        name: Pattern::parse(&message.name).map_err(|error| invalid(&error))?,
        port,
        cidr: parse_cidr(&message.cidr).map_err(|error| invalid(&error))?,
    })
}
