//! A guest that tries everything reaches nothing, and its neighbour does not notice.
//!
//! Programs under `tests/guest` run in a real VM, as root where that helps them. Every TCP connection of theirs and
//! every refused lookup must be one audit row; nothing else may leave one. No public address is ever dialled: those
//! that are tried are refused by the deny floor.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::time::{Duration, Instant};

use roost_tests::burden::Burden;
use roost_tests::poll;
use roost_tests::stack::agent::AgentCli;
use roost_tests::stack::tenant::Tenant;
use roost_tests::stack::{Allowed, Stack, Wish};
use roost_tests::upstream::{self, Upstream};
use serde_json::{Value, json};

const REACH: &str = include_str!("../../guest/reach.py");
const FRAMES: &str = include_str!("../../guest/frames.py");
const IDLE: &str = include_str!("../../guest/idle.py");

/// More than egress serves for one guest at once; the rest wait in the backlog of the guest's own listener.
const IDLE_CONNECTIONS: usize = 600;
/// What one guest may add to a process: its share of buffers, and connections at its limit with a few of the rest.
const GROWTH_MAX_KIB: u64 = 96 << 10;
const DESCRIPTORS_MAX: usize = 256 + 64;
/// A neighbour shares two cores with an emulated guest that works as hard as it can.
const SLOWDOWN_MAX: u32 = 20;
const AUDIT_DEADLINE: Duration = Duration::from_secs(30);

/// What the gateway's address is asked for, besides the ports of this stack.
const PORTS: [u16; 7] = [22, 80, 443, 1021, 8080, 8443, 18_080];
/// One of each kind of address that no guest may dial.
const FORBIDDEN: [&str; 12] = [
    "10.0.0.9",
    "10.0.0.6",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.168.0.1",
    "198.51.100.1",
    "203.0.113.1",
];

/// Both sandboxes of the test and who looks at them.
struct World {
    stack: Stack,
    agent: AgentCli,
    upstream: Upstream,
    attacker: String,
    neighbour: String,
}

impl World {
    fn new() -> Self {
        let upstream = Upstream::start().unwrap();
        let wish = Wish { upstream: Some(Allowed::from(&upstream)), ..Wish::default() };
        let stack = Stack::for_test_with("hostile", &wish).unwrap();
        let [attacker, neighbour] = ["attacker", "neighbour"].map(|name| create(stack.tenant(), name));
        Self { agent: stack.agent().unwrap(), stack, upstream, attacker, neighbour }
    }

    /// How long the neighbour takes for a command and a call of its own, both of which must succeed.
    fn neighbour_takes(&self) -> Duration {
        let begun = Instant::now();
        let text = format!("curl -sS --max-time 60 {}", self.upstream.url("/neighbour"));
        assert_eq!(self.agent.shell_text(&self.neighbour, &text).unwrap(), upstream::ANSWER);
        begun.elapsed()
    }

    /// A program of the attacker, as root, and the JSON it prints.
    fn attack(&self, program: &str, argument: &str) -> Value {
        let arguments = ["exec", "-i", &self.attacker, "--", "sudo", "python3", "-", argument];
        let outcome = self.agent.call(&arguments, program.as_bytes()).unwrap().success("the attack").unwrap();
        serde_json::from_str(&outcome.text()).expect("a program that prints JSON")
    }

    fn burden(&self, process: &str) -> Burden {
        Burden::of(self.stack.process(process).unwrap().pid().unwrap()).unwrap()
    }
}

fn create(tenant: &Tenant, name: &str) -> String {
    let body = json!({ "name": name, "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 512 });
    let made = tenant.call("POST", "/sandboxes?wait=60", Some(&body)).unwrap().data().unwrap();
    assert_eq!(made["state"], "running", "{made}");
    made["id"].as_str().unwrap().to_owned()
}

/// (host, port, reason) of every audited call of a sandbox that was refused, once there are `count` of them.
fn refused_rows(tenant: &Tenant, id: &str, count: usize) -> Vec<(String, u64, String)> {
    let path = format!("/egress/audit?resource_id={id}&limit=200");
    let rows = poll::until(&format!("{count} audit rows"), AUDIT_DEADLINE, || {
        let Value::Array(rows) = tenant.call("GET", &path, None)?.data()? else { panic!("no list") };
        let refused: Vec<_> = rows.into_iter().filter(|row| !row["rejected_by"].is_null()).collect();
        Ok((refused.len() >= count).then_some(refused))
    });
    let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
    let facts = |row: &Value| (text(row, "host"), row["port"].as_u64().unwrap(), text(row, "rejected_by"));
    let mut rows: Vec<_> = rows.unwrap().iter().map(facts).collect();
    rows.sort();
    rows
}

#[test]
fn vm_hostile_guest_reaches_nothing_and_its_neighbour_does_not_notice() {
    let world = World::new();
    world.neighbour_takes();
    let calm = world.neighbour_takes();
    let before = ["egress", "edge", "agent", "scheduler"].map(|name| (name, world.burden(name)));

    e6_e7_e9_c13_every_address_is_refused_with_one_row_each(&world);
    e4_e5_e6_forged_frames_meet_silence_and_leave_no_row(&world);
    d21_idle_connections_are_held_to_the_limit_of_the_guest(&world, calm);

    assert!(world.neighbour_takes() < calm * SLOWDOWN_MAX);
    for (name, before) in before {
        let after = world.burden(name);
        let grown = after.resident_kib.saturating_sub(before.resident_kib);
        assert!(grown < GROWTH_MAX_KIB, "{name} grew by {grown} KiB");
        assert!(after.descriptors < before.descriptors + 64, "{name}: {before:?}, then {after:?}");
    }
    world.stack.finish().unwrap();
}

fn e6_e7_e9_c13_every_address_is_refused_with_one_row_each(world: &World) {
    // A server of the neighbour, and those of this machine: they are there, and not for this guest.
    let serve = "(python3 -m http.server 7777 --bind 0.0.0.0 >/dev/null 2>&1 &)";
    world.agent.shell_text(&world.neighbour, serve).unwrap();
    let ports = world.stack.ports();
    let ports =
        [ports.api, ports.fleet, ports.ensure, ports.gateway, ports.preview, ports.egress_health, 7777];
    let mut tcp: Vec<(&str, u16)> = PORTS.into_iter().chain(ports).map(|port| ("10.0.0.1", port)).collect();
    tcp.extend(FORBIDDEN.map(|address| (address, 80)));
    // Of the range of synthetic addresses, but never given for a name.
    tcp.extend([("198.18.255.1", 443), ("198.19.255.254", 80)]);
    // Its own: nobody listens there but what it runs itself.
    let own = [("127.0.0.1", ports[0]), ("10.0.0.2", 7777), ("::1", 443)];
    let beyond = [("fe80::1%2", 80), ("fd00::1", 80), ("2001:db8::1", 443), ("ff02::1%2", 80)];
    let udp: Vec<(&str, u16)> = [443, 123, 1021, 18_080].map(|port| ("10.0.0.1", port)).into();
    let udp: Vec<_> =
        udp.into_iter().chain([("192.0.2.1", 443), ("192.0.2.1", 4500), ("fe80::1%2", 53)]).collect();
    let long = ["a".repeat(63), "b".repeat(63), "c".repeat(60), "tunnel.example".into()].join(".");
    const A: u16 = 1;
    const NULL: u16 = 10;
    const TXT: u16 = 16;
    let dns = [
        ("8.8.8.8", "control.example", A, "udp", "code 0, 1 answers"),
        ("8.8.8.8", "control.example", A, "tcp", "code 0, 1 answers"),
        ("192.0.2.53", &long, TXT, "udp", "code 0, 0 answers"),
        ("10.0.0.1", &long, NULL, "udp", "code 0, 0 answers"),
        ("10.0.0.1", "metadata.google.internal", A, "udp", "code 3, 0 answers"),
        ("8.8.8.8", "instance-data.ec2.internal", A, "tcp", "code 3, 0 answers"),
    ];
    let connections: Vec<_> = tcp.iter().chain(&own).chain(&beyond).collect();
    let asked: Vec<_> =
        dns.iter().map(|(server, name, kind, how, _)| json!([server, name, kind, how])).collect();
    // Those who speak HTTP are told so in HTTP.
    let http = [("10.0.0.1", 80), ("10.0.0.1", ports[0]), ("169.254.169.254", 80)];
    let wish = json!({ "tcp": connections, "http": http, "udp": udp, "dns": asked });
    let came = world.attack(REACH, &wish.to_string());

    let outcome = |kind: &str, index: usize| came[kind][index].as_str().unwrap().to_owned();
    for (index, target) in tcp.iter().enumerate() {
        assert_eq!(outcome("tcp", index), "reset", "{target:?}");
    }
    for (index, target) in http.iter().enumerate() {
        assert_eq!(outcome("http", index), "HTTP/1.1 403 Forbidden", "{target:?}");
    }
    for (index, target) in own.iter().enumerate() {
        assert_eq!(outcome("tcp", tcp.len() + index), "refused", "{target:?}");
    }
    for (index, target) in beyond.iter().enumerate() {
        let outcome = outcome("tcp", tcp.len() + own.len() + index);
        assert!(matches!(outcome.as_str(), "unreachable" | "silent"), "{target:?}: {outcome}");
    }
    for (index, target) in udp.iter().enumerate() {
        let outcome = outcome("udp", index);
        assert!(matches!(outcome.as_str(), "unreachable" | "silent"), "{target:?}: {outcome}");
    }
    for (index, (server, name, kind, how, expected)) in dns.iter().enumerate() {
        assert_eq!(outcome("dns", index), *expected, "{kind} of {name} at {server} over {how}");
    }

    let row = |host: &str, port: u16, reason: &str| (host.to_owned(), u64::from(port), reason.to_owned());
    let reason = |address: &str| match address.starts_with("198.1") {
        true if !address.starts_with("198.51") => "unknown_address",
        _ => "denied_address",
    };
    let mut expected: Vec<_> =
        tcp.iter().chain(&http).map(|(host, port)| row(host, *port, reason(host))).collect();
    expected.extend(
        ["metadata.google.internal", "instance-data.ec2.internal"]
            .map(|name| row(name, 53, "denied_address")),
    );
    expected.sort();
    assert_eq!(refused_rows(world.stack.tenant(), &world.attacker, expected.len()), expected);
}

fn e4_e5_e6_forged_frames_meet_silence_and_leave_no_row(world: &World) {
    let rows = || refused_rows(world.stack.tenant(), &world.attacker, 0).len();
    let before = rows();
    let came = world.attack(FRAMES, "");
    assert_eq!(
        came["control"],
        json!(["ip protocol 17 from 10.0.0.1 to 10.0.0.2"]),
        "an honest lookup is heard: silence is not deafness"
    );
    assert_eq!(came["heard"], json!([]));
    // The wire still works for its owner, and a last row shows that nothing is still on its way to the audit.
    let came = world.attack(REACH, &json!({ "tcp": [["192.0.2.77", 80]] }).to_string());
    assert_eq!(came["tcp"], json!(["reset"]));
    let rows = refused_rows(world.stack.tenant(), &world.attacker, before + 1);
    assert_eq!(rows.len(), before + 1, "{rows:?}");
}

fn d21_idle_connections_are_held_to_the_limit_of_the_guest(world: &World, calm: Duration) {
    let before = world.burden("egress");
    let put = ["exec", "-i", &world.attacker, "--", "sh", "-c", "cat > /tmp/idle.py"];
    world.agent.call(&put, IDLE.as_bytes()).unwrap().success("putting the program").unwrap();
    // A web port: who says nothing there is dialled nowhere.
    let start = format!(
        "address=$(getent ahostsv4 idle.example | awk 'NR == 1 {{ print $1 }}'); \
         (python3 /tmp/idle.py $address 443 {IDLE_CONNECTIONS} > /tmp/idle 2>&1 &)"
    );
    world.agent.shell_text(&world.attacker, &start).unwrap();
    let opened = poll::until("idle connections", Duration::from_secs(60), || {
        let text = world.agent.shell_text(&world.attacker, "cat /tmp/idle")?;
        Ok((!text.is_empty()).then_some(text))
    });
    let opened: usize = opened.unwrap().parse().unwrap();
    assert!(opened >= 256, "{opened} of {IDLE_CONNECTIONS} opened: the rest wait to be accepted");
    let during = world.burden("egress");
    let descriptors = during.descriptors.saturating_sub(before.descriptors);
    assert!((200..=DESCRIPTORS_MAX).contains(&descriptors), "{descriptors} more descriptors");
    assert!(
        during.resident_kib.saturating_sub(before.resident_kib) < GROWTH_MAX_KIB,
        "{before:?} {during:?}"
    );
    assert!(world.neighbour_takes() < calm * SLOWDOWN_MAX, "a neighbour pays for idle connections");
    world.agent.shell_text(&world.attacker, "pkill -f idle.py").unwrap();
    poll::until("the descriptors to be free again", Duration::from_secs(30), || {
        Ok((world.burden("egress").descriptors < before.descriptors + 32).then_some(()))
    })
    .unwrap();
}
