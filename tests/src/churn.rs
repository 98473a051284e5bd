//! A trial by repetition: sandboxes come and go, and nothing of the host or its daemons grows.
//!
//! ```text
//! warm up ─▶ quiet, look ─▶ first half ─▶ quiet, look ─▶ second half ─▶ quiet, look ─▶ compare
//! ```
//! In each stretch a row of sandboxes is kept: the oldest is destroyed for each new one. Quiet is when all are
//! destroyed, so that two looks see the same but for what was left.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::json;

use crate::stack::place::Place;
use crate::stack::tenant::Tenant;
use crate::stack::{Stack, leftover};
use crate::{crash, poll};

/// A daemon may be larger by this part and this much at the end of the second half than at the end of the first.
const MEMORY_PART: f64 = 0.10;
const MEMORY_KIB: u64 = 4 * 1024;
/// Connections and files that come and go by themselves.
const DESCRIPTORS: u64 = 6;
const THREADS: u64 = 4;
/// Segments, journals, day files.
const FILES: u64 = 4;
const QUIET_DEADLINE: Duration = Duration::from_secs(120);
pub const DAEMONS: [&str; 4] = ["agent", "egress", "edge", "scheduler"];

/// What to try.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    pub time: Duration,
    /// How many there are at once.
    pub sandboxes: usize,
    /// How many of them are made at a time: booting keeps a core busy.
    pub at_once: usize,
}

/// One look at everything that could grow.
#[derive(Debug, Clone, Default)]
pub struct Look {
    pub daemons: BTreeMap<&'static str, Daemon>,
    /// What is on the host by kind, counted.
    pub host: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Daemon {
    pub rss_kib: u64,
    /// What is this process's alone, whoever runs the same program beside it.
    pub anonymous_kib: u64,
    pub descriptors: u64,
    pub threads: u64,
}

#[derive(Debug)]
pub struct Outcome {
    /// After warming up, after the first half, after the second.
    pub looks: [Look; 3],
    /// Sandboxes created and destroyed in the halves.
    pub turns: [usize; 2],
    pub growth: Vec<String>,
}

/// Runs the trial on a stack of its own.
pub fn run(trial: &Trial) -> anyhow::Result<Outcome> {
    ensure!(trial.sandboxes > 0 && trial.at_once > 0, "there is nothing to do");
    let stack = Stack::for_test("churn")?;
    let mut looks = Vec::new();
    let mut turns = Vec::new();
    for (part, least) in [(0.2, trial.sandboxes), (0.4, 1), (0.4, 1)] {
        turns.push(keep_turning(&stack, trial, trial.time.mul_f64(part), least)?);
        looks.push(look_when_quiet(&stack)?);
    }
    let looks: [Look; 3] = looks.try_into().map_err(|_| anyhow::anyhow!("three looks were taken"))?;
    let growth = compare(&looks[1], &looks[2]);
    stack.finish()?;
    Ok(Outcome { looks, turns: [turns[1], turns[2]], growth })
}

/// Creates and destroys for as long as `time` says, `least` times at least; leaves nothing. How often it did.
fn keep_turning(stack: &Stack, trial: &Trial, time: Duration, least: usize) -> anyhow::Result<usize> {
    let begun = Instant::now();
    let row: Mutex<VecDeque<String>> = Mutex::default();
    let made = Mutex::new(0usize);
    let work = || -> anyhow::Result<()> {
        loop {
            {
                let made = made.lock().unwrap_or_else(PoisonError::into_inner);
                if begun.elapsed() >= time && *made >= least {
                    return Ok(());
                }
            }
            let oldest = {
                let mut row = row.lock().unwrap_or_else(PoisonError::into_inner);
                if row.len() + trial.at_once > trial.sandboxes { row.pop_front() } else { None }
            };
            if let Some(id) = oldest {
                let answer = stack.tenant().call("DELETE", &format!("/sandboxes/{id}"), None)?;
                ensure!((200..300).contains(&answer.status), "DELETE of {id} answered {}", answer.status);
            }
            let id = create(stack.tenant())?;
            row.lock().unwrap_or_else(PoisonError::into_inner).push_back(id);
            *made.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..trial.at_once).map(|_| scope.spawn(work)).collect();
        let mut ended = workers.into_iter().map(|worker| worker.join());
        ended.try_for_each(|ended| ended.unwrap_or_else(|_| bail!("a worker panicked")))
    })?;
    stack.tenant().destroy_all()?;
    Ok(made.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// One that ran a command.
fn create(tenant: &Tenant) -> anyhow::Result<String> {
    let body = json!({ "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 1024 });
    let made = tenant.call("POST", "/sandboxes?wait=60", Some(&body))?.data()?;
    let id = made["id"].as_str().context("a sandbox without id")?.to_owned();
    ensure!(made["state"] == "running", "{id} did not start: {made}");
    let exec = json!({ "command": "echo here" });
    let answer = tenant.call("POST", &format!("/sandboxes/{id}/exec"), Some(&exec))?.data()?;
    ensure!(answer["stdout"] == "here\n", "{id}: {answer}");
    Ok(id)
}

fn look_when_quiet(stack: &Stack) -> anyhow::Result<Look> {
    let agent = stack.agent()?;
    poll::until("every sandbox to leave the host", QUIET_DEADLINE, || {
        let is_gone = agent.list()?.iter().all(|sandbox| sandbox["state"] == "destroyed");
        Ok(is_gone.then_some(()))
    })?;
    let mut daemons = BTreeMap::new();
    for name in DAEMONS {
        let pid = stack.process(name)?.pid().with_context(|| format!("{name} does not run"))?;
        daemons.insert(name, look_at(pid.as_raw()).with_context(|| format!("looking at {name}"))?);
    }
    Ok(Look { daemons, host: look_at_host(stack) })
}

fn look_at(pid: i32) -> anyhow::Result<Daemon> {
    let count = |kind: &str| {
        let entries = std::fs::read_dir(format!("/proc/{pid}/{kind}"))?;
        anyhow::Ok(entries.count() as u64)
    };
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().unwrap_or_default().parse::<u64>().context("reading smaps_rollup")
    };
    Ok(Daemon {
        rss_kib: field("Rss:")?,
        anonymous_kib: field("Anonymous:")?,
        descriptors: count("fd")?,
        threads: count("task")?,
    })
}

fn look_at_host(stack: &Stack) -> BTreeMap<&'static str, u64> {
    let Place { root, run_dir, .. } = stack.place();
    let mut host: BTreeMap<&'static str, u64> = BTreeMap::new();
    let kinds = [
        ("process", "processes"),
        ("network namespace", "network namespaces"),
        ("cgroup", "cgroups"),
        ("mount", "mounts"),
        ("run directory", "run directories"),
        ("file", "shared memory files"),
        ("network interface", "taps and interfaces"),
    ];
    let found = leftover::find(stack.place(), stack.baseline());
    for (prefix, kind) in kinds {
        let count = found.iter().filter(|line| line.starts_with(prefix)).count();
        host.insert(kind, count as u64);
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    host.insert("mounts of the machine", mounts.lines().count() as u64);
    host.insert("disks and snapshots", crash::files_of_sandboxes(&stack.agent_state()).len() as u64);
    host.insert("files of the run directory", count_files(run_dir));
    host.insert("files of the state directories", count_files(root));
    host
}

fn count_files(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let count = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => count_files(&entry.path()),
        _ => 1,
    };
    entries.map(count).sum()
}

/// What is more at the second look than chance explains. Pure.
pub fn compare(first: &Look, second: &Look) -> Vec<String> {
    let mut growth = Vec::new();
    let mut bound = |what: String, before: u64, after: u64, most: u64| {
        if after > most {
            growth.push(format!("{what}: {before} and then {after}, {most} at most"));
        }
    };
    let with_part = |kib: u64| (kib as f64 * (1.0 + MEMORY_PART)) as u64 + MEMORY_KIB;
    for (name, after) in &second.daemons {
        let before = first.daemons.get(name).copied().unwrap_or_default();
        let name = |what: &str| format!("{what} of {name}");
        bound(name("RSS in KiB"), before.rss_kib, after.rss_kib, with_part(before.rss_kib));
        bound(
            name("anonymous memory in KiB"),
            before.anonymous_kib,
            after.anonymous_kib,
            with_part(before.anonymous_kib),
        );
        bound(name("descriptors"), before.descriptors, after.descriptors, before.descriptors + DESCRIPTORS);
        bound(name("threads"), before.threads, after.threads, before.threads + THREADS);
    }
    for (kind, after) in &second.host {
        let before = first.host.get(kind).copied().unwrap_or_default();
        let slack = match *kind {
            "files of the run directory" | "files of the state directories" => FILES,
            // Other programs mount and unmount as well.
            "mounts of the machine" => 3,
            _ => 0,
        };
        bound((*kind).to_owned(), before, *after, before + slack);
    }
    growth
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look() -> Look {
        let daemon = Daemon { rss_kib: 40_000, anonymous_kib: 30_000, descriptors: 40, threads: 10 };
        let host = [("cgroups", 0), ("files of the run directory", 12), ("mounts of the machine", 30)];
        Look { daemons: DAEMONS.map(|name| (name, daemon)).into(), host: host.into() }
    }

    #[test]
    fn chance_is_no_growth() {
        let mut later = look();
        for daemon in later.daemons.values_mut() {
            *daemon = Daemon { rss_kib: 43_000, anonymous_kib: 32_000, descriptors: 44, threads: 12 };
        }
        later.host.insert("files of the run directory", 14);
        assert_eq!(compare(&look(), &later), Vec::<String>::new());
        assert_eq!(compare(&later, &look()), Vec::<String>::new());
    }

    #[test]
    fn every_growth_is_named() {
        type Change = fn(&mut Look);
        let changes: [(&str, Change); 7] = [
            ("RSS in KiB of agent", |look| look.daemons.get_mut("agent").unwrap().rss_kib = 60_000),
            ("anonymous memory in KiB of edge", |look| {
                look.daemons.get_mut("edge").unwrap().anonymous_kib = 60_000
            }),
            ("descriptors of egress", |look| look.daemons.get_mut("egress").unwrap().descriptors = 60),
            ("threads of scheduler", |look| look.daemons.get_mut("scheduler").unwrap().threads = 20),
            ("cgroups", |look| {
                look.host.insert("cgroups", 1);
            }),
            ("files of the run directory", |look| {
                look.host.insert("files of the run directory", 40);
            }),
            ("mounts of the machine", |look| {
                look.host.insert("mounts of the machine", 60);
            }),
        ];
        for (what, change) in changes {
            let mut later = look();
            change(&mut later);
            let growth = compare(&look(), &later);
            assert!(growth.len() == 1 && growth[0].starts_with(what), "{what}: {growth:?}");
        }
    }

    #[test]
    fn the_own_process_can_be_looked_at() {
        let own = look_at(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(
            own.rss_kib > 0 && own.anonymous_kib > 0 && own.descriptors > 2 && own.threads > 0,
            "{own:?}"
        );
    }
}
