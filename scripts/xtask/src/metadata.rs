//! The dependency graph as cargo resolves it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Output {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    resolve: Resolve,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

/// `kind` is null for what is linked in, `dev` and `build` for the rest.
#[derive(Debug, Deserialize)]
struct EdgeKind {
    kind: Option<String>,
}

/// Which package is built from which.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    pub(crate) packages: BTreeMap<String, Package>,
    pub(crate) members: BTreeSet<String>,
    /// What ends up in a package's artefact, by id.
    normal: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    pub(crate) fn load(root: &Path) -> anyhow::Result<Self> {
        // Only what is built here: a crate for another system is neither shipped nor tested.
        let output = Command::new(env!("CARGO"))
            .args([
                "metadata",
                "--format-version=1",
                "--locked",
                "--filter-platform=x86_64-unknown-linux-gnu",
            ])
            .current_dir(root)
            .output()
            .context("cannot start cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Self::parse(&output.stdout)
    }

    pub(crate) fn parse(json: &[u8]) -> anyhow::Result<Self> {
        let output: Output = serde_json::from_slice(json).context("cargo metadata is not readable")?;
        let normal = output.resolve.nodes.into_iter().map(|node| {
            let linked =
                node.deps.into_iter().filter(|edge| edge.dep_kinds.iter().any(|kind| kind.kind.is_none()));
            (node.id, linked.map(|edge| edge.pkg).collect())
        });
        Ok(Self {
            normal: normal.collect(),
            packages: output.packages.into_iter().map(|package| (package.id.clone(), package)).collect(),
            members: output.workspace_members,
        })
    }

    fn id_of_member(&self, name: &str) -> Option<&String> {
        self.members.iter().find(|id| self.packages.get(*id).is_some_and(|package| package.name == name))
    }

    fn names(&self, ids: &BTreeSet<String>) -> BTreeSet<String> {
        ids.iter().filter_map(|id| self.packages.get(id)).map(|package| package.name.clone()).collect()
    }

    /// Names of the packages a member names itself, linked in.
    pub(crate) fn direct(&self, member: &str) -> BTreeSet<String> {
        let ids = self.id_of_member(member).and_then(|id| self.normal.get(id)).cloned().unwrap_or_default();
        self.names(&ids)
    }

    /// Names of all packages linked into a member.
    pub(crate) fn reachable(&self, member: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut open: Vec<&String> = self.id_of_member(member).into_iter().collect();
        while let Some(id) = open.pop() {
            for next in self.normal.get(id).into_iter().flatten() {
                if found.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        self.names(&found)
    }

    pub(crate) fn member_names(&self) -> BTreeSet<String> {
        self.names(&self.members)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A graph from lines like `roost-agent -> nix tokio`; names left of an arrow are members.
    pub(crate) fn graph(text: &str) -> Graph {
        let mut graph = Graph::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (from, to) = line.split_once(" ->").unwrap();
            graph.members.insert(from.to_owned());
            let to: BTreeSet<String> = to.split_whitespace().map(str::to_owned).collect();
            for name in to.iter().chain([&from.to_owned()]) {
                let (id, name, version) = (name.clone(), name.clone(), "1.0.0".to_owned());
                graph.packages.insert(id.clone(), Package { id, name, version, license: None });
            }
            graph.normal.insert(from.to_owned(), to);
        }
        graph
    }

    #[test]
    fn what_is_linked_is_found_and_what_only_tests_is_not() {
        let json = r#"{
            "packages": [
                {"id": "a 1", "name": "a", "version": "1.0.0", "license": "MIT"},
                {"id": "b 1", "name": "b", "version": "1.0.0", "license": null},
                {"id": "c 1", "name": "c", "version": "1.0.0", "license": "MIT"},
                {"id": "d 1", "name": "d", "version": "1.0.0", "license": "MIT"}
            ],
            "workspace_members": ["a 1"],
            "resolve": {"nodes": [
                {"id": "a 1", "deps": [
                    {"pkg": "b 1", "dep_kinds": [{"kind": null}]},
                    {"pkg": "d 1", "dep_kinds": [{"kind": "dev"}]}
                ]},
                {"id": "b 1", "deps": [{"pkg": "c 1", "dep_kinds": [{"kind": null}, {"kind": "build"}]}]},
                {"id": "c 1", "deps": []},
                {"id": "d 1", "deps": []}
            ]}
        }"#;
        let graph = Graph::parse(json.as_bytes()).unwrap();
        let names = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(names(graph.direct("a")), "b");
        assert_eq!(names(graph.reachable("a")), "b c");
        assert_eq!(names(graph.member_names()), "a");
    }
}
