//! How the CLI prints: tables for people, JSON lines for programs.

use roost_proto::local::{Finding, Sandbox, UsageRow};
use serde_json::json;

pub(super) fn sandboxes(sandboxes: &[Sandbox], as_json: bool) {
    if as_json {
        for sandbox in sandboxes {
            println!("{}", value(sandbox));
        }
        return;
    }
    println!(
        "{:<30} {:<7} {:<10} {:<14} {:>6} {:>9} {:>8}",
        "SANDBOX", "ORIGIN", "STATE", "TEMPLATE", "VCPUS", "MEMORY", "AGE"
    );
    let now_us = roost_daemon::clock::now_us();
    for sandbox in sandboxes {
        println!(
            "{:<30} {:<7} {:<10} {:<14} {:>6} {:>5} MiB {:>8}",
            sandbox.id,
            sandbox.origin,
            sandbox.state,
            sandbox.template,
            sandbox.vcpus,
            sandbox.memory_mib,
            age((now_us - sandbox.created_us) / 1_000_000)
        );
    }
}

pub(super) fn sandbox(sandbox: &Sandbox) {
    match serde_json::to_string_pretty(&value(sandbox)) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("roost-agent: cannot print the sandbox: {error}"),
    }
}

fn value(sandbox: &Sandbox) -> serde_json::Value {
    json!({
        "id": sandbox.id,
        "origin": sandbox.origin,
        "state": sandbox.state,
        "state_reason": sandbox.state_reason,
        "wanted": { "run": sandbox.run, "generation": sandbox.generation, "local_cause": sandbox.local_cause },
        "template": sandbox.template,
        "image": sandbox.image,
        "vcpus": sandbox.vcpus,
        "memory_mib": sandbox.memory_mib,
        "disk_mib": sandbox.disk_mib,
        "created_us": sandbox.created_us,
        "changed_us": sandbox.changed_us,
        "boot_us": sandbox.boot_us,
        "boot_path": sandbox.boot_path,
        "snapshot": sandbox.snapshot,
        "execution": {
            "id": sandbox.execution,
            "phase": sandbox.phase,
            "vmm_pid": sandbox.vmm_pid,
            "network_namespace": sandbox.network_namespace,
            "egress_attached": sandbox.egress_attached,
            "edge_attached": sandbox.edge_attached,
        },
    })
}

pub(super) fn usage(rows: &[UsageRow]) {
    println!(
        "{:<30} {:>9} {:>9} {:>9} {:>12} {:>12} {:>10} {:>10}",
        "SANDBOX", "WALL s", "VCPU s", "CPU s", "MEM GiB·s", "USED GiB·s", "OUT KiB", "IN KiB"
    );
    let seconds = |us: u64| us as f64 / 1e6;
    let gib_seconds = |mib_us: u64| mib_us as f64 / 1e6 / 1024.0;
    for row in rows {
        println!(
            "{:<30} {:>9.1} {:>9.1} {:>9.2} {:>12.2} {:>12.2} {:>10} {:>10}",
            row.sandbox,
            seconds(row.wall_us),
            seconds(row.vcpu_alloc_us),
            seconds(row.cpu_used_us),
            gib_seconds(row.mem_alloc_mib_us),
            gib_seconds(row.mem_used_mib_us),
            row.net_egress_bytes / 1024,
            row.net_ingress_bytes / 1024,
        );
    }
}

pub(super) fn findings(findings: &[Finding], as_json: bool) {
    for finding in findings {
        if as_json {
            println!(
                "{}",
                json!({ "subject": finding.subject, "level": finding.level, "found": finding.found, "remedy": finding.remedy })
            );
            continue;
        }
        println!("{:<8} {:<22} {}", finding.level, finding.subject, finding.found);
        if !finding.remedy.is_empty() {
            println!("{:<8} {:<22} → {}", "", "", finding.remedy);
        }
    }
}

fn age(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{} s", seconds.max(0)),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
