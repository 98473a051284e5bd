//! The settings files of a stack's processes, and the ports in them.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::place::Place;
use super::ports::Ports;
use crate::upstream::{self, Upstream};

/// Host names of previews end with this; it resolves on any machine with libnss-myhostname.
pub const PREVIEW_DOMAIN: &str = "roost.localhost";

/// What a stack is to be like.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// A server on this machine that guests may call.
    pub upstream: Option<Allowed>,
    /// How much every process logs; `info` unless told.
    pub log_level: Option<&'static str>,
    /// A directory with other builds of the binaries, which every second start of a process takes.
    pub other_binaries: Option<PathBuf>,
    /// Whether the agent lives in a control group of its own, as a service of systemd does.
    pub agent_cgroup: bool,
    /// A file system of this size as the agent's state directory.
    pub agent_state_mib: Option<u64>,
    /// Appended to the agent's `[capacity]`.
    pub capacity: String,
}

/// How guests get to a server that the deny floor would keep from them.
#[derive(Debug, Clone)]
pub struct Allowed {
    name: String,
    port: u16,
    address: IpAddr,
    root_pem: String,
}

impl From<&Upstream> for Allowed {
    fn from(upstream: &Upstream) -> Self {
        Self {
            name: upstream::NAME.to_owned(),
            port: upstream.port,
            address: upstream.address(),
            root_pem: upstream.root_pem.clone(),
        }
    }
}

/// Writes `<process>.toml` for every process.
pub(super) fn write(place: &Place, ports: &Ports, wish: &Wish) -> std::io::Result<()> {
    std::fs::create_dir_all(place.root.join("logs"))?;
    if let Some(allowed) = &wish.upstream {
        std::fs::write(upstream_root(place), &allowed.root_pem)?;
        let mut hosts = std::fs::read_to_string("/etc/hosts")?;
        let _ = writeln!(hosts, "{} {}", allowed.address, allowed.name);
        std::fs::write(egress_hosts(place), hosts)?;
    }
    for (process, mut text) in [
        ("scheduler", scheduler(place, ports)),
        ("agent", agent(place, ports, wish)),
        ("egress", egress(place, ports, wish)),
        ("edge", edge(place, ports)),
    ] {
        if let Some(level) = wish.log_level {
            let _ = write!(text, "\n[log]\nlevel = {level:?}\n");
        }
        std::fs::write(place.settings(process), text)?;
    }
    Ok(())
}

fn scheduler(place: &Place, ports: &Ports) -> String {
    format!(
        "state_dir = {state}\nadmin_socket = {socket}\nhealth_port = {health}\n\n\
         [api]\nlisten = \"127.0.0.1:{api}\"\n\n\
         [hosts]\nlisten = \"127.0.0.1:{fleet}\"\n\n\
         [preview]\ndomain = \"{PREVIEW_DOMAIN}\"\nport = {preview}\n\n\
         [development]\ncertificates = true\n",
        state = quoted(&place.root.join("scheduler")),
        socket = quoted(&place.run_dir.join("scheduler.sock")),
        health = ports.scheduler_health,
        api = ports.api,
        fleet = ports.fleet,
        preview = ports.preview,
    )
}

fn agent(place: &Place, ports: &Ports, wish: &Wish) -> String {
    let (first, last) = place.vmm_uids();
    let mut text = format!(
        "instance = {instance:?}\nstate_dir = {state}\nrun_dir = {run}\nimage_dir = {images}\n\
         health_port = {health}\n\n\
         [vmm]\nuid_first = {first}\nuid_last = {last}\n\n\
         # Many small sandboxes on a developer's machine: most of their memory is never touched.\n\
         [capacity]\nmemory_overcommit = 8.0\ndisk_overcommit = 8.0\n{capacity}\n\
         [scheduler]\naddress = \"127.0.0.1:{fleet}\"\nroot_file = {root}\njoin_token_file = {token}\n\
         ensure_listen = \"127.0.0.1:{ensure}\"\ngateway_address = \"127.0.0.1:{gateway}\"\n\
         preview_address = \"127.0.0.1:{preview}\"\negress_dir = {egress}\nedge_dir = {edge}\n",
        instance = place.instance,
        state = quoted(&place.root.join("agent")),
        run = quoted(&place.run_dir),
        images = quoted(&place.image_dir),
        health = ports.agent_health,
        fleet = ports.fleet,
        root = quoted(&place.fleet_root()),
        token = quoted(&place.join_token()),
        ensure = ports.ensure,
        gateway = ports.gateway,
        preview = ports.preview,
        egress = quoted(&own_dir(place, "egress")),
        edge = quoted(&own_dir(place, "edge")),
        capacity = wish.capacity,
    );
    if let Some(Allowed { name, port, address, .. }) = &wish.upstream {
        let cidr = format!("{address}/32");
        let _ =
            write!(text, "\n[[egress.floor_exceptions]]\nname = {name:?}\nport = {port}\ncidr = {cidr:?}\n");
    }
    text
}

fn egress(place: &Place, ports: &Ports, wish: &Wish) -> String {
    let mut text = dataplane(place, ports, "egress");
    if let Some(Allowed { name, .. }) = &wish.upstream {
        let file = quoted(&upstream_root(place));
        let _ = write!(text, "\n[[egress.upstream_roots]]\nhost = {name:?}\nfile = {file}\n");
    }
    text
}

fn edge(place: &Place, ports: &Ports) -> String {
    let mut text = dataplane(place, ports, "edge");
    let (gateway, preview) = (ports.gateway, ports.preview);
    // `*.localhost` is both addresses, and clients try either first.
    let _ = write!(
        text,
        "\n[gateway]\nlisten = \"127.0.0.1:{gateway}\"\n\n\
         [preview]\nlisten = [\"127.0.0.1:{preview}\", \"[::1]:{preview}\"]\n"
    );
    text
}

fn dataplane(place: &Place, ports: &Ports, role: &str) -> String {
    format!(
        "[process]\ndirectory = {directory}\ncontrol_socket = {socket}\n\n\
         [health]\nlisten = \"127.0.0.1:{health}\"\n\n\
         [scheduler]\naddress = \"127.0.0.1:{fleet}\"\n",
        directory = quoted(&own_dir(place, role)),
        socket = quoted(&place.run_dir.join(role).join("control.sock")),
        health = ports.health(role),
        fleet = ports.fleet,
    )
}

/// In the run directory: a clone may lie where the process's uid cannot look.
fn own_dir(place: &Place, role: &str) -> PathBuf {
    place.run_dir.join(format!("{role}-state"))
}

fn upstream_root(place: &Place) -> PathBuf {
    place.run_dir.join("upstream-root.pem")
}

/// What egress sees as `/etc/hosts`.
pub(super) fn egress_hosts(place: &Place) -> PathBuf {
    place.run_dir.join("egress-hosts")
}

fn quoted(path: &Path) -> String {
    format!("{:?}", path.to_string_lossy())
}
