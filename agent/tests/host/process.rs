//! Starting a process with nothing it does not need, and holding one by identity.

use std::fs;
use std::path::Path;

use roost_agent::host::cgroup::{self, Limits};
use roost_agent::host::process::{Exit, Process, VmmProcess};
use roost_agent::host::spawn::{self, Spawn, spawn};

use crate::cgroup::start;
use crate::scratch::Scratch;

const LIMITS: Limits = Limits { memory_bytes: 64 << 20, vcpus: 1, processes: 16 };

fn status(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("running");
    let line = text.lines().find(|line| line.starts_with(name)).expect("a line");
    line.split_once(':').expect("a value").1.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn a_vmm_has_no_privilege_no_file_and_no_network() {
    let scratch = Scratch::new("spawn");
    let names = scratch.names(1);
    let group = cgroup::ensure(&names.cgroup, &LIMITS).expect("made");
    let process = start(&names, &group, "/bin/sleep", &["60"]);
    let pid = process.pid();
    for capabilities in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, capabilities), "0000000000000000", "{capabilities}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Uid"), "61100 61100 61100 61100");
    assert_eq!(status(pid, "Gid"), "61100 61100 61100 61100");
    assert_eq!(status(pid, "Groups"), "");
    let ignored = u64::from_str_radix(&status(pid, "SigIgn"), 16).expect("a number");
    assert_eq!(ignored & (1 << (libc::SIGPIPE - 1)), 0, "what Rust ignores is not inherited");
    assert_eq!(status(pid, "NSsid").split(' ').next_back(), Some("1"), "it leads its own session");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("running");
    assert!(limits.lines().any(|line| line.starts_with("Max core file size        0 ")), "{limits}");
    for namespace in ["mnt", "net", "pid", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).expect("a namespace");
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    let root = format!("/proc/{pid}/root");
    let names_in = |dir: String| -> Vec<String> {
        let entries = fs::read_dir(dir).expect("listed").map(|entry| entry.expect("an entry").file_name());
        entries.map(|name| name.into_string().expect("UTF-8")).collect()
    };
    let programs = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "etc", "proc", "dev"];
    let surplus: Vec<_> =
        names_in(root.clone()).into_iter().filter(|name| !programs.contains(&name.as_str())).collect();
    assert!(surplus.is_empty(), "{surplus:?}");
    assert_eq!(names_in(format!("{root}/etc")), ["ld.so.cache"]);
    let processes =
        names_in(format!("{root}/proc")).iter().filter(|name| name.parse::<u32>().is_ok()).count();
    assert_eq!(processes, 1, "it sees itself only");
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count();
    assert_eq!(open, 3, "nothing but the standard three");
    process.kill().expect("killed");
    assert_eq!(process.wait().await.expect("ended"), Exit::Signal(9));
    process.kill().expect("killed again");
}

#[tokio::test]
async fn what_cannot_run_says_at_which_step() {
    let scratch = Scratch::new("spawnfail");
    let names = scratch.names(1);
    let group = cgroup::ensure(&names.cgroup, &LIMITS).expect("made");
    let error = spawn(Spawn {
        program: Path::new("/usr/bin/roost-no-such-program"),
        arguments: &[],
        descriptors: Vec::new(),
        stderr: fs::File::create("/dev/null").expect("opened").into(),
        uid: 61_101,
        cgroup: &group,
        jail_dir: &names.jail_dir,
        kvm: false,
    })
    .expect_err("there is no such program");
    assert!(matches!(error, spawn::Error::Child { step: spawn::Step::Execute, .. }), "{error:?}");
    assert!(group.processes().expect("listed").is_empty(), "nothing stays");
}

#[tokio::test]
async fn only_the_very_same_process_is_adopted() {
    let scratch = Scratch::new("adopt");
    let names = scratch.names(1);
    let group = cgroup::ensure(&names.cgroup, &LIMITS).expect("made");
    let process = start(&names, &group, "/bin/sleep", &["60"]);
    let identity = process.identity();
    let sleep = Path::new("/bin/sleep").canonicalize().expect("a program");
    assert!(Process::adopt(identity, &sleep).expect("looked").is_some());
    assert!(Process::adopt(identity, Path::new("/usr/bin/qemu")).expect("looked").is_none());
    let another = VmmProcess { start_time: identity.start_time + 1, ..identity };
    assert!(Process::adopt(another, &sleep).expect("looked").is_none());
    process.kill().expect("killed");
    process.wait().await.expect("ended");
    assert!(Process::adopt(identity, &sleep).expect("looked").is_none());
}

#[tokio::test]
async fn a_process_outlives_who_started_it_and_is_watched_by_the_next() {
    let scratch = Scratch::new("orphan");
    // A process of its own session whose parent is gone, as after an agent's death.
    let output = tokio::task::spawn_blocking(|| {
        roost_agent::host::tool::run(
            "sh",
            &["-c", "setsid sleep 60 >/dev/null 2>&1 & echo $!"],
            b"",
            std::time::Duration::from_secs(10),
        )
    })
    .await
    .expect("joined")
    .expect("ran");
    let pid: u32 = String::from_utf8(output).expect("UTF-8").trim().parse().expect("a pid");
    let identity = VmmProcess::of_pid(pid).expect("looked").expect("running");
    let adopted = Process::open(identity).expect("looked").expect("running");
    adopted.kill().expect("killed");
    assert_eq!(adopted.wait().await.expect("ended"), Exit::Unknown);
    drop(scratch);
}
