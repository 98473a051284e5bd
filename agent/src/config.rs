//! The agent's configuration file.
//!
//! Owns names, defaults and bounds of every setting. Unknown keys are refused, so that a typing error is not a
//! silent default.

use std::net::SocketAddr;
use std::path::PathBuf;

use roost_daemon::telemetry;
use serde::Deserialize;

/// `roost-agent serve --config FILE`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Prefix of every name this agent makes on the host; two agents on one machine need two.
    pub instance: String,
    pub state_dir: PathBuf,
    /// Short and on tmpfs: unix socket paths are limited to 108 bytes.
    pub run_dir: PathBuf,
    pub image_dir: PathBuf,
    /// /healthz, /readyz and /metrics.
    pub health_port: u16,
    pub log: telemetry::Settings,
    pub vmm: Vmm,
    pub dataplane: Dataplane,
    pub capacity: Capacity,
    pub egress: Egress,
    /// Absent: the host runs sandboxes of its own operator only.
    pub scheduler: Option<Scheduler>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vmm {
    /// `auto` tries KVM with a real boot and falls back to emulation; or `qemu-kvm`, `qemu-tcg`.
    pub driver: String,
    pub qemu: PathBuf,
    /// User ids VMMs run as, one each.
    pub uid_first: u32,
    pub uid_last: u32,
    /// How long a guest may take to answer its first call.
    pub start_deadline_s: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dataplane {
    pub egress_socket: Option<PathBuf>,
    pub egress_uid: u32,
    pub edge_socket: Option<PathBuf>,
    pub edge_uid: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capacity {
    /// 0: what the machine has, less a reserve.
    pub memory_mib: u64,
    pub memory_overcommit: f64,
    pub disk_mib: u64,
    pub disk_overcommit: f64,
    /// With less than this free in `state_dir`, new sandboxes and memory snapshots are refused.
    pub disk_reserve_mib: u64,
    /// Set aside in `state_dir` and given back when it is full, so that the agent can still write down what it does.
    pub ballast_mib: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Egress {
    /// Addresses inside the deny floor that guests may reach all the same, each by name, port and range.
    pub floor_exceptions: Vec<FloorException>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FloorException {
    pub name: String,
    pub port: u16,
    pub cidr: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheduler {
    /// `host:port` of the scheduler's host listener.
    pub address: String,
    /// The fleet root's certificate, so that the first call already knows whom it talks to.
    pub root_file: PathBuf,
    /// A one-time token from `roost-scheduler admin host token`; read once, at the first start.
    pub join_token_file: Option<PathBuf>,
    /// Where this host serves the scheduler, and how the scheduler reaches it if that differs.
    pub ensure_listen: SocketAddr,
    pub ensure_address: Option<String>,
    pub gateway_address: String,
    #[serde(default)]
    pub preview_address: String,
    /// The data-plane processes' own directories: requests for certificates are read there, certificates put there.
    pub egress_dir: PathBuf,
    pub edge_dir: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            instance: "roost".to_owned(),
            state_dir: "/var/lib/roost/agent".into(),
            run_dir: "/run/roost".into(),
            image_dir: "/var/lib/roost/images".into(),
            health_port: 9471,
            log: telemetry::Settings::default(),
            vmm: Vmm::default(),
            dataplane: Dataplane::default(),
            capacity: Capacity::default(),
            egress: Egress::default(),
            scheduler: None,
        }
    }
}

impl Default for Vmm {
    fn default() -> Self {
        Self {
            driver: "auto".to_owned(),
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            uid_first: 60_610,
            uid_last: 61_183,
            start_deadline_s: 60,
        }
    }
}

impl Default for Dataplane {
    fn default() -> Self {
        Self { egress_socket: None, egress_uid: 60_600, edge_socket: None, edge_uid: 60_601 }
    }
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            memory_mib: 0,
            memory_overcommit: 1.0,
            disk_mib: 0,
            disk_overcommit: 1.0,
            disk_reserve_mib: 1024,
            ballast_mib: 64,
        }
    }
}

impl Config {
    pub fn egress_socket(&self) -> PathBuf {
        self.dataplane.egress_socket.clone().unwrap_or_else(|| self.run_dir.join("egress/control.sock"))
    }

    pub fn edge_socket(&self) -> PathBuf {
        self.dataplane.edge_socket.clone().unwrap_or_else(|| self.run_dir.join("edge/control.sock"))
    }

    /// Where the CLI of this host talks to the daemon.
    pub fn cli_socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    pub fn database(&self) -> PathBuf {
        self.state_dir.join("agent.db")
    }
}
