//! The rules of ARCHITECTURE.md that no compiler knows. Each has a test with a sample that fails it.

mod attack;
mod dependency;
mod feature;
mod layer;
mod layout;
mod length;
mod place;
mod scan;
mod settings;
mod source;
mod test_honesty;
mod text;

use std::path::Path;

use anyhow::bail;

use crate::metadata::Graph;
use source::Tree;

/// One violation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    rule: &'static str,
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, rule: &'static str, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, rule, message: message.into() }
    }
}

pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let tree = Tree::read(root)?;
    let mut findings = of_tree(&tree);
    findings.extend(attack::check(&tree));
    findings.extend(dependency::check(&Graph::load(root)?));
    findings.sort();
    for Finding { path, line, rule, message } in &findings {
        eprintln!("{path}:{line}: {rule}: {message}");
    }
    if findings.is_empty() { Ok(()) } else { bail!("{} findings", findings.len()) }
}

fn of_tree(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in &tree.sources {
        findings.extend(layout::check(source));
        findings.extend(feature::check(source));
        findings.extend(text::check(source));
        findings.extend(test_honesty::check(source));
        let Some(scan) = &source.scan else { continue };
        findings.extend(length::check(source, scan));
        findings.extend(place::check(source, scan));
        findings.extend(layer::check(source, scan));
        findings.extend(settings::check(source, scan));
    }
    findings.extend(tree.unreadable.clone());
    findings.extend(length::check_ratchet(tree));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the rules say about one file, as `line rule` words.
    pub(super) fn findings(path: &str, text: &str) -> Vec<String> {
        let tree = Tree::of(&[(path, text)]);
        let mut findings = of_tree(&tree);
        findings.sort();
        findings.iter().map(|finding| format!("{} {}", finding.line, finding.rule)).collect()
    }

    #[test]
    fn a_tidy_file_has_no_findings() {
        let text = "//! What it owns.\n\n/// Why.\npub fn ensure_x() {}\n";
        assert_eq!(findings("agent/src/sandbox/plan.rs", text), Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_read_is_a_finding() {
        assert_eq!(findings("agent/src/x.rs", "//! X.\nfn x( {}\n"), ["1 parse"]);
    }
}
