//! A sandbox boots, is shown as it is, and leaves nothing behind once it is destroyed.

use roost_tests::stack::{Stack, leftover};

#[test]
fn vm_boots_runs_unprivileged_and_is_destroyed_without_a_trace() {
    let stack = Stack::for_test("boot").unwrap();
    let agent = stack.agent().unwrap();
    let id = agent.run().unwrap();
    assert!(id.starts_with("sbx_"), "{id}");

    let sandbox = agent.inspect(&id).unwrap();
    assert_eq!(sandbox["state"], "running");
    assert_eq!(sandbox["origin"], "local");
    let execution = &sandbox["execution"];
    assert_eq!((&execution["egress_attached"], &execution["edge_attached"]), (&true.into(), &true.into()));

    let pid = execution["vmm_pid"].as_i64().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(u64::from_str_radix(&field("CapEff:"), 16).unwrap(), 0);
    assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"));
    let uid: u32 = field("Uid:").parse().unwrap();
    let (first, last) = stack.place().vmm_uids();
    assert!((first..=last).contains(&uid), "uid {uid}");

    agent.destroy(&id).unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the VMM outlived its sandbox");
    let daemons = 4;
    let left = leftover::find(stack.place(), stack.baseline());
    assert_eq!(left.len(), daemons, "only the daemons themselves are to be left: {left:#?}");
    stack.finish().unwrap();
}
