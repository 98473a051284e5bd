//! Which package is built from which: the dependency rules of ARCHITECTURE.md over cargo's own graph.

use std::collections::BTreeSet;

use super::Finding;
use crate::metadata::Graph;

/// Never linked into this member, directly or through others.
const NEVER_REACHES: &[(&str, &[&str])] = &[
    ("roost-agent", &["roost-api", "postgres", "tokio-postgres", "utoipa"]),
    ("roost-scheduler", &["rtnetlink", "cgroups-rs", "vmm-sys-util", "roost-agent", "roost-dataplane"]),
    (
        "roost-dataplane",
        &["roost-agent", "roost-scheduler", "roost-api", "rusqlite", "postgres", "rtnetlink", "cgroups-rs"],
    ),
    ("roost-init", &["rusqlite", "postgres", "roost-daemon", "roost-dial", "hickory-proto"]),
    ("roost-domain", &["tokio", "hyper", "tonic", "nix"]),
    ("roost-daemon", &["rusqlite", "postgres", "roost-proto", "roost-dial"]),
    ("roost-dial", &["roost-daemon", "hyper", "rustls"]),
    ("roost-proto", &["roost-domain", "roost-daemon"]),
    ("roost-api", &["tokio", "roost-proto", "roost-daemon"]),
];

/// Not named by this member's own manifest. (What tonic may bring differs by its features, which the graph of the
/// workspace has united.)
const NEVER_NAMES: &[(&str, &[&str])] = &[
    ("roost-agent", &["axum"]),
    ("roost-init", &["axum", "hyper", "rustls"]),
    // The clock of roost-daemon is all the scheduler needs of system calls.
    ("roost-scheduler", &["nix", "libc"]),
    // Sources of time and chance.
    ("roost-domain", &["rand", "getrandom", "uuid"]),
];

pub(super) fn check(graph: &Graph) -> Vec<Finding> {
    let members = graph.member_names();
    let mut findings = Vec::new();
    let mut compare = |member: &str, forbidden: &[&str], found: BTreeSet<String>, how: &str| {
        for name in forbidden.iter().filter(|name| found.contains(**name)) {
            findings.push(Finding::new("Cargo.toml", 1, "dependency", format!("{member} {how} {name}")));
        }
    };
    for (member, forbidden) in NEVER_REACHES.iter().filter(|(member, _)| members.contains(*member)) {
        compare(member, forbidden, graph.reachable(member), "must not be built from");
    }
    for (member, forbidden) in NEVER_NAMES.iter().filter(|(member, _)| members.contains(*member)) {
        compare(member, forbidden, graph.direct(member), "must not depend on");
    }
    let known = NEVER_REACHES.iter().map(|(member, _)| *member);
    let unknown: Vec<_> = known.filter(|member| !members.contains(*member)).collect();
    for member in unknown {
        findings.push(Finding::new(
            "Cargo.toml",
            1,
            "dependency",
            format!("{member} is gone: mend the rules"),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::tests::graph;

    const GOOD: &str = "
        roost-agent -> roost-daemon nix
        roost-scheduler -> roost-daemon postgres
        roost-dataplane -> roost-dial hyper
        roost-init -> tonic
        roost-domain -> serde
        roost-daemon -> roost-domain nix
        roost-dial -> roost-domain tokio
        roost-proto -> prost
        roost-api -> roost-domain
    ";

    fn messages(text: &str) -> Vec<String> {
        check(&graph(text)).into_iter().map(|finding| finding.message).collect()
    }

    #[test]
    fn forbidden_ways_are_found_at_any_distance() {
        assert_eq!(messages(GOOD), Vec::<String>::new());
        let direct = GOOD.replace("roost-daemon postgres", "roost-daemon postgres nix");
        assert_eq!(messages(&direct), ["roost-scheduler must not depend on nix"]);
        let far = GOOD
            .replace("roost-dial hyper", "roost-dial store")
            .replace("tonic\n", "tonic\n store -> rusqlite\n");
        assert_eq!(messages(&far), ["roost-dataplane must not be built from rusqlite"]);
        let gone = GOOD.replace("roost-api -> roost-domain", "");
        assert_eq!(messages(&gone), ["roost-api is gone: mend the rules"]);
    }
}
