//! Cgroups: limits, usage that outlives the process, removal.

use std::os::fd::OwnedFd;
use std::path::Path;

use roost_agent::host::cgroup::{self, Limits};
use roost_agent::host::names::Names;
use roost_agent::host::process::Process;
use roost_agent::host::spawn::{Spawn, spawn};

use crate::scratch::{Scratch, eventually};

const LIMITS: Limits = Limits { memory_bytes: 64 << 20, vcpus: 1, processes: 16 };

pub(crate) fn start(names: &Names, group: &cgroup::Cgroup, program: &str, arguments: &[&str]) -> Process {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let stderr: OwnedFd = std::fs::File::create("/dev/null").expect("opened").into();
    let program = Path::new(program).canonicalize().expect("a program");
    spawn(Spawn {
        program: &program,
        arguments: &arguments,
        descriptors: Vec::new(),
        stderr,
        uid: 61_100,
        cgroup: group,
        jail_dir: &names.jail_dir,
        kvm: false,
    })
    .expect("started")
}

#[tokio::test]
async fn usage_is_complete_after_the_process_is_gone() {
    let scratch = Scratch::new("cgusage");
    let names = scratch.names(1);
    let group = cgroup::ensure(&names.cgroup, &LIMITS).expect("made");
    cgroup::ensure(&names.cgroup, &LIMITS).expect("made again");
    let meter = group.meter().expect("opened");
    // Busy for a while, holding 8 MiB, until it is killed.
    let script = "x=$(printf %8000000s); while :; do :; done";
    let process = start(&names, &group, "/bin/sh", &["-c", script]);
    assert!(group.processes().expect("listed").contains(&process.pid()));
    eventually("50 ms of CPU and 4 MiB", || {
        let usage = meter.read().expect("read");
        usage.cpu_us > 50_000 && usage.memory_bytes > 4 << 20
    });
    assert!(matches!(cgroup::remove(&names.cgroup), Err(cgroup::Error::Busy { .. })));
    group.kill().expect("killed");
    process.wait().await.expect("ended");
    let last = meter.read().expect("read after the end");
    assert!(last.cpu_us > 50_000, "{last:?}");
    assert_eq!(
        cgroup::list(&scratch.instance).expect("listed").into_iter().collect::<Vec<_>>(),
        [names.execution]
    );
    eventually("the group is empty", || cgroup::remove(&names.cgroup).is_ok());
    cgroup::remove(&names.cgroup).expect("removed again");
    assert!(cgroup::find(&names.cgroup).expect("looked").is_none());
    assert!(!cgroup::holds_this_process(&scratch.instance).expect("looked"));
}

#[tokio::test]
async fn who_takes_more_memory_than_allowed_is_ended() {
    let scratch = Scratch::new("cgoom");
    let names = scratch.names(1);
    let group = cgroup::ensure(&names.cgroup, &LIMITS).expect("made");
    let process = start(&names, &group, "/bin/sh", &["-c", "set -e; x=$(printf %200000000s); sleep 60"]);
    process.wait().await.expect("ended");
    eventually("the kernel's count", || group.oom_kills().expect("read") >= 1);
}

/// Whoever stops the agent as a service ends what is in the agent's group, in whichever hierarchy that is followed.
#[tokio::test]
async fn a_process_leaves_the_agent_s_group_in_every_hierarchy_that_tells_services_apart() {
    let scratch = Scratch::new("cgleave");
    let names = scratch.names(1);
    let group = cgroup::ensure(&names.cgroup, &LIMITS).expect("made");
    let process = start(&names, &group, "/bin/sleep", &["60"]);
    let memberships = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid())).expect("read");
    let outside: Vec<&str> = memberships
        .lines()
        .filter(|line| {
            let kind = line.split(':').nth(1);
            matches!(kind, Some("" | "name=systemd" | "cpu" | "cpuacct" | "cpu,cpuacct" | "memory" | "pids"))
        })
        .filter(|line| !line.ends_with(&names.cgroup))
        .collect();
    group.kill().expect("killed");
    process.wait().await.expect("ended");
    assert_eq!(outside, Vec::<&str>::new(), "it stays where its parent is");
}
