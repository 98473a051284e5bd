//! Things that only a few places may do: `unsafe`, starting processes, dialling and resolving.

use super::Finding;
use super::scan::Scan;
use super::source::Source;

const UNSAFE_PLACES: &[&str] = &["agent/src/host/", "guest-init/src/sys", "guest-init/src/exec"];
const PROCESS_PLACES: &[&str] =
    &["agent/src/host/", "guest-init/src/exec", "guest-init/src/sys", "scripts/xtask/"];
/// Where the clippy ban on dialling, resolving and starting processes may be lifted.
const LIFTING_PLACES: &[&str] = &[
    "agent/src/host/",
    "agent/dataplane/src/guest/",
    // The edge of another host of the fleet, at the address the scheduler names.
    "agent/dataplane/src/edge/preview/owner.rs",
    "crates/dial/src/",
    "guest-init/src/exec",
    "guest-init/src/sys",
    // A forward reaches servers inside the guest itself.
    "guest-init/src/forward",
    "scripts/xtask/",
];
/// Packages whose code is all safe, by the compiler's word.
const FORBIDDING_ROOTS: &[&str] = &[
    "agent/dataplane/src/lib.rs",
    "agent/dataplane/src/main.rs",
    "crates/api/src/lib.rs",
    "crates/daemon/src/lib.rs",
    "crates/dial/src/lib.rs",
    "crates/domain/src/lib.rs",
    "scheduler/src/lib.rs",
    "scheduler/src/main.rs",
    "scripts/xtask/src/main.rs",
];

pub(super) fn check(source: &Source, scan: &Scan) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_in = |places: &[&str]| places.iter().any(|place| source.path.starts_with(place));
    // `unsafe_code`, the lint's name, is another word.
    if !is_in(UNSAFE_PLACES) {
        for word in scan.find(&["unsafe"]).filter(|word| !source.is_test && !word.in_test) {
            findings.push(Finding::new(&source.path, word.line, "unsafe", "unsafe code has its own places"));
        }
    }
    if !is_in(PROCESS_PLACES) {
        for word in scan.find(&["Command", ":", ":", "new"]).filter(|word| !source.is_test && !word.in_test) {
            let message = "processes are started by agent/host and guest-init/exec";
            findings.push(Finding::new(&source.path, word.line, "process", message));
        }
    }
    if !is_in(LIFTING_PLACES) {
        for word in scan.find(&["clippy", ":", ":", "disallowed_methods"]) {
            if !source.is_test && !word.in_test {
                let message =
                    "this place may not lift the ban: dial with roost-dial, start processes in agent/host";
                findings.push(Finding::new(&source.path, word.line, "lifted-ban", message));
            }
        }
    }
    let forbids = || scan.find(&["forbid", "(", "unsafe_code", ")"]).next().is_some();
    if FORBIDDING_ROOTS.contains(&source.path.as_str()) && !forbids() {
        findings.push(Finding::new(&source.path, 1, "unsafe", "this package has #![forbid(unsafe_code)]"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::findings;

    #[test]
    fn unsafe_code_has_its_places() {
        let text = "//! X.\nfn x() { unsafe { y() } }\n";
        assert_eq!(findings("agent/src/sandbox/x.rs", text), ["2 unsafe"]);
        assert_eq!(findings("agent/src/host/x.rs", text), Vec::<String>::new());
        assert_eq!(findings("crates/dial/src/lib.rs", "//! X.\n"), ["1 unsafe"]);
        let hidden =
            "//! X.\nmacro_rules! m { () => { unsafe { y() } } }\n// unsafe\nconst A: &str = \"unsafe\";\n";
        assert_eq!(findings("agent/src/sandbox/x.rs", hidden), ["2 unsafe"]);
    }

    #[test]
    fn processes_are_started_in_their_places() {
        let text = "//! X.\nfn x() { std::process::Command::new(\"nft\"); }\n";
        assert_eq!(findings("agent/src/vmm/x.rs", text), ["2 process"]);
        assert_eq!(findings("scheduler/src/x.rs", text), ["2 process"]);
        assert_eq!(findings("agent/src/host/nft.rs", text), Vec::<String>::new());
        assert_eq!(findings("tests/tests/x.rs", text), Vec::<String>::new());
    }

    #[test]
    fn the_ban_is_lifted_in_its_places() {
        let text = "//! X.\n#[expect(clippy::disallowed_methods, reason = \"x\")]\nfn x() {}\n";
        assert_eq!(findings("agent/dataplane/src/egress/x.rs", text), ["2 lifted-ban"]);
        assert_eq!(findings("crates/dial/src/x.rs", text), Vec::<String>::new());
    }
}
