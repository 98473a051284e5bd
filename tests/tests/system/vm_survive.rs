//! VMs outlive the processes that look after them.

use nix::sys::signal::Signal;
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
