//! The egress process from its first task to its last.

use std::sync::Arc;

use roost_daemon::health::{self, Health, Registry};
use roost_daemon::packet;
use roost_daemon::shutdown::{self, DRAIN_DEADLINE, Drained, Shutdown};

use super::credentials::{Leases, NoScheduler};
use super::scheduler::Scheduler;
use super::{Egress, system_connector};
use crate::control::Role;
use crate::identity::{self, Identity};
use crate::{config, control};

/// Only the agent, which is root, and the process itself open the control socket.
const CONTROL_MODE: u32 = 0o600;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("wait for signals")]
    Signals(#[from] shutdown::Error),
    #[error("control socket")]
    Control(#[from] packet::Error),
    #[error("health address")]
    Health(#[from] health::Error),
    #[error("own directory")]
    Open(#[from] super::Error),
    #[error("identity in the fleet")]
    Identity(#[from] identity::Error),
}

/// Serves until SIGTERM, then drains.
pub async fn run(process: config::Settings) -> Result<(), Error> {
    let shutdown = Shutdown::on_signals()?;
    let health = Health::new();
    let ready = health.check("control");
    let (notices, notice_queue) = control::notices();
    let scheduler = find_scheduler(&process)?;
    let leases: Arc<dyn Leases> = match &scheduler {
        Some(scheduler) => scheduler.clone(),
        None => Arc::new(NoScheduler),
    };
    let settings = process.egress.clone().unwrap_or_default();
    let egress =
        Arc::new(Egress::open(settings, &process.process.directory, leases, system_connector, notices)?);
    if let Some(scheduler) = scheduler {
        tokio::spawn(scheduler.clone().keep_connected());
        tokio::spawn(scheduler.clone().ship_audit(Arc::clone(&egress)));
        tokio::spawn(scheduler.follow(Arc::clone(&egress)));
    }

    if let Some(address) = &process.health {
        let listener = health::bind(address).await?;
        let registry = Arc::new(Registry::default());
        tokio::spawn(health::serve(listener, health.clone(), registry, shutdown.clone()));
    }
    let agents = packet::listen(&process.process.control_socket, CONTROL_MODE)?;
    let agent_uid = process.process.agent_uid;
    shutdown.spawn(control::serve(agents, agent_uid, Arc::clone(&egress), notice_queue, shutdown.clone()));
    let reporting = Arc::clone(&egress);
    tokio::spawn(async move { reporting.report_traffic().await });
    let watching = Arc::clone(&egress);
    tokio::spawn(async move { watching.watch_certificates().await });
    ready.pass();
    tracing::info!(control = %process.process.control_socket.display(), "egress serves");

    shutdown.requested().await;
    ready.fail("stopping");
    if let Drained::GivenUp { tasks } = shutdown.drain(DRAIN_DEADLINE).await {
        tracing::warn!(tasks, "stopped with tasks under way");
    }
    Ok(())
}

/// The scheduler, if the host has one: asked under this process's own certificate.
fn find_scheduler(process: &config::Settings) -> Result<Option<Arc<Scheduler>>, identity::Error> {
    let Some(scheduler) = &process.scheduler else { return Ok(None) };
    let identity = Identity::open(&process.process.directory, Role::Egress)?;
    tokio::spawn(identity.clone().keep_current());
    Ok(Some(Scheduler::new(identity, scheduler.address.clone())))
}
