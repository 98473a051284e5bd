//! The settings files of a stack's processes.

use std::fmt::Write;
use std::path::Path;

use super::http::free_port;
use super::place::Place;

/// What a stack is to be like.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    pub floor_exceptions: Vec<FloorException>,
}

/// An address inside the deny floor that guests may reach all the same.
#[derive(Debug, Clone)]
pub struct FloorException {
    pub name: String,
    pub port: u16,
    pub cidr: String,
}

#[derive(Debug, Clone)]
pub struct Ports {
    pub agent_health: u16,
    pub egress_health: u16,
    pub edge_health: u16,
}

impl Ports {
    pub fn choose() -> std::io::Result<Self> {
        Ok(Self { agent_health: free_port()?, egress_health: free_port()?, edge_health: free_port()? })
    }
}

/// Writes `<process>.toml` for every process.
pub(super) fn write(place: &Place, ports: &Ports, wish: &Wish) -> std::io::Result<()> {
    std::fs::create_dir_all(place.root.join("logs"))?;
    std::fs::write(place.settings("agent"), agent(place, ports, wish))?;
    std::fs::write(place.settings("egress"), dataplane(place, "egress", ports.egress_health))?;
    std::fs::write(place.settings("edge"), dataplane(place, "edge", ports.edge_health))
}

fn agent(place: &Place, ports: &Ports, wish: &Wish) -> String {
    let (first, last) = place.vmm_uids();
    let mut text = format!(
        "instance = {instance:?}\n\
         state_dir = {state}\n\
         run_dir = {run}\n\
         image_dir = {images}\n\
         health_port = {health}\n\n\
         [vmm]\nuid_first = {first}\nuid_last = {last}\n\n\
         # Many small sandboxes on a developer's machine: most of their memory is never touched.\n\
         [capacity]\nmemory_overcommit = 8.0\ndisk_overcommit = 8.0\n",
        instance = place.instance,
        state = quoted(&place.root.join("agent")),
        run = quoted(&place.run_dir),
        images = quoted(&place.image_dir),
        health = ports.agent_health,
    );
    for exception in &wish.floor_exceptions {
        let FloorException { name, port, cidr } = exception;
        let _ =
            write!(text, "\n[[egress.floor_exceptions]]\nname = {name:?}\nport = {port}\ncidr = {cidr:?}\n");
    }
    text
}

fn dataplane(place: &Place, role: &str, health: u16) -> String {
    format!(
        "[process]\ndirectory = {directory}\ncontrol_socket = {socket}\n\n\
         [health]\nlisten = \"127.0.0.1:{health}\"\n",
        directory = quoted(&place.run_dir.join(format!("{role}-state"))),
        socket = quoted(&place.run_dir.join(role).join("control.sock")),
    )
}

fn quoted(path: &Path) -> String {
    format!("{:?}", path.to_string_lossy())
}
