//! The table of defences: what each one says, where its one decision is, which tests notice that it is gone.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

const TEXT: &str = include_str!("../../sabotage.toml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    #[serde(rename = "defence")]
    pub(super) rows: Vec<Row>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Row {
    /// As the build knows it: `roost_domain::sabotage::Defence`.
    pub(super) name: String,
    pub(super) says: String,
    /// The file in which the decision is made.
    pub(super) place: String,
    /// Each of them fails with the defence switched off, and passes otherwise.
    pub(super) tests: Vec<Test>,
    /// Part of the quick run, with its first test.
    #[serde(default)]
    pub(super) quick: bool,
}

/// One test, written `binary test`, as nextest prints it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Test {
    pub(super) binary: String,
    pub(super) name: String,
}

impl TryFrom<String> for Test {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once(' ') {
            Some((binary, name)) if !binary.is_empty() && !name.is_empty() && !name.contains(' ') => {
                Ok(Self { binary: binary.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("\"{text}\" is not a binary and a test")),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.binary, self.name)
    }
}

impl Test {
    /// For nextest: this test and no other whose name contains its name.
    pub(super) fn filter(&self) -> String {
        format!("(binary_id(={}) & test(={}))", self.binary, self.name)
    }
}

impl Table {
    pub(super) fn read() -> anyhow::Result<Self> {
        Self::parse(TEXT).context("sabotage.toml")
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let table: Self = toml::from_str(text)?;
        let mut names = BTreeSet::new();
        for row in &table.rows {
            ensure!(names.insert(&row.name), "{} stands in it twice", row.name);
            ensure!(!row.tests.is_empty(), "no test notices {}", row.name);
            ensure!(!row.says.is_empty() && !row.place.is_empty(), "{} is not described", row.name);
        }
        Ok(table)
    }

    /// The rows that are asked for; all without a wish.
    pub(super) fn select(&self, only: &[String], quick: bool) -> anyhow::Result<Vec<Row>> {
        if let Some(unknown) = only.iter().find(|name| !self.rows.iter().any(|row| row.name == **name)) {
            bail!("there is no defence {unknown}; --list shows them");
        }
        let is_wanted = |row: &&Row| (only.is_empty() || only.contains(&row.name)) && (!quick || row.quick);
        let rows = self.rows.iter().filter(is_wanted).cloned();
        Ok(rows.map(|row| if quick { Row { tests: row.tests[..1].to_vec(), ..row } } else { row }).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const SAMPLE: &str = r#"
        [[defence]]
        name = "one"
        says = "x"
        place = "a.rs"
        tests = ["p::t a::b", "p c"]
        quick = true
        [[defence]]
        name = "two"
        says = "y"
        place = "b.rs"
        tests = ["p d"]
    "#;

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
    }

    fn read(path: &str) -> String {
        std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    #[test]
    fn rows_are_read_and_chosen() {
        let table = Table::parse(SAMPLE).unwrap();
        let names = |only: &[&str], quick| {
            let only: Vec<String> = only.iter().map(ToString::to_string).collect();
            let rows = table.select(&only, quick)?;
            anyhow::Ok(rows.iter().map(|row| format!("{} {}", row.name, row.tests.len())).collect::<Vec<_>>())
        };
        assert_eq!(names(&[], false).unwrap(), ["one 2", "two 1"]);
        assert_eq!(names(&["two"], false).unwrap(), ["two 1"]);
        assert_eq!(names(&[], true).unwrap(), ["one 1"]);
        assert_eq!(
            names(&["three"], false).unwrap_err().to_string(),
            "there is no defence three; --list shows them"
        );
        assert_eq!(table.rows[0].tests[0].filter(), "(binary_id(=p::t) & test(=a::b))");
    }

    #[test]
    fn a_table_with_holes_is_refused() {
        for (good, bad) in [
            ("name = \"two\"", "name = \"one\""),
            ("tests = [\"p d\"]", "tests = []"),
            ("tests = [\"p d\"]", "tests = [\"p\"]"),
            ("tests = [\"p d\"]", "tests = [\"p d e\"]"),
            ("says = \"y\"", "says = \"\""),
            ("says = \"y\"", "say = \"y\""),
        ] {
            assert!(SAMPLE.contains(good));
            Table::parse(&SAMPLE.replace(good, bad)).expect_err(bad);
        }
    }

    /// `host-binding` as `HostBinding`.
    fn variant(name: &str) -> String {
        let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
        name.split('-').map(capital).collect()
    }

    #[test]
    fn every_defence_of_the_build_has_its_row() {
        let source = read("crates/domain/src/sabotage.rs");
        let known: BTreeSet<String> = source
            .lines()
            .filter_map(|line| line.strip_prefix("    ")?.strip_suffix("\",")?.split_once(" = \""))
            .map(|(variant_name, name)| {
                assert_eq!(variant(name), variant_name);
                name.to_owned()
            })
            .collect();
        let listed = Table::read().unwrap().rows.into_iter().map(|row| row.name).collect();
        assert!(known.len() >= 18);
        assert_eq!(known, listed);
    }

    #[test]
    fn every_row_names_the_file_that_asks_about_it() {
        for row in Table::read().unwrap().rows {
            let decision = format!("Defence::{}.is_off()", variant(&row.name));
            let places = read(&row.place).matches(&decision).count();
            assert!(places >= 1, "{} does not ask {decision}", row.place);
        }
    }

    /// The text of every file of Rust below a directory.
    fn sources(directory: &Path, into: &mut String) {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            let is_made = path.file_name().is_some_and(|name| name == "target" || name == ".git");
            if path.is_dir() && !is_made {
                sources(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
    }

    #[test]
    fn every_test_that_is_to_notice_exists() {
        let mut text = String::new();
        sources(root(), &mut text);
        for row in Table::read().unwrap().rows {
            for test in &row.tests {
                let name = test.name.rsplit("::").next().unwrap();
                assert!(
                    text.contains(&format!("fn {name}(")),
                    "{}: there is no test {}",
                    row.name,
                    test.name
                );
            }
        }
    }

    #[test]
    fn the_quick_part_is_a_part() {
        let table = Table::read().unwrap();
        let quick = table.select(&[], true).unwrap().len();
        assert!(quick >= 10 && quick < table.rows.len(), "{quick}");
    }
}
