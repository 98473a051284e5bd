//! What a guest does to itself ends in a stated state from which it starts again; its neighbour goes on.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::time::Duration;

use roost_tests::burden::Burden;
use roost_tests::poll;
use roost_tests::stack::Stack;
use roost_tests::stack::agent::AgentCli;
use roost_tests::stack::tenant::Tenant;
use serde_json::{Value, json};

const CHANGE_DEADLINE: Duration = Duration::from_secs(60);
const DISK_MB: u64 = 512;
/// The console keeps its last 64 KiB.
const CONSOLE_BYTES: usize = 64 << 10;
const GROWTH_MAX_KIB: u64 = 64 << 10;

struct World {
    stack: Stack,
    agent: AgentCli,
    unruly: String,
    neighbour: String,
}

impl World {
    fn new() -> Self {
        let mut stack = Stack::for_test("unruly").unwrap();
        // A guest that cut itself off is not flushed before it is stopped, and the host says so.
        stack.expect_log("the guest did not answer in time");
        let [unruly, neighbour] = ["unruly", "neighbour"].map(|name| create(stack.tenant(), name));
        Self { agent: stack.agent().unwrap(), stack, unruly, neighbour }
    }

    fn neighbour_is_well(&self) {
        assert_eq!(self.agent.shell_text(&self.neighbour, "echo well").unwrap(), "well");
    }

    fn root(&self, text: &str) -> String {
        self.agent.shell_text(&self.unruly, &format!("sudo sh -c '{text}'")).unwrap()
    }

    fn sandbox(&self) -> Value {
        self.stack.tenant().call("GET", &format!("/sandboxes/{}", self.unruly), None).unwrap().data().unwrap()
    }

    fn wait_for(&self, state: &str) -> Value {
        let what = format!("the sandbox to be {state}");
        let found = poll::until(&what, CHANGE_DEADLINE, || {
            let sandbox = self.sandbox();
            Ok((sandbox["state"] == state).then_some(sandbox))
        });
        found.unwrap_or_else(|error| panic!("{error}: {}", self.sandbox()))
    }

    fn stop(&self) {
        let path = format!("/sandboxes/{}/stop", self.unruly);
        self.stack.tenant().call("POST", &path, None).unwrap().data().unwrap();
        self.wait_for("stopped");
    }

    fn start_again(&self) {
        let path = format!("/sandboxes/{}/start", self.unruly);
        self.stack.tenant().call("POST", &path, None).unwrap().data().unwrap();
        self.wait_for("running");
    }
}

fn create(tenant: &Tenant, name: &str) -> String {
    let body = json!({ "name": name, "cpu_count": 1, "memory_mb": 256, "disk_size_mb": DISK_MB });
    let made = tenant.call("POST", "/sandboxes?wait=60", Some(&body)).unwrap().data().unwrap();
    assert_eq!(made["state"], "running", "{made}");
    made["id"].as_str().unwrap().to_owned()
}

#[test]
fn vm_unruly_guest_fills_only_what_is_its_own() {
    let world = World::new();
    let agent_pid = world.stack.process("agent").unwrap().pid().unwrap();
    let vmm = world.agent.inspect(&world.unruly).unwrap()["execution"]["vmm_pid"].as_i64().unwrap();
    let vmm = nix::unistd::Pid::from_raw(i32::try_from(vmm).unwrap());
    let burdens = || [agent_pid, vmm].map(|pid| Burden::of(pid).unwrap());

    // Its console.
    let before = burdens();
    world.root("yes 0123456789abcdef | head -c 1000000 > /dev/console; echo the last line > /dev/console");
    let shown = world.agent.call(&["console", &world.unruly], b"").unwrap().success("console").unwrap();
    assert!(shown.stdout.len() <= CONSOLE_BYTES, "{} bytes", shown.stdout.len());
    assert!(
        String::from_utf8_lossy(&shown.stdout).trim_end().ends_with("the last line"),
        "the end of the console is shown"
    );
    for (before, after) in before.iter().zip(burdens()) {
        assert!(
            after.resident_kib.saturating_sub(before.resident_kib) < GROWTH_MAX_KIB,
            "{before:?} {after:?}"
        );
    }
    world.neighbour_is_well();

    // Its disk.
    let text = "yes | head -c 2G > /workspace/fill; df --output=avail /workspace | tail -1";
    let full = world.agent.shell(&world.unruly, text).unwrap();
    assert!(full.complaint().contains("No space left on device"), "{}", full.complaint());
    let denied = world.agent.shell(&world.unruly, "echo more > /workspace/more").unwrap();
    assert_ne!(denied.code, 0, "a full disk takes more");
    world.neighbour_is_well();
    world.root("rm /workspace/fill");

    // Its processes: all of them at once but init, which goes on.
    world.root("for number in $(seq 40); do (sleep 600 &); done");
    let killed = world.agent.shell(&world.unruly, "sudo kill -9 -1").unwrap();
    assert_ne!(killed.code, 0, "who kills everything is killed as well");
    assert_eq!(world.root("kill -9 1; kill -STOP 1; pgrep -c sleep; echo here"), "0\nhere");
    assert_eq!(world.sandbox()["state"], "running");

    // And as many as its kernel permits: whatever becomes of the guest, it can be stopped.
    world.root("(bash -c \"bomb() { bomb | bomb & }; bomb\" >/dev/null 2>&1 &)");
    for _ in 0..5 {
        world.neighbour_is_well();
    }
    world.stop();
    for (before, pid) in before.iter().zip([agent_pid]) {
        let after = Burden::of(pid).unwrap();
        assert!(
            after.resident_kib.saturating_sub(before.resident_kib) < GROWTH_MAX_KIB,
            "{before:?} {after:?}"
        );
    }
    world.neighbour_is_well();
    world.stack.finish().unwrap();
}

#[test]
fn vm_unruly_guest_that_ends_is_stopped_says_why_and_starts_again() {
    let world = World::new();
    world.agent.shell_text(&world.unruly, "echo kept > /workspace/kept; sync").unwrap();
    // Reboot, power off, a kernel that panics.
    for trigger in ["b", "o", "c"] {
        let text = format!("sudo sh -c 'echo {trigger} > /proc/sysrq-trigger'; sleep 60");
        let outcome = world.agent.shell(&world.unruly, &text).unwrap();
        assert_ne!(outcome.code, 0, "{trigger}: an exec cannot succeed in a guest that is gone");
        let sandbox = world.wait_for("stopped");
        assert_eq!(sandbox["state_reason"], "guest_exited", "{trigger}: {sandbox}");
        world.neighbour_is_well();
        world.start_again();
        assert_eq!(
            world.agent.shell_text(&world.unruly, "cat /workspace/kept").unwrap(),
            "kept",
            "{trigger}"
        );
    }
    // Cut off by itself: nothing reaches it any more, and it still is stopped when asked and starts again.
    let cut =
        world.agent.shell(&world.unruly, "sudo ip link set eth0 down; sleep 2").unwrap_or_else(|error| {
            panic!("an exec into a guest without a network must end: {error}");
        });
    assert_ne!(cut.code, 0, "{}", cut.text());
    world.stop();
    world.neighbour_is_well();
    world.start_again();
    assert_eq!(world.agent.shell_text(&world.unruly, "cat /workspace/kept").unwrap(), "kept");
    world.stack.finish().unwrap();
}
