//! The systemd units: systemd finds nothing wrong with them, and they keep the promises the design needs.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that runs systemd's own checker")]

use std::path::{Path, PathBuf};
use std::process::Command;

const UNITS: &[&str] = &["roost-agent", "roost-edge", "roost-egress", "roost-scheduler"];

/// Options that give a service a mount namespace of its own.
const MOUNT_NAMESPACE: &[&str] = &[
    "BindPaths",
    "BindReadOnlyPaths",
    "DynamicUser",
    "ExecPaths",
    "InaccessiblePaths",
    "MountAPIVFS",
    "MountFlags",
    "NoExecPaths",
    "PrivateDevices",
    "PrivateIPC",
    "PrivateMounts",
    "PrivateNetwork",
    "PrivateTmp",
    "PrivateUsers",
    "ProcSubset",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectHostname",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "RestrictNamespaces",
    "RootDirectory",
    "RootImage",
    "TemporaryFileSystem",
];

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd")
}

fn unit(name: &str) -> String {
    std::fs::read_to_string(directory().join(format!("{name}.service"))).unwrap()
}

/// Values of an option, in order.
fn values<'a>(unit: &'a str, option: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(option)?.strip_prefix('=')).collect()
}

#[test]
fn systemd_finds_nothing_wrong() {
    let scratch = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for name in UNITS {
        // The programs are not installed on the machine that tests.
        let text = unit(name);
        let start = values(&text, "ExecStart")[0];
        let program = start.split(' ').next().unwrap();
        assert!(program.starts_with("/usr/bin/roost-"), "{program}");
        let path = scratch.path().join(format!("{name}.service"));
        std::fs::write(
            &path,
            text.replace(program, "/bin/true").replace("User=roost-", "#").replace("Group=roost-", "#"),
        )
        .unwrap();
        paths.push(path);
    }
    let checked = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&paths).output();
    let checked =
        checked.unwrap_or_else(|error| panic!("install the package systemd to run this test: {error}"));
    let said = String::from_utf8_lossy(&checked.stderr);
    let about_ours: Vec<_> = said.lines().filter(|line| line.contains("roost-")).collect();
    assert!(checked.status.success() && about_ours.is_empty(), "{said}");
}

#[test]
fn every_daemon_comes_back() {
    for name in UNITS {
        let unit = unit(name);
        assert_eq!(values(&unit, "Restart"), ["always"], "{name}");
        assert_eq!(values(&unit, "StartLimitIntervalSec"), ["0"], "{name}");
        assert_eq!(values(&unit, "LimitCORE"), ["0"], "{name}");
        assert_eq!(values(&unit, "NoNewPrivileges"), ["yes"], "{name}");
    }
}

#[test]
fn stopping_the_agent_kills_nothing_else() {
    let agent = unit("roost-agent");
    assert_eq!(values(&agent, "KillMode"), ["process"]);
    for option in ["BindsTo", "PartOf", "Requires"] {
        for name in UNITS {
            assert_eq!(values(&unit(name), option), Vec::<&str>::new(), "{name} {option}");
        }
    }
}

#[test]
fn the_agent_lives_in_the_hosts_mount_namespace() {
    let agent = unit("roost-agent");
    for option in MOUNT_NAMESPACE {
        assert_eq!(values(&agent, option), Vec::<&str>::new(), "{option}");
    }
    assert_eq!(values(&agent, "User"), Vec::<&str>::new());
}

#[test]
fn the_data_plane_has_no_privilege() {
    let egress = unit("roost-egress");
    assert_eq!(values(&egress, "CapabilityBoundingSet"), [""]);
    assert_eq!(values(&egress, "AmbientCapabilities"), Vec::<&str>::new());
    // Ports below 1024; given up once they are open.
    assert_eq!(values(&unit("roost-edge"), "CapabilityBoundingSet"), ["CAP_NET_BIND_SERVICE"]);
    let users = std::fs::read_to_string(directory().join("sysusers.conf")).unwrap();
    for (name, uid) in [("roost-egress", "60600"), ("roost-edge", "60601")] {
        assert_eq!(values(&unit(name), "User"), [name]);
        assert!(users.lines().any(|line| line.split_whitespace().take(3).eq(["u", name, uid])), "{name}");
    }
    assert_ne!(values(&egress, "User"), values(&unit("roost-edge"), "User"));
}
