//! The edge process from its first task to its last.

use std::net::TcpListener as StdTcpListener;
use std::sync::Arc;

use roost_daemon::health::{self, Health, Registry};
use roost_daemon::shutdown::{DRAIN_DEADLINE, Drained, Shutdown};
use roost_daemon::{packet, shutdown};
use tokio::net::TcpListener;

use super::metrics::{self, PreviewMetrics};
use super::network::{Served, serve_network};
use super::preview::{BadBrand, Door, Previews, SchedulerRoutes};
use super::{EdgeHandler, Ports};
use crate::config::Settings;
use crate::control::{self, Role};
use crate::guest::Guests;
use crate::identity::{self, Identity};

// Only the agent, which is root, and the process itself open the control socket.
const CONTROL_MODE: u32 = 0o600;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("wait for signals")]
    Signals(#[from] shutdown::Error),
    #[error("control socket")]
    Control(#[from] packet::Error),
    #[error("health address")]
    Health(#[from] health::Error),
    #[error("identity in the fleet")]
    Identity(#[from] identity::Error),
    #[error("previews")]
    Brand(#[from] BadBrand),
    #[error("take a listening socket over")]
    Port(#[source] std::io::Error),
}

/// Serves until SIGTERM, then drains.
pub async fn run(settings: Settings, ports: Ports) -> Result<(), Error> {
    let shutdown = Shutdown::on_signals()?;
    let health = Health::new();
    let ready = health.check("control");
    let identity = Identity::open(&settings.process.directory, Role::Edge)?;
    tokio::spawn(identity.clone().keep_current());

    let (notices, notice_queue) = control::notices();
    let guests = Guests::new(notices);
    let mut registry = Registry::default();
    let metrics = metrics::register(&mut registry, guests.clone());
    if let Some(address) = &settings.health {
        let listener = health::bind(address).await?;
        tokio::spawn(health::serve(listener, health.clone(), Arc::new(registry), shutdown.clone()));
    }
    let previews = start_previews(&settings, ports.previews, &identity, &guests, metrics, &shutdown)?;
    if let Some(listener) = ports.gateway {
        let served = Served { guests: guests.clone(), previews };
        shutdown.spawn(serve_network(take_over(listener)?, identity, served, shutdown.clone()));
    }
    let handler = Arc::new(EdgeHandler::new(guests.clone(), shutdown.clone()));
    let agents = packet::listen(&settings.process.control_socket, CONTROL_MODE)?;
    let agent_uid = settings.process.agent_uid;
    shutdown.spawn(control::serve(agents, agent_uid, handler, notice_queue, shutdown.clone()));
    tokio::spawn(async move { guests.report_traffic().await });
    ready.pass();
    tracing::info!(control = %settings.process.control_socket.display(), "edge serves");

    shutdown.requested().await;
    ready.fail("stopping");
    if let Drained::GivenUp { tasks } = shutdown.drain(DRAIN_DEADLINE).await {
        tracing::warn!(tasks, "stopped with tasks under way");
    }
    Ok(())
}

fn start_previews(
    settings: &Settings,
    listeners: Vec<StdTcpListener>,
    identity: &Arc<Identity>,
    guests: &Arc<Guests>,
    metrics: PreviewMetrics,
    shutdown: &Shutdown,
) -> Result<Option<Arc<Door>>, Error> {
    let (Some(preview), Some(scheduler)) = (&settings.preview, &settings.scheduler) else {
        return Ok(None);
    };
    let source = SchedulerRoutes::new(identity.clone(), scheduler.address.clone());
    let previews = Previews::new(
        &settings.process.directory,
        preview,
        source.clone(),
        guests.clone(),
        identity.clone(),
        metrics,
    )?;
    tokio::spawn(source.clone().keep_connected());
    tokio::spawn(source.follow(previews.routes.clone(), previews.verifier.clone()));
    let listeners = listeners.into_iter().map(take_over).collect::<Result<_, _>>()?;
    let door = previews.door.clone();
    previews.serve(listeners, shutdown);
    Ok(Some(door))
}

fn take_over(listener: StdTcpListener) -> Result<TcpListener, Error> {
    TcpListener::from_std(listener).map_err(Error::Port)
}
