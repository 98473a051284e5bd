//! Licences and bans over the dependency tree, by the settings of `deny.toml` (cargo-deny reads the same file).
//!
//! A licence expression passes if it can be satisfied with allowed licences alone. An exception names its crate,
//! and the comment line above it says why.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::metadata::Graph;

const SETTINGS: &str = "deny.toml";

#[derive(Debug, Deserialize)]
struct Settings {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: Vec<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

#[derive(Debug, Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    #[serde(default)]
    deny: Vec<Ban>,
}

#[derive(Debug, Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let path = root.join(SETTINGS);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {SETTINGS}"))?;
    let findings = find(&Graph::load(root)?, &text)?;
    for finding in &findings {
        eprintln!("{finding}");
    }
    if findings.is_empty() { Ok(()) } else { bail!("{} dependencies are not allowed", findings.len()) }
}

fn find(graph: &Graph, settings_text: &str) -> anyhow::Result<Vec<String>> {
    let settings: Settings =
        toml::from_str(settings_text).with_context(|| format!("{SETTINGS} is not readable"))?;
    let mut findings = unexplained(settings_text);
    let exceptions: BTreeMap<_, _> =
        settings.licenses.exceptions.iter().map(|exception| (exception.name.as_str(), exception)).collect();
    let mut unused: Vec<&str> = exceptions.keys().copied().collect();
    for package in graph.packages.values() {
        let label = format!("{} {}", package.name, package.version);
        if let Some(ban) = settings.bans.deny.iter().find(|ban| ban.name == package.name) {
            findings.push(format!("{label} is banned: {}", ban.reason));
        }
        let Some(expression) = &package.license else {
            findings.push(format!("{label} names no licence"));
            continue;
        };
        let is_allowed = |name: &str| settings.licenses.allow.iter().any(|allowed| allowed == name);
        if satisfied(expression, &is_allowed)? {
            continue;
        }
        let exception = exceptions.get(package.name.as_str());
        let is_excepted = |name: &str| {
            is_allowed(name)
                || exception.is_some_and(|exception| exception.allow.iter().any(|allowed| allowed == name))
        };
        unused.retain(|name| *name != package.name);
        if !satisfied(expression, &is_excepted)? {
            findings.push(format!("{label} is under {expression}, which {SETTINGS} does not allow"));
        }
    }
    findings.extend(unused.iter().map(|name| format!("{SETTINGS}: the exception for {name} is not needed")));
    Ok(findings)
}

/// Exceptions without a comment line above them.
fn unexplained(settings_text: &str) -> Vec<String> {
    let lines: Vec<&str> = settings_text.lines().map(str::trim).collect();
    let is_exception = |line: &str| line.starts_with("{ crate = ") && line.contains("allow = ");
    lines
        .iter()
        .enumerate()
        .filter(|(index, line)| is_exception(line) && (*index == 0 || !lines[index - 1].starts_with('#')))
        .map(|(index, line)| {
            format!("{SETTINGS}:{}: {line} has no comment above it that says why", index + 1)
        })
        .collect()
}

/// Whether an SPDX expression can be satisfied. `/` is an old way to write `OR`.
fn satisfied(expression: &str, allowed: &dyn Fn(&str) -> bool) -> anyhow::Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, at: 0, allowed };
    let result = parser.any()?;
    if parser.at < words.len() {
        bail!("licence expression \"{expression}\" goes on after its end");
    }
    Ok(result)
}

struct Parser<'a> {
    words: &'a [&'a str],
    at: usize,
    allowed: &'a dyn Fn(&str) -> bool,
}

impl Parser<'_> {
    fn takes(&mut self, word: &str) -> bool {
        let is_next = self.words.get(self.at) == Some(&word);
        self.at += usize::from(is_next);
        is_next
    }

    fn any(&mut self) -> anyhow::Result<bool> {
        let mut result = self.all()?;
        while self.takes("OR") {
            result |= self.all()?;
        }
        Ok(result)
    }

    fn all(&mut self) -> anyhow::Result<bool> {
        let mut result = self.one()?;
        while self.takes("AND") {
            result &= self.one()?;
        }
        Ok(result)
    }

    fn one(&mut self) -> anyhow::Result<bool> {
        if self.takes("(") {
            let result = self.any()?;
            if !self.takes(")") {
                bail!("a licence expression lacks a closing parenthesis");
            }
            return Ok(result);
        }
        let name = *self.words.get(self.at).context("a licence expression ends too early")?;
        self.at += 1;
        if self.takes("WITH") {
            let exception = *self.words.get(self.at).context("a licence expression ends after WITH")?;
            self.at += 1;
            return Ok((self.allowed)(&format!("{name} WITH {exception}")) || (self.allowed)(name));
        }
        Ok((self.allowed)(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::tests::graph;

    const DENY: &str = r#"
        [licenses]
        allow = ["MIT", "Apache-2.0"]
        exceptions = [
            # Root certificates: data, not code.
            { crate = "webpki-roots", allow = ["CDLA-Permissive-2.0"] },
        ]
        [bans]
        deny = [{ crate = "rustables", reason = "copyleft" }]
    "#;

    fn findings(packages: &[(&str, Option<&str>)], settings: &str) -> Vec<String> {
        let names: Vec<_> = packages.iter().map(|(name, _)| *name).collect();
        let mut graph = graph(&format!("roost -> {}", names.join(" ")));
        graph.packages.remove("roost");
        for (name, licence) in packages {
            graph.packages.get_mut(*name).unwrap().license = licence.map(str::to_owned);
        }
        find(&graph, settings).unwrap()
    }

    #[test]
    fn permissive_passes_and_the_rest_does_not() {
        let roots = ("webpki-roots", Some("CDLA-Permissive-2.0"));
        assert_eq!(findings(&[("a", Some("MIT OR GPL-3.0")), roots], DENY), Vec::<String>::new());
        for (name, licence, expected) in [
            ("b", Some("GPL-3.0-only"), "b 1.0.0 is under GPL-3.0-only"),
            ("c", None, "c 1.0.0 names no licence"),
            ("d", Some("MIT AND CDLA-Permissive-2.0"), "d 1.0.0 is under"),
            ("rustables", Some("MIT"), "rustables 1.0.0 is banned: copyleft"),
        ] {
            let found = findings(&[(name, licence), roots], DENY);
            assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
        }
    }

    #[test]
    fn exceptions_are_needed_and_explained() {
        let found = findings(&[("a", Some("MIT"))], DENY);
        assert_eq!(found, ["deny.toml: the exception for webpki-roots is not needed"]);
        let silent = DENY.replace("# Root certificates: data, not code.", "");
        let found = findings(&[("webpki-roots", Some("CDLA-Permissive-2.0"))], &silent);
        assert!(found.len() == 1 && found[0].contains("no comment above it"), "{found:?}");
    }

    #[test]
    fn expressions() {
        let allowed = |name: &str| matches!(name, "MIT" | "ISC" | "Apache-2.0 WITH LLVM-exception");
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-2.0 OR MIT", true),
            ("MIT/Apache-2.0", true),
            ("ISC AND (MIT OR GPL-2.0)", true),
            ("ISC AND GPL-2.0", false),
            ("GPL-2.0 OR ISC AND MIT", true),
            ("Apache-2.0 WITH LLVM-exception OR X", true),
            ("Apache-2.0", false),
        ] {
            assert_eq!(satisfied(expression, &allowed).unwrap(), expected, "{expression}");
        }
        for broken in ["", "MIT OR", "(MIT", "MIT MIT", "MIT WITH"] {
            assert!(satisfied(broken, &allowed).is_err(), "{broken}");
        }
    }
}
