//! What a running host refuses: its operator's mistakes at the command line.

use roost_tests::refusal;
use roost_tests::stack::Stack;
use serde_json::json;

const AGENT: &str = "roost-agent";

#[test]
fn vm_operators_mistakes_are_explained_and_change_nothing() {
    let stack = Stack::for_test("refusal").unwrap();
    let agent = stack.agent().unwrap();
    let id = agent.run().unwrap();
    let small = json!({ "name": "theirs", "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 1024 });
    let made = stack.tenant().call("POST", "/sandboxes?wait=100", Some(&small)).unwrap().data().unwrap();
    let theirs = made["id"].as_str().unwrap().to_owned();
    let refused = |arguments: &[&str], named: &[&str]| {
        let outcome = refusal::run(agent.command(arguments)).unwrap();
        if let Err(error) = refusal::check(AGENT, &outcome, named) {
            panic!("roost-agent {}: {error:#}", arguments.join(" "));
        }
    };
    for verb in ["inspect", "pause", "resume", "stop", "destroy", "usage", "console"] {
        refused(&[verb, "sbx_none"], &["sbx_none", "roost-agent ps"]);
        // Without an id it is the usage of all.
        if verb != "usage" {
            refused(&[verb, ""], &["roost-agent ps"]);
        }
    }
    refused(&["exec", "sbx_none", "--", "true"], &["sbx_none", "roost-agent ps"]);
    for verb in ["pause", "resume", "stop", "destroy"] {
        refused(&[verb, &theirs], &[&theirs, "scheduler's API"]);
    }
    refused(&["pause", "sbx_"], &["roost-agent ps"]);
    refused(&["exec", "--shell", &id, "echo", "two"], &["--shell", "quote it"]);
    refused(&["run", "--vcpus", "0"], &["--vcpus", "1 to 32"]);
    refused(&["run", "--memory-mib", "1"], &["--memory-mib", "128"]);
    refused(&["run", "--disk-mib", "99999999999"], &["--disk-mib"]);
    refused(&["run", "--host-name=-x"], &["--host-name", "-x"]);
    refused(&["run", "--host-name=Upper"], &["--host-name", "Upper"]);
    refused(&["run", "--template", "no-such"], &["no-such"]);
    refused(&["run", "--template", "../../etc"], &["../../etc"]);

    agent.pause(&id).unwrap();
    refused(&["exec", &id, "--", "true"], &[&id, "paused", "resume it first"]);
    agent.call(&["stop", &id], b"").unwrap().success("stop").unwrap();
    assert_eq!(agent.inspect(&id).unwrap()["snapshot"], "", "a stopped sandbox keeps no memory");
    refused(&["pause", &id], &[&id, "stopped"]);
    agent.destroy(&id).unwrap();
    refused(&["exec", &id, "--", "true"], &[&id]);
    refused(&["pause", &id], &[&id, "destroyed"]);
    refused(&["resume", &id], &[&id, "destroyed"]);
    let there = agent.list().unwrap();
    let states: Vec<_> = there.iter().map(|sandbox| (&sandbox["id"], &sandbox["state"])).collect();
    assert!(states.contains(&(&json!(theirs), &json!("running"))), "{states:?}");
    let others = states.iter().filter(|(other, state)| **other != theirs && *state != "destroyed").count();
    assert_eq!(others, 0, "a refused command made a sandbox: {states:?}");
    stack.finish().unwrap();
}
