//! Looks at a host. Judges nothing.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::capacity::{self, Budget};
use crate::config::Config;
use crate::host::names::Instance;
use crate::host::room::Room;
use crate::host::{cgroup, netns, off_worker, seal};
use crate::image::Images;
use crate::plane::Plane;
use crate::vmm::choose;

/// Programs the agent starts, and the Debian package of each.
const TOOLS: [(&str, &str); 2] = [("nft", "nftables"), ("mke2fs", "e2fsprogs")];
const SEARCH: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

pub(super) struct Facts {
    pub(super) uid: u32,
    pub(super) is_root: bool,
    pub(super) shares_mount_namespace: bool,
    pub(super) tools: Vec<Tool>,
    pub(super) has_tun: bool,
    pub(super) seal: Result<(), String>,
    pub(super) cgroups: Result<String, String>,
    pub(super) templates: Result<Vec<String>, String>,
    pub(super) vmm: Result<Choice, String>,
    pub(super) budget: Result<Budget, String>,
    /// MiB free in the state directory, or why that is too little.
    pub(super) room: Result<u64, String>,
    pub(super) egress: DataplaneFact,
    pub(super) edge: DataplaneFact,
}

pub(super) struct Tool {
    pub(super) name: &'static str,
    pub(super) package: &'static str,
    pub(super) path: Option<PathBuf>,
}

/// Which VMM was chosen, and why not a better one.
pub(super) struct Choice {
    pub(super) chosen: String,
    pub(super) reasons: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataplaneFact {
    Connected,
    /// The CLI cannot tell more without disturbing the agent's own connection.
    Listening,
    Absent,
}

pub(super) async fn gather(config: &Config, plane: Option<&Plane>) -> Facts {
    let uid = nix::unistd::getuid();
    let (looked, wanted) = (config.clone(), config.clone());
    let vmm = examine_vmm(&looked).await.map_err(|error| roost_daemon::telemetry::chain(error.as_ref()));
    off_worker(move || Facts {
        uid: uid.as_raw(),
        is_root: uid.is_root(),
        shares_mount_namespace: same_mount_namespace(),
        tools: TOOLS.map(|(name, package)| Tool { name, package, path: find_program(name) }).into(),
        has_tun: Path::new("/dev/net/tun").exists(),
        seal: try_seal(&wanted).map_err(|error| roost_daemon::telemetry::chain(error.as_ref())),
        cgroups: try_cgroup(&wanted).map_err(|error| roost_daemon::telemetry::chain(error.as_ref())),
        templates: Images::new(&wanted.image_dir)
            .list()
            .map(|templates| templates.into_iter().map(|template| template.name).collect())
            .map_err(|error| roost_daemon::telemetry::chain(&error)),
        vmm,
        budget: capacity::budget(&wanted).map_err(|error| roost_daemon::telemetry::chain(&error)),
        room: examine_room(&wanted).map_err(|error| roost_daemon::telemetry::chain(error.as_ref())),
        egress: DataplaneFact::Absent,
        edge: DataplaneFact::Absent,
    })
    .await
    .with_dataplane(config, plane)
}

impl Facts {
    fn with_dataplane(self, config: &Config, plane: Option<&Plane>) -> Self {
        let fact = |connected: Option<bool>, socket: &Path| match connected {
            Some(true) => DataplaneFact::Connected,
            Some(false) => DataplaneFact::Absent,
            None if socket.exists() => DataplaneFact::Listening,
            None => DataplaneFact::Absent,
        };
        Self {
            egress: fact(plane.map(|plane| plane.egress.is_connected()), &config.egress_socket()),
            edge: fact(plane.map(|plane| plane.edge.is_connected()), &config.edge_socket()),
            ..self
        }
    }
}

fn same_mount_namespace() -> bool {
    let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/mnt")).ok();
    of("self").is_some() && of("self") == of("1")
}

fn find_program(name: &str) -> Option<PathBuf> {
    SEARCH.iter().map(|dir| Path::new(dir).join(name)).find(|path| {
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

async fn examine_vmm(config: &Config) -> Trial<Choice> {
    let instance = Instance::new(&config.instance, &config.run_dir)?;
    let place = choose::Place {
        instance: &instance,
        program: &config.vmm.qemu,
        image_dir: &config.image_dir,
        uid: config.vmm.uid_last,
        execution: roost_daemon::ids::fresh(),
    };
    let choose::Choice { name, reasons, .. } = choose::choose(&config.vmm.driver, place).await?;
    Ok(Choice { chosen: name, reasons })
}

fn examine_room(config: &Config) -> Trial<u64> {
    let capacity = &config.capacity;
    let room = Room::new(config.state_dir.clone(), capacity.disk_reserve_mib, capacity.ballast_mib);
    room.check()?;
    Ok(room.free_mib()?)
}

type Trial<T> = Result<T, Box<dyn std::error::Error>>;

/// Names a probe's objects as an execution's, so that whatever a crash leaves is reclaimed like any other.
fn probe(config: &Config) -> Trial<crate::host::names::Names> {
    let instance = Instance::new(&config.instance, &config.run_dir)?;
    Ok(crate::host::names::Names::of(&instance, &roost_daemon::ids::fresh()))
}

fn try_seal(config: &Config) -> Trial<()> {
    let names = probe(config)?;
    let made = netns::ensure(&names.netns);
    let sealed = made.map_err(Box::<dyn std::error::Error>::from).and_then(|made| Ok(seal::ensure(&made)?));
    netns::remove(&names.netns)?;
    sealed
}

fn try_cgroup(config: &Config) -> Trial<String> {
    let names = probe(config)?;
    let limits = cgroup::Limits { memory_bytes: 64 << 20, vcpus: 1, processes: 16 };
    let made = cgroup::ensure(&names.cgroup, &limits);
    let used = made.map_err(Box::<dyn std::error::Error>::from).and_then(|made| Ok(made.usage()?));
    cgroup::remove(&names.cgroup)?;
    // Stays where sandboxes are: then it is theirs.
    let _ = cgroup::remove_instance(&Instance::new(&config.instance, &config.run_dir)?);
    used?;
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    Ok(if v2 { "v2" } else { "v1 controllers" }.to_owned())
}
