//! A control group around one process: what systemd puts around a service.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::leftover::members;
use crate::poll;

const END_DEADLINE: Duration = Duration::from_secs(10);

/// Where systemd finds the processes of a service, and the controllers by which it limits and counts them.
const KINDS: [&str; 5] = ["name=systemd", "cpu", "cpuacct", "memory", "pids"];

/// Removed when it is dropped; nothing may be in it then.
#[derive(Debug)]
pub struct Group {
    directories: Vec<PathBuf>,
}

impl Group {
    pub(super) fn make(name: &str) -> anyhow::Result<Self> {
        let mut directories = Vec::new();
        for root in roots_of_services() {
            let directory = root.join(name);
            std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
            directories.push(directory);
        }
        Ok(Self { directories })
    }

    /// Words that start a program inside.
    pub(super) fn wrapper(&self) -> Vec<String> {
        let script = "while [ \"$1\" != -- ]; do echo $$ > \"$1/cgroup.procs\" || exit 1; shift; done; \
                      shift; exec \"$@\"";
        let mut words = ["/bin/sh", "-c", script, "sh"].map(str::to_owned).to_vec();
        words.extend(self.directories.iter().map(|directory| directory.to_string_lossy().into_owned()));
        words.push("--".to_owned());
        words
    }

    /// Everything inside, in whichever hierarchy.
    pub fn processes(&self) -> Vec<i32> {
        let mut inside: Vec<i32> = self.directories.iter().flat_map(|directory| members(directory)).collect();
        inside.sort_unstable();
        inside.dedup();
        inside
    }

    /// Kills what is inside now and waits until that is gone; says which processes that were.
    pub fn kill(&self) -> anyhow::Result<Vec<i32>> {
        let inside = self.processes();
        for pid in &inside {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        poll::until("the killed group to be empty of them", END_DEADLINE, || {
            Ok(self.processes().iter().all(|pid| !inside.contains(pid)).then_some(()))
        })?;
        Ok(inside)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for directory in &self.directories {
            if let Err(error) = std::fs::remove_dir(directory) {
                eprintln!("cannot remove {}: {error}", directory.display());
            }
        }
    }
}

fn roots_of_services() -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = fields.filter(|fields| match fields[..] {
        [_, _, "cgroup2", ..] => true,
        [_, _, "cgroup", options, ..] => options.split(',').any(|option| KINDS.contains(&option)),
        _ => false,
    });
    found.map(|fields| PathBuf::from(fields[1])).collect()
}
