//! Which module of a package may know which: the arrows of ARCHITECTURE.md.

use super::Finding;
use super::scan::Scan;
use super::source::Source;

/// Code below this directory does not name these paths.
const LAYERS: &[(&str, &[&str], &str)] = &[
    ("scheduler/src/store/", &["crate::app", "crate::http", "crate::fleet"], "the store is the lowest layer"),
    ("scheduler/src/app/", &["crate::http"], "http calls app, not the other way round"),
    ("scheduler/src/http/", &["rusqlite", "postgres"], "SQL is written in store"),
    ("scheduler/src/app/", &["rusqlite", "postgres"], "SQL is written in store"),
    ("scheduler/src/fleet/", &["rusqlite", "postgres", "crate::http"], "SQL is written in store"),
    ("scheduler/src/secret/", &["rusqlite", "postgres", "crate::http"], "SQL is written in store"),
    (
        "agent/src/host/",
        &["crate::sandbox", "crate::link", "crate::store", "crate::cli"],
        "host is the lowest layer",
    ),
    (
        "agent/src/vmm/",
        &["crate::sandbox", "crate::link", "crate::store", "crate::cli"],
        "vmm knows only host",
    ),
    ("agent/src/image/", &["crate::sandbox", "crate::link", "crate::cli"], "image is below sandbox"),
    ("agent/src/snapshot/", &["crate::sandbox", "crate::link", "crate::cli"], "snapshot is below sandbox"),
    ("agent/src/sandbox/", &["crate::link", "crate::cli", "rusqlite::Connection"], "link calls sandbox"),
    ("agent/dataplane/src/egress/", &["crate::edge", "crate::guest"], "egress and edge are two processes"),
    ("agent/dataplane/src/edge/", &["crate::egress"], "egress and edge are two processes"),
    (
        "crates/domain/src/",
        &["tokio", "std::fs", "std::net::TcpStream", "SystemTime", "Instant"],
        "domain is pure",
    ),
];

pub(super) fn check(source: &Source, scan: &Scan) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (directory, forbidden, reason) in
        LAYERS.iter().filter(|(directory, ..)| source.path.starts_with(directory))
    {
        for path in *forbidden {
            let words: Vec<String> =
                path.replace("::", " : : ").split_whitespace().map(str::to_owned).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            for word in scan.find(&words).filter(|word| !source.is_test && !word.in_test) {
                let message = format!("{directory} does not know {path}: {reason}");
                findings.push(Finding::new(&source.path, word.line, "layer", message));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::findings;

    #[test]
    fn arrows_point_one_way() {
        assert_eq!(findings("scheduler/src/store/x.rs", "//! X.\nuse crate::app::Caller;\n"), ["2 layer"]);
        assert_eq!(findings("scheduler/src/app/x.rs", "//! X.\nuse crate::http::error;\n"), ["2 layer"]);
        assert_eq!(
            findings("scheduler/src/http/x.rs", "//! X.\nfn x(c: &rusqlite::Connection) {}\n"),
            ["2 layer"]
        );
        assert_eq!(findings("agent/src/host/x.rs", "//! X.\nuse crate::store::Store;\n"), ["2 layer"]);
        assert_eq!(findings("crates/domain/src/x.rs", "//! X.\nuse std::time::SystemTime;\n"), ["2 layer"]);
        assert_eq!(findings("scheduler/src/http/x.rs", "//! X.\nuse crate::app;\n"), Vec::<String>::new());
        let in_test = "//! X.\n#[cfg(test)]\nmod tests { use crate::store; }\n";
        assert_eq!(findings("agent/src/host/x.rs", in_test), Vec::<String>::new());
    }
}
