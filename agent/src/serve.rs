//! The daemon: puts the parts together, in the order in which they need each other.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use roost_daemon::health::{self, Health};
use roost_daemon::shutdown::{DRAIN_DEADLINE, Drained, Shutdown};
use roost_proto::host::HostInfo;
use tracing::{info, warn};

use crate::config::{self, Config};
use crate::host::off_worker;
use crate::host::room::Room;
use crate::plane::{self, Plane};
use crate::sandbox::live::{Host, Live};
use crate::sandbox::{Manager, recover, step};
use crate::store::{Full, Store};
use crate::telemetry::Metrics;
use crate::{capacity, cli, link, meter};

/// How often the room in the state directory is looked at.
const ROOM_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT. VMs and data plane go on after it.
pub fn run(config: Config) -> anyhow::Result<()> {
    roost_daemon::telemetry::init(&config.log)?;
    if !nix::unistd::getuid().is_root() {
        bail!("the agent makes namespaces, taps and cgroups: run it as root");
    }
    roost_daemon::dumps::forbid()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(Arc::new(config)))
}

async fn serve(config: Arc<Config>) -> anyhow::Result<()> {
    let shutdown = Shutdown::on_signals()?;
    make_directories(&config)?;
    // Every check exists before the first question: without one a daemon would be ready.
    let health = Health::new();
    let (dataplane_ready, operators_ready) = (health.check("dataplane"), health.check("operators"));
    let disk_ready = health.check("disk");
    let joined = config.scheduler.as_ref().map(|_| health.check("joined"));
    let (metrics, registry) = Metrics::register();
    let listener = health::bind(&health::Settings::on_port(config.health_port)).await?;
    shutdown.spawn(health::serve(listener, health.clone(), registry, shutdown.clone()));

    let room =
        Room::new(config.state_dir.clone(), config.capacity.disk_reserve_mib, config.capacity.ballast_mib);
    let store = open_store(&config, &room).context("opening the agent's database")?;
    let traffic = recover::restore_traffic(&store).await.context("reading what was counted last")?;
    let (plane, requests) = Plane::start(
        &plane::Settings {
            egress_socket: config.egress_socket(),
            egress_uid: config.dataplane.egress_uid,
            edge_socket: config.edge_socket(),
            edge_uid: config.dataplane.edge_uid,
        },
        &config.instance,
        traffic,
    );
    let host = Host::prepare(&config, room.clone()).await?;
    recover::run(&host, &store).await.context("taking stock of the host")?;

    let live = Arc::new(Live::new(host.clone(), plane.clone(), Arc::clone(&config)));
    let settings = step::Settings { vmm_uids: (config.vmm.uid_first, config.vmm.uid_last) };
    let manager = Manager::new(live.clone(), store.clone(), settings, plane.changes());
    until(&shutdown, live.clone().serve_requests(requests));
    until(&shutdown, live.clone().keep_configured());
    until(&shutdown, meter::run(live.clone(), manager.clone(), store.clone()));
    until(&shutdown, meter::keep_short(store.clone()));
    until(&shutdown, metrics.keep_current(manager.clone(), store.clone()));

    until(&shutdown, watch_room(room, manager.clone(), disk_ready));

    let known = manager.resume_all().await?;
    info!(sandboxes = known, vmm = host.vmm_name(), "agent is up");
    if let (Some(settings), Some(joined)) = (&config.scheduler, joined) {
        let context = link::Context {
            manager: manager.clone(),
            store: store.clone(),
            settings: settings.clone(),
            info: host_info(&config, settings, &host)?,
            identity_dir: config.state_dir.join("identity"),
            joined,
        };
        shutdown.spawn(link::run(context, shutdown.clone()));
    }
    until(&shutdown, watch_dataplane(plane.clone(), dataplane_ready));
    let leftover = host.clone();
    let operators = cli::server::Context { manager, store, plane, config: Arc::clone(&config), host };
    let socket = config.cli_socket();
    tokio::select! {
        served = cli::server::serve(&socket, operators, operators_ready) => served.context("serving operators")?,
        () = shutdown.requested() => {}
    }
    if let Drained::GivenUp { tasks } = shutdown.drain(DRAIN_DEADLINE).await {
        warn!(tasks, "some tasks were still at work when the time to stop was over");
    }
    leftover.tidy();
    info!("agent is down; sandboxes and data plane go on");
    Ok(())
}

/// Disks, memory snapshots and keys are below the state directory; sockets with rights of their own below the other.
fn make_directories(config: &Config) -> anyhow::Result<()> {
    for (dir, mode) in [(&config.state_dir, 0o700), (&config.run_dir, 0o755)] {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        std::fs::set_permissions(dir, Permissions::from_mode(mode))
            .with_context(|| format!("setting the mode of {}", dir.display()))?;
    }
    Ok(())
}

/// A database that cannot be opened for want of room gets what was set aside for that.
fn open_store(config: &Config, room: &Room) -> Result<Store, crate::store::Error> {
    let store = Store::open(&config.database()).or_else(|error| match room.give_way_if_full() {
        true => Store::open(&config.database()),
        false => Err(error),
    })?;
    let room = room.clone();
    Ok(store.with_room_maker(move |full| {
        let _ = match full {
            Full::Surely => room.give_way(),
            Full::Perhaps => room.give_way_if_full(),
        };
    }))
}

/// Says whether there is room, sets the ballast aside again, and has held guests go on once there is.
async fn watch_room(room: Room, manager: Manager, ready: health::Check) {
    let mut was_short = false;
    loop {
        let looked = room.clone();
        let found = off_worker(move || {
            let found = looked.check();
            (found, looked.set_aside())
        });
        match found.await {
            (Ok(()), Ok(_)) => {
                ready.pass();
                if std::mem::take(&mut was_short) {
                    info!("there is room again in the state directory");
                    let _ = manager.resume_all().await;
                }
            }
            (Err(error), _) => {
                ready.fail(roost_daemon::telemetry::chain(&error));
                if !std::mem::replace(&mut was_short, true) {
                    warn!(error = %roost_daemon::telemetry::chain(&error), "no new sandboxes and snapshots");
                }
            }
            (Ok(()), Err(error)) => {
                ready.fail(roost_daemon::telemetry::chain(&error));
                warn!(error = %roost_daemon::telemetry::chain(&error), "no ballast could be set aside");
            }
        }
        tokio::time::sleep(ROOM_EVERY).await;
    }
}

/// Runs `work` until it ends or the daemon stops. Nothing here is lost by stopping: the store has it.
fn until(shutdown: &Shutdown, work: impl Future<Output = ()> + Send + 'static) {
    let stop = shutdown.clone();
    shutdown.spawn(async move {
        tokio::select! {
            () = work => {}
            () = stop.requested() => {}
        }
    });
}

fn host_info(config: &Config, settings: &config::Scheduler, host: &Host) -> anyhow::Result<HostInfo> {
    let budget = capacity::budget(config)?;
    Ok(HostInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ensure_address: settings.ensure_address.clone().unwrap_or_else(|| settings.ensure_listen.to_string()),
        gateway_address: settings.gateway_address.clone(),
        preview_address: settings.preview_address.clone(),
        memory_mib: budget.memory_mib,
        disk_mib: budget.disk_mib,
        vcpus: budget.vcpus,
        templates: host.list_templates(),
        vmm: host.vmm_name().to_owned(),
    })
}

/// Ready means that both data-plane processes are there.
async fn watch_dataplane(plane: Plane, ready: health::Check) {
    let mut changes = plane.changes();
    loop {
        match (plane.egress.is_connected(), plane.edge.is_connected()) {
            (true, true) => ready.pass(),
            (egress, edge) => ready.fail(format!("egress connected: {egress}, edge connected: {edge}")),
        }
        if changes.changed().await.is_err() {
            warn!("the data-plane sessions ended");
            return;
        }
    }
}
