//! The host loses power and comes back: sandboxes come back from what was durable, and the dark time is nobody's.

use std::time::Duration;

use roost_tests::crash::books::{self, Books};
use roost_tests::crash::ledger::now_us;
use roost_tests::poll;
use roost_tests::stack::{Stack, leftover};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(120);
const OTHER_BOOT: &str = "00000000-0000-4000-8000-000000000000";

#[test]
fn vm_comes_back_after_the_host_lost_power() {
    let mut stack = Stack::for_test("reboot").unwrap();
    for expected in ["the scheduler cannot be told", "lost the scheduler's"] {
        stack.expect_log(expected);
    }
    let tenant = stack.tenant().clone();
    let create = |name: &str| {
        let body = json!({ "name": name, "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 1024 });
        let made = tenant.call("POST", "/sandboxes?wait=100", Some(&body)).unwrap().data().unwrap();
        made["id"].as_str().unwrap().to_owned()
    };
    let state = |id: &str| {
        let sandbox = tenant.call("GET", &format!("/sandboxes/{id}"), None)?.data()?;
        anyhow::ensure!(sandbox["state"] != "error", "{}", sandbox["state_reason"]);
        anyhow::Ok(sandbox["state"].as_str().unwrap_or_default().to_owned())
    };
    let (running, paused) = (create("runs"), create("sleeps"));
    let agent = stack.agent().unwrap();
    agent.shell_text(&running, "echo kept > /workspace/mark && sync -f /workspace/mark").unwrap();
    let pid =
        agent.shell_text(&paused, "echo kept > /dev/shm/mark; setsid sleep 86400 >/dev/null 2>&1 & echo $!");
    let pid = pid.unwrap();
    tenant.call("POST", &format!("/sandboxes/{paused}/pause"), Some(&json!({}))).unwrap().data().unwrap();
    poll::until("the pause", DEADLINE, || Ok((state(&paused)? == "paused").then_some(()))).unwrap();
    let before = agent.inspect(&running).unwrap()["execution"]["id"].clone();

    stack.cut_power().unwrap();
    leftover::cut_power(stack.place()).unwrap();
    let off_us = now_us();
    let database = books::open(&stack.agent_state().join("agent.db")).unwrap();
    let other = "UPDATE execution SET boot_id = ?1 WHERE ended_us IS NULL";
    assert_eq!(database.execute(other, [OTHER_BOOT]).unwrap(), 1, "one was running");
    drop(database);
    let on_us = now_us();
    stack.restore_power().unwrap();

    poll::until("the one that ran to run again", DEADLINE, || {
        let seen = agent.inspect(&running)?;
        let is_new = seen["execution"]["id"] != before && seen["state"] == "running";
        let told = tenant.call("GET", &format!("/sandboxes/{running}"), None)?.data()?;
        Ok((is_new && told["state"] == "running" && told["state_reason"] == "host_restarted").then_some(()))
    })
    .unwrap();
    assert_eq!(agent.shell_text(&running, "cat /workspace/mark").unwrap(), "kept");
    assert_eq!(state(&paused).unwrap(), "paused");
    tenant.call("POST", &format!("/sandboxes/{paused}/resume"), Some(&json!({}))).unwrap().data().unwrap();
    poll::until("the resume", DEADLINE, || Ok((state(&paused)? == "running").then_some(()))).unwrap();
    let memory = format!("cat /dev/shm/mark; cat /proc/{pid}/comm");
    assert_eq!(
        agent.shell_text(&paused, &memory).unwrap(),
        "kept\nsleep",
        "its memory is not the one from before"
    );

    tenant.destroy_all().unwrap();
    let (ours, theirs) = (stack.agent_state(), stack.place().root.join("scheduler"));
    let books = poll::until("the books to be closed", DEADLINE, || {
        let books = Books::read(&ours, &theirs)?;
        let is_closed =
            books.agent.outbox == 0 && books.agent.sandboxes.values().all(|state| state == "destroyed");
        Ok(is_closed.then_some(books))
    })
    .unwrap();
    let mut lengths = (0, 0);
    for delta in &books.scheduler.deltas {
        let is_dark = delta.from_us < on_us && delta.to_us > off_us;
        assert!(!is_dark, "metered while the host was down ({off_us}–{on_us}): {delta:?}");
        let side = if delta.to_us <= off_us { &mut lengths.0 } else { &mut lengths.1 };
        *side += delta.to_us - delta.from_us;
    }
    assert!(lengths.0 > 0 && lengths.1 > 0, "usage before and after: {lengths:?}");
    let causes: Vec<_> = books.agent.executions.iter().filter_map(|row| row.end_cause.as_deref()).collect();
    assert_eq!(causes.iter().filter(|cause| **cause == "host_restarted").count(), 1, "{causes:?}");
    stack.finish().unwrap();
}
