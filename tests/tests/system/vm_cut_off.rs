//! What a tenant is told of a call that a pause of its sandbox cuts off.

use roost_tests::stack::Stack;
use serde_json::json;

#[test]
fn vm_command_that_a_pause_cuts_off_is_told_of_the_pause() {
    let mut stack = Stack::for_test("cut-off").unwrap();
    stack.expect_log("the sandbox does not answer");
    let tenant = stack.tenant().clone();
    let small = json!({ "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 1024 });
    let made = tenant.call("POST", "/sandboxes?wait=100", Some(&small)).unwrap().data().unwrap();
    let path = format!("/sandboxes/{}", made["id"].as_str().unwrap());
    let calling = {
        let (tenant, path) = (tenant.clone(), path.clone());
        std::thread::spawn(move || {
            let body = json!({ "command": "touch /dev/shm/begun; sleep 90" });
            tenant.call("POST", &format!("{path}/exec"), Some(&body))
        })
    };
    let agent = stack.agent().unwrap();
    let id = made["id"].as_str().unwrap();
    roost_tests::poll::until("the command to begin", std::time::Duration::from_secs(60), || {
        Ok((agent.shell(id, "test -e /dev/shm/begun")?.code == 0).then_some(()))
    })
    .unwrap();
    tenant.call("POST", &format!("{path}/pause"), Some(&json!({}))).unwrap().data().unwrap();
    let answer = calling.join().unwrap().unwrap();
    assert_eq!(
        (answer.status, &answer.body["error"]["code"]),
        (409, &json!("RESOURCE_STATE")),
        "{:?}",
        answer.body
    );
    stack.finish().unwrap();
}
