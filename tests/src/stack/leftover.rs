//! What a stack left on the machine, and its removal.
//!
//! Everything of a stack carries its instance name or lies in its run directory; the shared places that carry no
//! name (`/dev/shm`, network interfaces of the root namespace) are compared with how they were before.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::place::Place;
use crate::poll;

const NETNS_DIR: &str = "/run/netns";
/// The user ids of the data plane and of VMMs.
const UIDS: std::ops::RangeInclusive<u32> = 60_600..=61_183;
const END_DEADLINE: Duration = Duration::from_secs(10);

/// Shared places before the stack started.
#[derive(Debug, Clone)]
pub struct Baseline {
    shared_memory: BTreeSet<String>,
    interfaces: BTreeSet<String>,
}

impl Baseline {
    pub fn take() -> Self {
        Self {
            shared_memory: names_in("/dev/shm").into_iter().filter(|name| is_ours(name)).collect(),
            interfaces: names_in("/sys/class/net"),
        }
    }
}

/// Whether a process of ours could have made the file: other programs of the machine have some too.
fn is_ours(name: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(Path::new("/dev/shm").join(name)).map(|file| file.uid());
    owner.is_ok_and(|uid| uid == 0 || UIDS.contains(&uid))
}

/// One line for each thing that is still there; empty is as it should be once a stack has stopped.
pub fn find(place: &Place, baseline: &Baseline) -> Vec<String> {
    let now = Baseline::take();
    let mut found = Vec::new();
    found.extend(processes(place).into_iter().map(|(pid, text)| format!("process {pid}: {text}")));
    found.extend(namespaces(place).iter().map(|path| format!("network namespace {}", path.display())));
    found.extend(cgroups(place).iter().map(|path| format!("cgroup {}", path.display())));
    found.extend(mounts(place).iter().map(|path| format!("mount {}", path.display())));
    found.extend(executions(place).iter().map(|path| format!("run directory {}", path.display())));
    let new = now.shared_memory.difference(&baseline.shared_memory);
    found.extend(new.map(|name| format!("file /dev/shm/{name}")));
    let new = now.interfaces.difference(&baseline.interfaces);
    found.extend(new.map(|name| format!("network interface {name}")));
    found
}

/// Removes whatever of the stack is there, running or not. Repeatable.
pub fn sweep(place: &Place) -> anyhow::Result<()> {
    end_all(place)?;
    // Innermost first.
    for path in mounts(place).iter().rev() {
        let _ = umount2(path, MntFlags::MNT_DETACH);
    }
    remove_dir_if_there(&place.run_dir)
}

/// What goes when the machine loses power: processes, namespaces, control groups, and what is on a tmpfs. The
/// directories of the unprivileged processes stay: elsewhere than in a clone, they lie on a disk.
pub fn cut_power(place: &Place) -> anyhow::Result<()> {
    end_all(place)?;
    remove_dir_if_there(&place.run_dir.join("e"))?;
    for entry in std::fs::read_dir(&place.run_dir)?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|ending| ending == "sock") {
            std::fs::remove_file(path)?;
        }
    }
    for role in ["egress", "edge"] {
        let socket = place.run_dir.join(role).join("control.sock");
        let _ = std::fs::remove_file(socket);
    }
    Ok(())
}

fn end_all(place: &Place) -> anyhow::Result<()> {
    for (pid, _) in processes(place) {
        let _ = kill(pid, Signal::SIGKILL);
    }
    poll::until("killed processes to be gone", END_DEADLINE, || {
        Ok(processes(place).is_empty().then_some(()))
    })?;
    for path in namespaces(place) {
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        std::fs::remove_file(&path)?;
    }
    for path in cgroups(place) {
        std::fs::remove_dir(&path)?;
    }
    remove_empty_parents(place);
    Ok(())
}

fn remove_dir_if_there(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// The instance's own group stays as long as the agent is installed; here it goes with the stack.
fn remove_empty_parents(place: &Place) {
    for root in cgroup_roots() {
        let _ = std::fs::remove_dir(root.join(&place.instance));
    }
}

/// Processes of the product that carry the instance in their command line or live in one of its cgroups.
fn processes(place: &Place) -> Vec<(Pid, String)> {
    let confined: BTreeSet<i32> = cgroups(place).iter().flat_map(|path| members(path)).collect();
    let own = std::process::id().cast_signed();
    let names = [place.instance.clone(), place.root.to_string_lossy().into_owned()];
    let mut found = Vec::new();
    for name in names_in("/proc") {
        let Ok(pid) = name.parse::<i32>() else { continue };
        let Ok(arguments) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let text = String::from_utf8_lossy(&arguments).replace('\0', " ");
        let is_named =
            names.iter().any(|name| text.contains(name.as_str())) && is_product(&text) && pid != own;
        if is_named || confined.contains(&pid) {
            found.push((Pid::from_raw(pid), text.chars().take(120).collect()));
        }
    }
    found
}

/// By the program's name: a person's `tail -f` on a log of the stack is none of ours.
fn is_product(command_line: &str) -> bool {
    let program = command_line.split(' ').next().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    name.starts_with("roost-") || name.starts_with("qemu-system")
}

fn namespaces(place: &Place) -> Vec<PathBuf> {
    let prefix = format!("{}-", place.instance);
    let names = names_in(NETNS_DIR).into_iter().filter(|name| name.starts_with(&prefix));
    names.map(|name| Path::new(NETNS_DIR).join(name)).collect()
}

fn cgroups(place: &Place) -> Vec<PathBuf> {
    let mut groups = Vec::new();
    for root in cgroup_roots() {
        let parent = root.join(&place.instance);
        let entries = std::fs::read_dir(&parent).into_iter().flatten().flatten();
        groups.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    groups
}

pub(super) fn members(cgroup: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn cgroup_roots() -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let groups = fields.filter(|fields| matches!(fields.get(2), Some(&"cgroup" | &"cgroup2")));
    groups.map(|fields| PathBuf::from(fields[1])).collect()
}

fn mounts(place: &Place) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    points.filter(|point| point.starts_with(&place.run_dir) || point.starts_with(&place.root)).collect()
}

/// Directories of single executions in the run directory.
fn executions(place: &Place) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(place.run_dir.join("e")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn names_in(directory: impl AsRef<Path>) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
