//! What the processes logged: the lines that must not be there, and the tail to show when something failed.

use std::path::{Path, PathBuf};

/// Lines shown of a log when something failed.
const TAIL_LINES: usize = 15;

/// A warning or an error in a process's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    pub process: String,
    pub line: String,
}

/// Every warn or error line, panic and failed start of the logs in `directory` that no entry of `expected` is part of.
pub fn complaints(directory: &Path, expected: &[&str]) -> Vec<Complaint> {
    let mut found = Vec::new();
    for (process, text) in logs(directory) {
        let bad = text.lines().filter(|line| is_complaint(line));
        let unlisted = bad.filter(|line| !expected.iter().any(|text| line.contains(text)));
        found.extend(unlisted.map(|line| Complaint { process: process.clone(), line: line.to_owned() }));
    }
    found
}

fn is_complaint(line: &str) -> bool {
    let level = line.split_whitespace().nth(1);
    matches!(level, Some("WARN" | "ERROR")) || line.starts_with("Error:") || line.contains("' panicked at ")
}

/// The end of every log, headed by its file's name.
pub fn tails(directory: &Path) -> String {
    let mut text = String::new();
    for path in files(directory) {
        let content = std::fs::read(&path).unwrap_or_default();
        let content = String::from_utf8_lossy(&content);
        let lines: Vec<&str> = content.lines().collect();
        text.push_str(&format!("── {}\n", path.display()));
        for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
            text.push_str(&format!("   {line}\n"));
        }
    }
    text
}

fn logs(directory: &Path) -> Vec<(String, String)> {
    let read = |path: PathBuf| {
        let name = path.file_stem()?.to_string_lossy().into_owned();
        let content = std::fs::read(&path).ok()?;
        Some((name, String::from_utf8_lossy(&content).into_owned()))
    };
    files(directory).into_iter().filter_map(read).collect()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_errors_and_panics_are_complaints_unless_expected() {
        for line in [
            "2026-11-20T20:00:00.000001Z  WARN roost_agent::plane: edge went away",
            "2026-11-20T20:00:00.000001Z ERROR roost_agent: no",
            "Error: settings file /x: no such file",
            "thread 'main' panicked at agent/src/main.rs:1:1:",
        ] {
            assert!(is_complaint(line), "{line}");
        }
        assert!(!is_complaint("2026-11-20T20:00:00.000001Z  INFO roost_agent: a WARN in the text"));

        let directory = std::env::temp_dir().join(format!("roost-log-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("agent.log"), "t WARN x: one\nt WARN x: two\nt INFO x: three\n")
            .unwrap();
        let found = complaints(&directory, &["one"]);
        let tails = tails(&directory);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].process.as_str(), found[0].line.as_str()), ("agent", "t WARN x: two"));
        assert!(tails.ends_with("t INFO x: three\n"), "{tails}");
    }
}
