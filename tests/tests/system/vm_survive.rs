//! VMs outlive the processes that look after them.

use std::time::Duration;

use nix::sys::signal::Signal;
use roost_tests::crash::books;
use roost_tests::poll;
use roost_tests::stack::Stack;

#[test]
fn vm_survives_the_agent_being_killed() {
    let mut stack = Stack::for_test("agent-killed").unwrap();
    let agent = stack.agent().unwrap();
    let id = agent.run().unwrap();
    agent.shell_text(&id, "echo kept > /dev/shm/mark; (sleep 600 &)").unwrap();
    let before = agent.inspect(&id).unwrap();

    stack.expect_log("the agent went away");
    stack.kill_and_await("agent").unwrap();

    assert_eq!(agent.shell_text(&id, "cat /dev/shm/mark; pgrep -c sleep").unwrap(), "kept\n1");
    let after = agent.inspect(&id).unwrap();
    assert_eq!(after["execution"]["vmm_pid"], before["execution"]["vmm_pid"]);
    assert_eq!(after["execution"]["id"], before["execution"]["id"]);
    agent.destroy(&id).unwrap();
    stack.finish().unwrap();
}

/// Sent by the guest, so that what the tests' own calls add is little beside it.
const SENT_BYTES: i64 = 2 << 20;

/// What a query of one number finds in the agent's database.
fn ask(stack: &Stack, sql: &str) -> i64 {
    let db = books::open(&stack.agent_state().join("agent.db")).unwrap();
    db.query_row(sql, [], |row| row.get::<_, Option<i64>>(0)).unwrap().unwrap_or_default()
}

#[test]
fn vm_is_billed_its_bytes_once_however_often_the_agent_is_killed() {
    let mut stack = Stack::for_test("agent-bytes").unwrap();
    let agent = stack.agent().unwrap();
    let id = agent.run().unwrap();
    let send = || {
        let text = format!("head -c {SENT_BYTES} /dev/zero | tr '\\0' x");
        assert_eq!(agent.shell_text(&id, &text).unwrap().len() as i64, SENT_BYTES);
    };
    send();
    // Committed, so that the next agent has something to count from; it reads once a minute.
    let committed = || Ok((ask(&stack, "SELECT max(egress_bytes) FROM reading") >= SENT_BYTES).then_some(()));
    poll::until("the bytes to be read", Duration::from_secs(90), committed).unwrap();

    stack.expect_log("the agent went away");
    stack.expect_log("data plane disconnected");
    // An edge that counts from zero again, and agents that have to know what the one before it had counted.
    for process in ["edge", "agent", "agent"] {
        stack.kill_and_await(process).unwrap();
        agent.shell_text(&id, "true").unwrap();
    }
    send();
    agent.destroy(&id).unwrap();
    let billed = ask(&stack, "SELECT sum(net_egress_bytes) FROM usage_delta");
    let sent = 2 * SENT_BYTES;
    assert!((sent..sent * 5 / 4).contains(&billed), "{billed} bytes billed for {sent}");
    stack.finish().unwrap();
}

#[test]
fn vm_survives_the_data_plane_being_killed() {
    let mut stack = Stack::for_test("plane-killed").unwrap();
    let agent = stack.agent().unwrap();
    let id = agent.run().unwrap();
    agent.shell_text(&id, "echo kept > /dev/shm/mark").unwrap();

    stack.expect_log("data plane disconnected");
    for role in ["edge", "egress"] {
        stack.kill_and_await(role).unwrap();
        assert_eq!(agent.shell_text(&id, "cat /dev/shm/mark").unwrap(), "kept", "after {role} was killed");
        let execution = &agent.inspect(&id).unwrap()["execution"];
        assert_eq!(
            (&execution["egress_attached"], &execution["edge_attached"]),
            (&true.into(), &true.into())
        );
    }
    // Not synced: the guest has it in its page cache only, and is reached through edge only.
    agent.shell_text(&id, "echo written > /home/user/file").unwrap();
    stack.process("edge").unwrap().kill(Signal::SIGKILL).unwrap();
    agent.call(&["stop", &id], b"").unwrap().success("stop").unwrap();
    let stopped = agent.inspect(&id).unwrap();
    assert_eq!((&stopped["state"], &stopped["state_reason"]), (&"stopped".into(), &"".into()), "{stopped}");
    agent.resume(&id).unwrap();
    assert_eq!(agent.shell_text(&id, "cat /home/user/file").unwrap(), "written");
    stack.finish().unwrap();
}
