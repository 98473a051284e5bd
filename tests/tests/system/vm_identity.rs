//! Two boots of one image share nothing that must be their own.

use std::time::{SystemTime, UNIX_EPOCH};

use roost_tests::stack::Stack;
use roost_tests::stack::agent::AgentCli;

/// A guest's clock may be this far off the host's.
const CLOCK_SLACK_S: f64 = 2.0;

#[test]
fn vm_two_boots_differ_in_identity_and_agree_on_the_time() {
    let stack = Stack::for_test("identity").unwrap();
    let agent = stack.agent().unwrap();
    let ids = [agent.run().unwrap(), agent.run().unwrap()];

    for (what, text) in [
        ("machine-id", "cat /etc/machine-id"),
        ("host name", "hostname"),
        ("boot id", "cat /proc/sys/kernel/random/boot_id"),
        ("random bytes", "head -c 32 /dev/urandom | base64 -w0"),
        ("hash seed", "python3 -c 'print(hash(\"a\"))'"),
    ] {
        let [one, two] = [0, 1].map(|index| agent.shell_text(&ids[index], text).unwrap());
        assert!(!one.is_empty(), "{what} is empty");
        assert_ne!(one, two, "two boots have the same {what}");
    }
    for id in &ids {
        let error_s = clock_error_s(&agent, id).unwrap();
        assert!(error_s.abs() < CLOCK_SLACK_S, "the clock is off by {error_s} s");
    }
    stack.finish().unwrap();
}

/// How far the guest's clock is from the host's, less the time the question took.
fn clock_error_s(agent: &AgentCli, id: &str) -> anyhow::Result<f64> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs_f64());
    let before = now()?;
    let guest: f64 = agent.shell_text(id, "date +%s.%N")?.parse()?;
    let after = now()?;
    Ok(if guest < before { guest - before } else { (guest - after).max(0.0) })
}
