//! What the agent itself adds to a create: a real store, namespace, rules, tap, cgroup and disk, but a VMM that does
//! nothing and a data plane that says yes.
//!
//! What `cargo xtask bench create` starts. In turns with the host operations alone, called one after the other. Prints
//! wall time and CPU time of each turn, tools of both included, as JSON.
//! Usage: `agent-yardstick IMAGES TEMPLATE COUNT`.

#![allow(clippy::unwrap_used, reason = "a host that cannot be made cannot be measured")]

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use roost_agent::config::Config;
use roost_agent::host::cgroup::{self, Limits};
use roost_agent::host::names::Names;
use roost_agent::host::process::VmmProcess;
use roost_agent::host::room::Room;
use roost_agent::host::{file, netns, reclaim, seal, sockets, tap};
use roost_agent::image::Image;
use roost_agent::plane::{self, Plane, Traffic};
use roost_agent::sandbox::live::{Host, Live};
use roost_agent::sandbox::record::{Origin, Spec};
use roost_agent::sandbox::{Manager, step};
use roost_agent::snapshot::{Key, Manifest, Snapshots};
use roost_agent::store::Store;
use roost_agent::store::sandbox::Draft;
use roost_agent::vmm::{AdoptSpec, Driver, End, Error, Geometry, LaunchSpec, Launched, Observed, Vm};
use roost_daemon::packet::{self, PacketListener};
use roost_domain::desired::{Desired, Offer, Run};
use roost_domain::id::SandboxId;
use roost_domain::lifecycle::State;
use roost_proto::dataplane::from_dataplane::Message as Answer;
use roost_proto::dataplane::to_dataplane::Message as Ask;
use roost_proto::dataplane::{Ack, Claimed, FromDataplane, GENERATION, Holding, ToDataplane};
use tokio::sync::watch;

const DEADLINE: Duration = Duration::from_secs(60);
const GEOMETRY: Geometry = Geometry { vcpus: 1, memory_mib: 256 };
const DISK_MIB: u64 = 1024;
/// As many as the agent hands over.
const DIAL_SOCKETS: usize = 8;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, images, template, count] = &arguments[..] else {
        panic!("usage: agent-yardstick IMAGES TEMPLATE COUNT")
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure(Path::new(images), template, count.parse().unwrap()));
}

async fn measure(images: &Path, template: &str, count: usize) {
    let directory = tempfile::tempdir().unwrap();
    let instance = format!("roost-y{}", std::process::id());
    let config = Arc::new(Config {
        run_dir: Path::new("/run").join(&instance),
        instance,
        state_dir: directory.path().to_owned(),
        image_dir: images.to_owned(),
        ..Config::default()
    });
    let _run_dir = Removed(config.run_dir.clone());
    for (role, socket) in [("egress", config.egress_socket()), ("edge", config.edge_socket())] {
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        tokio::spawn(agree(packet::listen(&socket, 0o600).unwrap(), role));
    }
    let settings = plane::Settings {
        egress_socket: config.egress_socket(),
        egress_uid: 0,
        edge_socket: config.edge_socket(),
        edge_uid: 0,
    };
    let (plane, _requests) = Plane::start(&settings, &config.instance, Traffic::default());
    let mut changes = plane.changes();
    while !(plane.egress.is_connected() && plane.edge.is_connected()) {
        changes.changed().await.unwrap();
    }
    let store = Store::open(&config.database()).unwrap();
    let room = Room::new(config.state_dir.clone(), 0, 0);
    let host = Host::with_driver(&config, room, Arc::new(NullDriver::default()), "null".to_owned()).unwrap();
    let live = Arc::new(Live::new(host.clone(), plane.clone(), Arc::clone(&config)));
    let uids = step::Settings { vmm_uids: (config.vmm.uid_first, config.vmm.uid_last) };
    let manager = Manager::new(live, store, uids, plane.changes());

    let mut agent = Figures::default();
    let mut bare = Figures::default();
    for round in 0..=count {
        let (mut ours, mut theirs) = (Figures::default(), Figures::default());
        create_and_destroy(&manager, template, &mut ours).await;
        let (host, state_dir) = (host.clone(), config.state_dir.clone());
        theirs = tokio::task::spawn_blocking(move || {
            make_bare(&host, &state_dir, &mut theirs);
            theirs
        })
        .await
        .unwrap();
        // The first of each hashes the image and formats the disk.
        if round > 0 {
            agent.append(ours);
            bare.append(theirs);
        }
    }
    host.tidy();
    println!(
        "{}",
        serde_json::json!({
            "wall_ms": agent.wall_ms, "cpu_ms": agent.cpu_ms,
            "bare_wall_ms": bare.wall_ms, "bare_cpu_ms": bare.cpu_ms,
        })
    );
}

struct Removed(std::path::PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[derive(Default)]
struct Figures {
    wall_ms: Vec<f64>,
    cpu_ms: Vec<f64>,
}

impl Figures {
    fn append(&mut self, mut others: Self) {
        self.wall_ms.append(&mut others.wall_ms);
        self.cpu_ms.append(&mut others.cpu_ms);
    }

    fn push(&mut self, begun: Instant, cpu_ms_before: f64) {
        self.wall_ms.push(begun.elapsed().as_secs_f64() * 1e3);
        self.cpu_ms.push(cpu_ms() - cpu_ms_before);
    }
}

/// Of this process and of the tools it has waited for.
fn cpu_ms() -> f64 {
    let of = |who| {
        let usage = getrusage(who).unwrap();
        (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e3
    };
    of(UsageWho::RUSAGE_SELF) + of(UsageWho::RUSAGE_CHILDREN)
}

/// From the wish to the commit of `running`; the end is not counted, but waited for.
async fn create_and_destroy(manager: &Manager, template: &str, figures: &mut Figures) {
    let id: SandboxId = roost_daemon::ids::fresh();
    let spec = Spec {
        template: template.to_owned(),
        vcpus: GEOMETRY.vcpus,
        memory_mib: GEOMETRY.memory_mib,
        disk_mib: DISK_MIB,
        host_name: "yardstick".to_owned(),
        environment: Default::default(),
    };
    let desired = Desired { run: Run::Running, generation: 1, placement_epoch: 1 };
    let offer = Offer { desired, adopted_seq: 0 };
    let now_us = roost_daemon::clock::now_us();
    // A tenant's, whose every commit has rows for the scheduler.
    let draft = Draft { id, origin: Origin::Tenant, spec, lineage: id, offer, now_us };
    let (begun, cpu) = (Instant::now(), cpu_ms());
    manager.ensure(draft).await.unwrap();
    until(manager, id, State::Running).await;
    figures.push(begun, cpu);
    manager.request(id, Run::Destroyed).await.unwrap();
    until(manager, id, State::Destroyed).await;
}

async fn until(manager: &Manager, id: SandboxId, state: State) {
    let mut commits = manager.commits(id);
    let reached = async {
        loop {
            commits.borrow_and_update();
            let found = manager.find(id).await.unwrap().unwrap();
            assert_ne!(found.state, State::Failed, "{:?}", found.state_reason);
            if found.state == state {
                return;
            }
            // The actor of a destroyed sandbox is gone, and its channel with it.
            let _ = commits.changed().await;
        }
    };
    tokio::time::timeout(DEADLINE, reached).await.unwrap();
}

/// The same kernel objects, without store, steps, data plane and VMM.
fn make_bare(host: &Host, state_dir: &Path, figures: &mut Figures) {
    let names: Names = host.names(&roost_daemon::ids::fresh());
    let disk = state_dir.join("bare.ext4");
    let (begun, cpu) = (Instant::now(), cpu_ms());
    file::ensure_empty_disk(&state_dir.join("cache"), &disk, DISK_MIB).unwrap();
    let netns = netns::ensure(&names.netns).unwrap();
    seal::ensure(&netns).unwrap();
    cgroup::ensure(&names.cgroup, &limits()).unwrap();
    let tap = tap::open(&netns).unwrap();
    let sockets = (
        sockets::open_listener(&netns).unwrap(),
        sockets::open_dns(&netns).unwrap(),
        sockets::open_dial_sockets(&netns, DIAL_SOCKETS).unwrap(),
    );
    figures.push(begun, cpu);
    drop((tap, sockets, netns));
    reclaim::remove(&names).unwrap();
    std::fs::remove_file(disk).unwrap();
}

fn limits() -> Limits {
    Limits { memory_bytes: GEOMETRY.memory_mib << 20, vcpus: GEOMETRY.vcpus, processes: 1 }
}

/// A data-plane process that holds what it is handed, and claims every guest at once.
async fn agree(mut listener: PacketListener<FromDataplane, ToDataplane>, role: &'static str) {
    let socket = listener.accept().await.unwrap();
    let mut held: HashMap<String, Vec<OwnedFd>> = HashMap::new();
    while let Ok(Some((ToDataplane { id, message: Some(ask) }, descriptors))) = socket.recv().await {
        let answer = match ask {
            Ask::Hello(_) => Answer::Holding(Holding {
                generation: GENERATION,
                role: role.to_owned(),
                executions: Vec::new(),
                more: false,
            }),
            Ask::Claim(_) | Ask::Personalise(_) => {
                Answer::Claimed(Claimed { protocol_generation: 1, waited_us: 0 })
            }
            Ask::Attach(attach) => {
                held.insert(attach.execution, descriptors);
                Answer::Ack(Ack {})
            }
            Ask::Detach(detach) => {
                held.remove(&detach.execution);
                Answer::Ack(Ack {})
            }
            _ => Answer::Ack(Ack {}),
        };
        socket.send(&FromDataplane { id, message: Some(answer) }, &[]).await.unwrap();
    }
}

/// Starts nothing.
#[derive(Debug, Default)]
struct NullDriver(AtomicU32);

#[async_trait]
impl Driver for NullDriver {
    fn name(&self) -> &'static str {
        "null"
    }

    fn key(&self, image: &Image, geometry: Geometry) -> Key {
        Key {
            image: image.digest.clone(),
            vcpus: geometry.vcpus,
            memory_mib: geometry.memory_mib,
            machine: "null".to_owned(),
            vmm_version: "1".to_owned(),
            hardware: String::new(),
            command_line: String::new(),
        }
    }

    fn limits(&self, _: Geometry) -> Limits {
        limits()
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Launched, Error> {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        // Above every real pid, so that a mistaken signal hits nobody.
        let process = VmmProcess { pid: 0x4000_0000 + number, start_time: 1 };
        let vm = NullVm { process, state: watch::Sender::new(Observed::Paused), tap: Mutex::new(spec.tap) };
        Ok(Launched { process, vm: Arc::new(vm) })
    }

    async fn adopt(&self, _: AdoptSpec) -> Result<Option<Arc<dyn Vm>>, Error> {
        Ok(None)
    }
}

#[derive(Debug)]
struct NullVm {
    process: VmmProcess,
    state: watch::Sender<Observed>,
    /// Held as a VMM would: the device goes with it.
    tap: Mutex<Option<OwnedFd>>,
}

#[async_trait]
impl Vm for NullVm {
    fn process(&self) -> VmmProcess {
        self.process
    }

    async fn cont(&self) -> Result<(), Error> {
        self.state.send_replace(Observed::Running);
        Ok(())
    }

    async fn stop(&self) -> Result<(), Error> {
        self.state.send_replace(Observed::Paused);
        Ok(())
    }

    async fn observe(&self) -> Result<Observed, Error> {
        Ok(*self.state.borrow())
    }

    async fn save(&self, _: &Snapshots, _: roost_domain::id::SnapshotId) -> Result<Manifest, Error> {
        unreachable!("nothing is paused here")
    }

    async fn kill(&self) -> Result<(), Error> {
        self.tap.lock().unwrap().take();
        self.state.send_replace(Observed::Gone(End::Killed));
        Ok(())
    }

    async fn wait_exit(&self) -> End {
        let mut state = self.state.subscribe();
        let gone = state.wait_for(|state| matches!(state, Observed::Gone(_))).await;
        match gone.as_deref() {
            Ok(Observed::Gone(end)) => *end,
            _ => End::Unknown,
        }
    }

    async fn console(&self, _: usize) -> Result<Bytes, Error> {
        Ok(Bytes::new())
    }
}
