//! A full disk is a state: of the host, which refuses what is large and goes on; of a sandbox, which is its own.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use roost_tests::poll;
use roost_tests::stack::tenant::Tenant;
use roost_tests::stack::{Stack, Wish};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(120);
const STATE_MIB: u64 = 900;
const RESERVE_MIB: u64 = 200;
const MIB: u64 = 1 << 20;

fn create(tenant: &Tenant) -> Value {
    let body = json!({ "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 1024 });
    tenant.call("POST", "/sandboxes?wait=100", Some(&body)).unwrap().data().unwrap()
}

fn get(tenant: &Tenant, id: &str) -> Value {
    tenant.call("GET", &format!("/sandboxes/{id}"), None).unwrap().data().unwrap()
}

fn free_mib(directory: &Path) -> u64 {
    let found = nix::sys::statvfs::statvfs(directory).unwrap();
    found.blocks_available() * found.fragment_size() / MIB
}

/// Writes until `leave` MiB are free; 0 leaves not one byte.
fn fill(directory: &Path, leave: u64) {
    let path = directory.join("filler");
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    while free_mib(directory) > leave {
        if file.write_all(&vec![1; MIB as usize]).is_err() {
            break;
        }
    }
    while leave == 0 && file.write_all(&[1; 4096]).is_ok() {}
}

#[test]
fn vm_host_with_a_full_disk_refuses_what_is_large_and_loses_nothing() {
    let capacity = format!("disk_mib = 20000\ndisk_reserve_mib = {RESERVE_MIB}\nballast_mib = 16\n");
    let wish = Wish { agent_state_mib: Some(STATE_MIB), capacity, ..Wish::default() };
    let mut stack = Stack::for_test_with("disk-full", &wish).unwrap();
    for expected in
        ["nearly full", "disk of the state directory is full", "database or disk is full", "disk I/O error"]
    {
        stack.expect_log(expected);
    }
    let tenant = stack.tenant().clone();
    let state_dir = stack.agent_state();
    let agent = stack.agent().unwrap();
    let (kept, other) = (create(&tenant), create(&tenant));
    let (kept, other) = (kept["id"].as_str().unwrap(), other["id"].as_str().unwrap());
    agent.shell_text(kept, "echo kept > /workspace/mark && sync -f /workspace/mark").unwrap();
    let room = |agent: &roost_tests::stack::agent::AgentCli| {
        let text = agent.call(&["doctor", "--json"], b"").unwrap().text();
        let line = text.lines().find(|line| line.contains("disk room")).unwrap_or_default().to_owned();
        serde_json::from_str::<Value>(&line).unwrap()["level"].clone()
    };
    assert_eq!(room(&agent), "ok");
    assert!(state_dir.join("ballast").exists());

    // Below the reserve: nothing new, no snapshot, and whoever asks is told why.
    fill(&state_dir, RESERVE_MIB / 2);
    assert_eq!(room(&agent), "missing");
    poll::until("the agent to say so", DEADLINE, || {
        Ok(stack.readiness("agent").err().filter(|why| why.contains("disk is nearly full")))
    })
    .unwrap();
    let refused = create(&tenant);
    assert_eq!(refused["state"], "error", "{refused}");
    assert!(refused["state_reason"].as_str().unwrap().contains("nearly full"), "{refused}");
    tenant.call("POST", &format!("/sandboxes/{other}/pause"), Some(&json!({}))).unwrap();
    let held = poll::until("the refused pause", DEADLINE, || {
        let sandbox = get(&tenant, other);
        let reason = sandbox["state_reason"].as_str().unwrap_or_default().to_owned();
        Ok((sandbox["state"] == "running" && reason.contains("nearly full")).then_some(sandbox))
    });
    held.unwrap();
    for id in [kept, other] {
        assert_eq!(agent.shell_text(id, "echo here").unwrap(), "here");
    }

    // Not one byte: what the agent has to write down is written down.
    fill(&state_dir, 0);
    let refused = refused["id"].as_str().unwrap();
    let answer = tenant.call("DELETE", &format!("/sandboxes/{refused}"), None).unwrap();
    assert!((200..300).contains(&answer.status), "{answer:?}");
    poll::until("the end of the refused one", DEADLINE, || {
        let is_listed = tenant.list()?.iter().any(|sandbox| sandbox["id"] == refused);
        Ok((!is_listed && agent.inspect(refused)?["state"] == "destroyed").then_some(()))
    })
    .unwrap();
    assert_eq!(agent.shell_text(kept, "cat /workspace/mark").unwrap(), "kept");

    // Room again: all goes on.
    std::fs::remove_file(state_dir.join("filler")).unwrap();
    stack.wait_ready().unwrap();
    poll::until("the ballast", DEADLINE, || Ok(state_dir.join("ballast").exists().then_some(()))).unwrap();
    let fresh = create(&tenant);
    assert_eq!(fresh["state"], "running", "{fresh}");
    tenant.call("POST", &format!("/sandboxes/{other}/pause"), Some(&json!({}))).unwrap().data().unwrap();
    poll::until("the pause", DEADLINE, || Ok((get(&tenant, other)["state"] == "paused").then_some(())))
        .unwrap();
    assert_eq!(agent.shell_text(kept, "cat /workspace/mark").unwrap(), "kept");
    stack.finish().unwrap();
}

#[test]
fn vm_full_disk_of_a_sandbox_is_its_own() {
    let stack = Stack::for_test("own-disk-full").unwrap();
    let agent = stack.agent().unwrap();
    let (full, other) = (agent.run().unwrap(), agent.run().unwrap());
    let fill = "fallocate -l $(df --output=avail -B1 /workspace | tail -1) /workspace/fill; \
                while head -c 4096 /dev/zero >> /workspace/rest; do :; done 2>/dev/null; sync";
    agent.shell_text(&full, fill).unwrap();
    let outcome = agent.shell(&full, "echo more > /workspace/more && sync -f /workspace/more").unwrap();
    assert_ne!(outcome.code, 0, "its disk is not full");
    assert!(outcome.complaint().contains("No space left"), "{}", outcome.complaint());
    assert_eq!(agent.shell_text(&full, "echo here").unwrap(), "here", "it takes no commands any more");
    agent.shell_text(&other, "echo kept > /workspace/mark && sync && cat /workspace/mark").unwrap();
    assert_eq!(agent.inspect(&full).unwrap()["state"], "running");
    agent
        .shell_text(&full, "rm /workspace/fill /workspace/rest && echo more > /workspace/more && sync")
        .unwrap();
    stack.finish().unwrap();
}
