//! How files begin and what they are called.

use super::Finding;
use super::source::Source;

/// Names that say nothing about what a module owns.
const EMPTY_NAMES: &[&str] = &["common", "helper", "helpers", "misc", "shared", "stuff", "util", "utils"];

pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_rust = source.path.ends_with(".rs");
    let mut names = source.path.trim_end_matches(".rs").split('/');
    if let Some(name) = names.find(|name| is_rust && EMPTY_NAMES.contains(name)) {
        findings.push(Finding::new(
            &source.path,
            1,
            "name",
            format!("\"{name}\" says nothing about what it owns"),
        ));
    }
    for (name, line) in source.scan.iter().flat_map(|scan| &scan.modules) {
        if EMPTY_NAMES.contains(&name.as_str()) {
            findings.push(Finding::new(&source.path, *line, "name", format!("\"{name}\" says nothing")));
        }
    }
    if is_rust && !source.text.starts_with("//! ") {
        let message = "a file opens with //! and what it owns, and what it must not do";
        findings.push(Finding::new(&source.path, 1, "module-doc", message));
    }
    if source.path.ends_with("Cargo.toml") && source.text.contains("[package]") {
        findings.extend(check_manifest(source));
    }
    findings
}

fn check_manifest(source: &Source) -> Vec<Finding> {
    let inherits =
        source.text.split("\n[lints]\n").nth(1).is_some_and(|rest| rest.starts_with("workspace = true"));
    if inherits {
        return Vec::new();
    }
    vec![Finding::new(&source.path, 1, "lints", "a package has [lints] workspace = true")]
}

#[cfg(test)]
mod tests {
    use super::super::tests::findings;

    #[test]
    fn empty_names_and_silent_files_are_found() {
        assert_eq!(findings("a/src/utils.rs", "//! X.\n"), ["1 name"]);
        assert_eq!(findings("a/src/helpers/x.rs", "//! X.\n"), ["1 name"]);
        assert_eq!(findings("a/src/x.rs", "//! X.\nmod misc {}\n"), ["2 name"]);
        assert_eq!(findings("a/src/x.rs", "fn x() {}\n"), ["1 module-doc"]);
        assert_eq!(findings("a/src/x.rs", ""), ["1 module-doc"]);
    }

    #[test]
    fn packages_take_the_workspaces_lints() {
        assert_eq!(findings("a/Cargo.toml", "[package]\nname = \"a\"\n"), ["1 lints"]);
        let good = "[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n";
        assert_eq!(findings("a/Cargo.toml", good), Vec::<String>::new());
    }
}
