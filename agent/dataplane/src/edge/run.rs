//! The edge process from its first task to its last.

use std::path::Path;
use std::sync::Arc;

use roost_daemon::health::{self, Health, Registry};
use roost_daemon::shutdown::{DRAIN_DEADLINE, Drained, Shutdown};
use roost_daemon::{packet, shutdown};

use super::EdgeHandler;
use crate::config::Settings;
use crate::control;
use crate::guest::Guests;

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
}

/// Serves until SIGTERM, then drains.
pub async fn run(settings: Settings) -> Result<(), Error> {
    let shutdown = Shutdown::on_signals()?;
    let health = Health::new();
    let ready = health.check("control");
    let (notices, notice_queue) = control::notices();
    let guests = Guests::new(notices);
    let handler = Arc::new(EdgeHandler::new(guests.clone(), shutdown.clone()));

    if let Some(address) = &settings.health {
        let listener = health::bind(address).await?;
        let registry = Arc::new(Registry::default());
        tokio::spawn(health::serve(
            listener,
            health.clone(),
            registry,
            shutdown.clone(),
        ));
    }
    let agents = listen(&settings.process.control_socket)?;
    let agent_uid = settings.process.agent_uid;
    shutdown.spawn(control::serve(
        agents,
        agent_uid,
        handler,
        notice_queue,
        shutdown.clone(),
    ));
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

fn listen(path: &Path) -> Result<control::AgentListener, packet::Error> {
    packet::listen(path, CONTROL_MODE)
}
