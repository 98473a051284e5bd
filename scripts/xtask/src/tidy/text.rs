//! What no file holds: reminders instead of work, and paths and hosts of the machine it was written on.

use super::Finding;
use super::source::Source;

/// Words as whole words, in capitals.
const REMINDERS: &[&str] = &["TODO", "FIXME", "XXX", "HACK"];
const REMINDER_MACROS: &[&str] = &["todo!", "unimplemented!"];
const MACHINE_PATHS: &[&str] =
    &["/work/main", "/work/shared", "/root/.cargo", "/root/.rustup", "/Users/", "/tmp/brief"];

pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    // The rules name what they forbid, and a lock file holds what others wrote.
    if source.path.starts_with("scripts/xtask/src/") || source.path.ends_with(".lock") {
        return findings;
    }
    let is_rust = source.path.ends_with(".rs");
    for (index, line) in source.text.lines().enumerate() {
        let mut words = line.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
        if let Some(word) = words.find(|word| REMINDERS.contains(word)) {
            findings.push(Finding::new(
                &source.path,
                index + 1,
                "reminder",
                format!("\"{word}\": do it or drop it"),
            ));
        }
        if let Some(call) = REMINDER_MACROS.iter().find(|call| is_rust && line.contains(**call)) {
            findings.push(Finding::new(
                &source.path,
                index + 1,
                "reminder",
                format!("\"{call}\" is no code"),
            ));
        }
        if let Some(path) = MACHINE_PATHS.iter().find(|path| line.contains(**path)) {
            let message = format!("\"{path}\" is a path of one machine");
            findings.push(Finding::new(&source.path, index + 1, "machine-path", message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::findings;

    #[test]
    fn reminders_and_machine_paths_are_found() {
        assert_eq!(findings("a/src/x.rs", "//! X.\n// TODO: more\n"), ["2 reminder"]);
        assert_eq!(findings("a/src/x.rs", "//! X.\nfn x() { todo!() }\n"), ["2 reminder"]);
        assert_eq!(findings("a/x.sh", "# FIXME\n"), ["1 reminder"]);
        assert_eq!(findings("docs/x.md", "see /work/main/x\n"), ["1 machine-path"]);
        let fine = "//! X.\n// mktemp -d x.XXXXXX, TODOS\n";
        assert_eq!(findings("a/src/x.rs", fine), Vec::<String>::new());
    }
}
