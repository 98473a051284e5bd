//! The scheduler can be killed: sandboxes go on, and it comes back to what was.

use roost_tests::stack::Stack;
use serde_json::json;

#[test]
fn vm_outlives_a_killed_scheduler() {
    let mut stack = Stack::for_test("scheduler-killed").unwrap();
    stack.expect_log("lost the scheduler's");
    stack.expect_log("the scheduler cannot be told");
    let tenant = stack.tenant().clone();
    let body = json!({ "name": "kept", "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 1024 });
    let made = tenant.call("POST", "/sandboxes?wait=60", Some(&body)).unwrap().data().unwrap();
    let id = made["id"].as_str().unwrap();
    let agent = stack.agent().unwrap();
    agent.shell_text(id, "echo kept > /tmp/mark").unwrap();
    let before = agent.inspect(id).unwrap()["execution"]["vmm_pid"].clone();

    stack.kill_and_await("scheduler").unwrap();

    let body = json!({ "command": "cat /tmp/mark" });
    let answer = tenant.call("POST", &format!("/sandboxes/{id}/exec"), Some(&body)).unwrap().data().unwrap();
    assert_eq!(answer["stdout"], "kept\n", "{answer}");
    assert_eq!(agent.inspect(id).unwrap()["execution"]["vmm_pid"], before);
    let listed = tenant.list().unwrap();
    assert_eq!((listed.len(), &listed[0]["state"]), (1, &json!("running")));
    stack.finish().unwrap();
}
