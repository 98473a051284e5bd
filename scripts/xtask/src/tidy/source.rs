//! The files the rules look at: what git tracks or would track.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::Finding;
use super::scan::Scan;

/// One text file.
#[derive(Debug)]
pub(crate) struct Source {
    /// Relative to the workspace, with slashes.
    pub(crate) path: String,
    pub(crate) text: String,
    /// Rust files only.
    pub(crate) scan: Option<Scan>,
    /// The whole file is test code.
    pub(crate) is_test: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) sources: Vec<Source>,
    pub(crate) unreadable: Vec<Finding>,
    /// Function lengths that are let through for now.
    pub(crate) ratchet: String,
}

/// Where [`Tree::ratchet`] is kept.
pub(crate) const RATCHET: &str = "scripts/xtask/ratchet.txt";

impl Tree {
    pub(crate) fn read(root: &Path) -> anyhow::Result<Self> {
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .context("cannot start git")?;
        if !listed.status.success() {
            bail!("git ls-files failed: {}", String::from_utf8_lossy(&listed.stderr).trim());
        }
        let names: BTreeSet<_> =
            listed.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
        let mut files = Vec::new();
        for name in names {
            let name = std::str::from_utf8(name).context("a file name is not UTF-8")?;
            // A file that was just removed, or is no text, has nothing to say.
            if let Ok(text) = std::fs::read_to_string(root.join(name)) {
                files.push((name.to_owned(), text));
            }
        }
        let borrowed: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        Ok(Self::of(&borrowed))
    }

    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let mut tree = Self::default();
        for (path, text) in files {
            if *path == RATCHET {
                tree.ratchet = (*text).to_owned();
            }
            let scan = path.ends_with(".rs").then(|| Scan::of(text)).transpose().unwrap_or_else(|error| {
                tree.unreadable.push(Finding::new(path, 1, "parse", error.to_string()));
                None
            });
            let (path, text) = ((*path).to_owned(), (*text).to_owned());
            let is_test = is_test_path(&path);
            tree.sources.push(Source { path, text, scan, is_test });
        }
        tree.mark_test_modules();
        tree
    }

    /// `#[cfg(test)] mod fault;` makes all of `fault.rs` and `fault/` test code.
    fn mark_test_modules(&mut self) {
        let mut prefixes = Vec::new();
        for source in &self.sources {
            let Some(scan) = &source.scan else { continue };
            for module in &scan.test_modules {
                prefixes.push(format!("{}/{module}", module_directory(&source.path)));
            }
        }
        for source in &mut self.sources {
            let is_below = |prefix: &String| {
                source.path.strip_prefix(prefix).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
            };
            source.is_test |= prefixes.iter().any(is_below);
        }
    }
}

/// Where the modules declared in a file are looked for.
fn module_directory(path: &str) -> String {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name {
        "mod.rs" | "lib.rs" | "main.rs" => directory.to_owned(),
        _ => path.trim_end_matches(".rs").to_owned(),
    }
}

fn is_test_path(path: &str) -> bool {
    let mut parts: Vec<&str> = path.split('/').collect();
    let name = parts.pop().unwrap_or_default();
    parts.contains(&"tests") || name == "tests.rs" || name.ends_with("_test.py") || name.starts_with("test_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_code_is_told_apart() {
        let tree = Tree::of(&[
            ("agent/src/sandbox/mod.rs", "//! X.\n#[cfg(test)]\nmod fault;\nmod plan;\n"),
            ("agent/src/sandbox/fault.rs", "//! X.\n"),
            ("agent/src/sandbox/plan.rs", "//! X.\n#[cfg(test)]\nmod table;\n"),
            ("agent/src/sandbox/plan/table.rs", "//! X.\n"),
            ("agent/tests/host/vm.rs", "//! X.\n"),
            ("crates/domain/src/address/tests.rs", "//! X.\n"),
        ]);
        let tests: Vec<_> = tree.sources.iter().map(|source| source.is_test).collect();
        assert_eq!(tests, [false, true, false, true, true, true]);
    }
}
