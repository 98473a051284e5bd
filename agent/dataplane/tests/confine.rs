//! What a data-plane process cannot do: as the kernel shows it while it serves, and by trying.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
#![allow(clippy::disallowed_methods, reason = "the test starts processes, and tries to where it must not")]
#![allow(unsafe_code, reason = "the forbidden system calls are made raw")]

mod support;

use std::io::ErrorKind;
use std::process::Command;

use nix::errno::Errno;
use roost_dataplane::confine::{self, Identity};
use support::agent::{self, Agent, Reply};
use support::namespace::Namespace;
use support::process::Dataplane;

fn status(pid: u32, task: Option<&str>) -> String {
    let path = match task {
        None => format!("/proc/{pid}/status"),
        Some(task) => format!("/proc/{pid}/task/{task}/status"),
    };
    std::fs::read_to_string(path).unwrap()
}

fn field<'a>(status: &'a str, name: &str) -> Vec<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}"));
    line.trim_start_matches(':').split_whitespace().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_thread_is_confined_while_it_serves() {
    for (role, uid) in [("edge", "60601"), ("egress", "60600")] {
        let process = Dataplane::start(role, "");
        if role == "edge" {
            let namespace = Namespace::new();
            let (mut agent, _) = Agent::connect(&process.control).await;
            let attach = agent::attach(agent::execution(), agent::sandbox(), 1);
            let reply = agent.call(attach, namespace.dial_sockets(8)).await;
            assert!(matches!(reply, Reply::Ack(_)), "{reply:?}");
        }
        let pid = process.child.id();
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let tasks: Vec<_> = tasks.map(|task| task.unwrap().file_name().into_string().unwrap()).collect();
        assert!(tasks.len() > 1, "a runtime with threads");
        for task in tasks {
            let status = status(pid, Some(&task));
            assert_eq!(field(&status, "Uid"), [uid; 4], "{role}");
            assert_eq!(field(&status, "Gid"), [uid; 4], "{role}");
            assert!(field(&status, "Groups").is_empty(), "{role}");
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(field(&status, set), ["0000000000000000"], "{role} {set}");
            }
            assert_eq!(field(&status, "NoNewPrivs"), ["1"], "{role}");
            assert_eq!(field(&status, "Seccomp"), ["2"], "{role}");
        }
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{role}");
        assert!(process.stop().success(), "{role} stops in order");
    }
}

#[test]
fn root_and_another_user_are_refused() {
    let refused = |identity| confine::enter(identity).unwrap_err().to_string();
    assert!(refused(Identity { uid: 0, gid: 7 }).contains("must not run as root"));
    assert!(refused(Identity { uid: 7, gid: 0 }).contains("must not run as root"));
}

/// Runs the test below in a process of its own, since there is no way back from `confine::enter`.
#[test]
fn every_forbidden_call_fails() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "probe", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("probe finished"), "{text}");
}

#[test]
#[ignore = "started by every_forbidden_call_fails in its own process"]
fn probe() {
    confine::enter(Identity { uid: 60601, gid: 60601 }).unwrap();
    // In a thread that exists before and one that is made after: both are bound.
    try_everything();
    std::thread::spawn(try_everything).join().unwrap();
    println!("probe finished");
}

fn try_everything() {
    assert_eq!(Command::new("/bin/true").spawn().unwrap_err().kind(), ErrorKind::PermissionDenied);
    let nothing = std::ptr::null::<u8>();
    let path = c"/bin/true".as_ptr();
    for (name, number, arguments) in [
        ("execve", libc::SYS_execve, [path as u64, 0, 0]),
        ("execveat", libc::SYS_execveat, [libc::AT_FDCWD as u64, path as u64, 0]),
        ("fork", libc::SYS_fork, [0; 3]),
        ("vfork", libc::SYS_vfork, [0; 3]),
        ("clone as fork", libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0]),
        ("clone into a user namespace", libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0]),
        ("ptrace", libc::SYS_ptrace, [libc::PTRACE_TRACEME as u64, 0, 0]),
        ("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0]),
        ("mount", libc::SYS_mount, [nothing as u64; 3]),
        ("unshare", libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0]),
        ("setns", libc::SYS_setns, [0; 3]),
        ("bpf", libc::SYS_bpf, [0; 3]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0]),
        ("userfaultfd", libc::SYS_userfaultfd, [0; 3]),
        ("perf_event_open", libc::SYS_perf_event_open, [0; 3]),
        ("keyctl", libc::SYS_keyctl, [0; 3]),
        ("init_module", libc::SYS_init_module, [0; 3]),
        ("memfd_create", libc::SYS_memfd_create, [path as u64, 0, 0]),
        ("setuid", libc::SYS_setuid, [60602, 0, 0]),
        ("kill", libc::SYS_kill, [1, 0, 0]),
        ("tgkill of another process", libc::SYS_tgkill, [1, 1, 0]),
        ("prctl(PR_SET_DUMPABLE)", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0]),
        ("AF_PACKET", libc::SYS_socket, [libc::AF_PACKET as u64, libc::SOCK_RAW as u64, 0]),
        ("AF_NETLINK", libc::SYS_socket, [libc::AF_NETLINK as u64, libc::SOCK_RAW as u64, 0]),
        ("AF_VSOCK", libc::SYS_socket, [libc::AF_VSOCK as u64, libc::SOCK_STREAM as u64, 0]),
        ("raw IP", libc::SYS_socket, [libc::AF_INET as u64, libc::SOCK_RAW as u64, 1]),
        (
            "executable memory",
            libc::SYS_mmap,
            [0, 4096, (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64],
        ),
    ] {
        // SAFETY: each call is refused before the kernel looks at its arguments; those that would not be refused
        // get null or constant pointers and change nothing this test relies on.
        let result = unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2], 0x22, -1, 0) };
        assert_eq!((result, Errno::last()), (-1, Errno::EPERM), "{name}");
    }
    // SAFETY: refused before the kernel looks at the null argument.
    let result = unsafe { libc::syscall(libc::SYS_clone3, nothing, 0) };
    assert_eq!((result, Errno::last()), (-1, Errno::ENOSYS), "clone3");
    for family in [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX] {
        // SAFETY: makes a socket and nothing else; the process ends with the test.
        let result = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
        assert!(result >= 0, "stream sockets of family {family} are needed");
    }
}
