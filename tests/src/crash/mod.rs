//! A trial by crashes: a whole stack under load, its processes killed at random, and the books compared afterwards.
//!
//! ```text
//! stack, VMs, secret ─▶ load ─▶ kill, recover, look; as often as asked ─▶ stop, settle, verify, destroy ─▶ check
//! ```
//! `schedule` says who is killed when; `load` is what tenants do; `ledger` is what they know; `books` is what the
//! product wrote down; `check` compares the two.

pub mod books;
pub mod check;
pub mod ledger;
mod load;
mod scene;
pub mod schedule;
mod verify;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::bench::report::Samples;
use crate::poll;
use crate::stack::{Allowed, Stack, Wish, leftover};
use crate::upstream::Upstream;
use books::Books;
use check::{Findings, Kind};
use ledger::Ledger;
use load::Load;
use scene::{Scene, Vm};
use schedule::{Kill, Target};

/// Two that work and one that is paused and resumed.
const VMS: usize = 3;
/// How long everything may take to be back after a kill.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(120);
const DAEMONS: usize = 4;

/// What to try.
#[derive(Debug, Clone)]
pub struct Trial {
    pub kills: usize,
    pub seed: u64,
    /// A directory with other builds of the binaries.
    pub other_binaries: Option<PathBuf>,
    /// Says each kill as it happens.
    pub is_loud: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub findings: Findings,
    pub ledger: Ledger,
    pub books: Books,
    pub kills: BTreeMap<Target, usize>,
    /// Seconds from a kill until a command ran again in every VM that was not killed.
    pub recovery: BTreeMap<Target, Samples>,
    pub took: Duration,
}

/// Runs the trial on a stack of its own, which is gone afterwards unless something was found.
///
/// `keep` is given the state directories (the agent's, the scheduler's) once everything is at rest.
pub fn run(
    trial: &Trial,
    keep: impl FnOnce(&std::path::Path, &std::path::Path) -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    let upstream = Upstream::start()?;
    let wish = Wish {
        upstream: Some(Allowed::from(&upstream)),
        other_binaries: trial.other_binaries.clone(),
        ..Wish::default()
    };
    let stack = Stack::for_test_with("crash", &wish)?;
    let scene = Arc::new(set_the_scene(&stack, &upstream)?);
    let load = Load::start(&scene)?;
    let mut run = Run { stack: &stack, scene: &scene, kills: BTreeMap::new(), recovery: BTreeMap::new() };
    for (number, kill) in schedule::draw(trial.seed, trial.kills).iter().enumerate() {
        let took = run.carry_out(kill).with_context(|| format!("kill {number} of seed {}", trial.seed))?;
        if trial.is_loud {
            println!("{:>4} {:<10} {}", number + 1, kill.target.name(), took);
        }
    }
    let (kills, recovery) = (run.kills, run.recovery);
    stack.wait_ready()?;
    load.stop();
    verify::settle_and_verify(&scene).with_context(|| scene.ledger().violations.join("; "))?;
    verify::destroy_all(&stack, &scene, &upstream)?;
    let (agent, scheduler) = (stack.agent_state(), stack.place().root.join("scheduler"));
    let books = Books::read(&agent, &scheduler)?;
    keep(&agent, &scheduler)?;
    let ledger = close_ledger(&scene, &upstream);
    let mut findings = check::check(&ledger, &books);
    leftovers(&stack, &mut findings);
    for line in errors_in_logs(&stack)? {
        findings.add(Kind::Wrong, line);
    }
    if findings.0.is_empty() {
        let verdict = stack.stop()?;
        verdict.left.iter().for_each(|line| findings.add(Kind::Leaked, line.clone()));
    } else {
        // Dropped, it keeps its folder and shows the ends of its logs.
        drop(stack);
    }
    Ok(Outcome { findings, ledger, books, kills, recovery, took: begun.elapsed() })
}

fn set_the_scene(stack: &Stack, upstream: &Upstream) -> anyhow::Result<Scene> {
    let mut ledger = Ledger::default();
    let mut vms = Vec::new();
    for index in 0..VMS {
        let name = format!("stays-{index}");
        let asked = Instant::now();
        let body = load::sandbox_body(&name);
        let made: Value = stack.tenant().call("POST", "/sandboxes?wait=60", Some(&body))?.data()?;
        let id = made["id"].as_str().context("a sandbox without id")?.to_owned();
        ledger.creates.insert(name, Some(id.clone()));
        ledger.sandboxes.entry(id.clone()).or_default().clock.asked(asked);
        vms.push(Vm::new(id));
    }
    let tenant = stack.tenant().clone();
    let scene =
        Scene::new(tenant, stack.agent()?, stack.place().preview_root(), upstream.url(""), vms, ledger);
    if !load::set_secret(&scene, 0) {
        bail!("the secret was not stored");
    }
    for vm in &scene.vms {
        poll::until("a VM to be taken up", RECOVERY_DEADLINE, || Ok(scene.take_up(vm)))?;
    }
    Ok(scene)
}

struct Run<'a> {
    stack: &'a Stack,
    scene: &'a Scene,
    kills: BTreeMap<Target, usize>,
    recovery: BTreeMap<Target, Samples>,
}

impl Run<'_> {
    /// One kill and, unless the next one is to strike into it, the recovery. Says how that went.
    fn carry_out(&mut self, kill: &Kill) -> anyhow::Result<String> {
        if !kill.hasty {
            self.stack.wait_ready()?;
            poll::until("a VM to be at work", RECOVERY_DEADLINE, || {
                Ok(self.scene.vms.iter().any(|vm| vm.vital().is_some()).then_some(()))
            })?;
        }
        // On purpose: the schedule says when, not what to wait for.
        std::thread::sleep(kill.after);
        let at = Instant::now();
        self.strike(kill)?;
        *self.kills.entry(kill.target).or_default() += 1;
        if let Some(why) = self.stack.find_ended() {
            bail!(why);
        }
        if kill.hasty {
            return Ok("and on".to_owned());
        }
        self.stack.wait_ready()?;
        self.look_at_vms()?;
        let took = at.elapsed().as_secs_f64();
        self.recovery.entry(kill.target).or_default().push(took);
        Ok(format!("{took:.1} s"))
    }

    fn strike(&self, kill: &Kill) -> anyhow::Result<()> {
        if kill.target == Target::Vmm {
            return self.strike_vm(kill.victim);
        }
        let process = self.stack.process(kill.target.name())?;
        // Killed a moment ago, it may be about to be started.
        poll::until("a process to kill", RECOVERY_DEADLINE, || Ok(process.pid().map(drop)))?;
        if kill.target == Target::Egress {
            self.scene.ledger().egress_kills.push(ledger::now_us());
        }
        process.kill(Signal::SIGKILL)
    }

    fn strike_vm(&self, victim: usize) -> anyhow::Result<()> {
        let vms = &self.scene.vms;
        poll::until("a running VM to kill", RECOVERY_DEADLINE, || {
            for turn in 0..vms.len() {
                if self.scene.kill_vmm(&vms[(victim + turn) % vms.len()])? {
                    return Ok(Some(()));
                }
            }
            Ok(None)
        })
    }

    /// Every VM that was not killed is the same, still runs what it ran, and takes commands.
    fn look_at_vms(&self) -> anyhow::Result<()> {
        for vm in &self.scene.vms {
            let Some(known) = vm.vital().clone() else { continue };
            let is_same = |vital: Option<scene::Vital>| vital.as_ref() == Some(&known);
            let seen = poll::until("a command in a VM", RECOVERY_DEADLINE, || {
                // Being paused by its own client meanwhile, it is not looked at.
                let found = self.scene.has_marker(vm, &known);
                Ok(if is_same(vm.vital().clone()) { found } else { Some(true) })
            })?;
            if !seen && is_same(vm.vital().clone()) {
                self.scene.violation(format!("what ran in {} is gone, and nobody killed its VMM", vm.id));
            }
            if !is_same(vm.vital().clone()) {
                continue;
            }
            let now = self.scene.cli.inspect(&vm.id)?["execution"]["vmm_pid"].as_i64();
            if now != Some(known.vmm_pid) && is_same(vm.vital().clone()) {
                self.scene.violation(format!("{} has another VMM, and nobody killed the first", vm.id));
            }
        }
        Ok(())
    }
}

/// The ledger with what the world outside saw.
fn close_ledger(scene: &Scene, upstream: &Upstream) -> Ledger {
    let mut ledger = scene.ledger().clone();
    for seen in upstream.seen() {
        let path = seen.line.split(' ').nth(1).unwrap_or_default().to_owned();
        ledger.calls.entry(path.clone()).or_default().seen += 1;
        let value = seen.header("authorization").unwrap_or_default().trim_start_matches("Bearer ").to_owned();
        if !ledger.values.contains(&value) {
            ledger.violations.push(format!("{path} arrived with {value:?}, which the secret never was"));
        }
    }
    ledger
}

/// With every sandbox destroyed there are the daemons and nothing else.
fn leftovers(stack: &Stack, findings: &mut Findings) {
    let left = leftover::find(stack.place(), stack.baseline());
    let (daemons, others): (Vec<_>, Vec<_>) = left.into_iter().partition(|line| line.starts_with("process "));
    if daemons.len() != DAEMONS {
        findings.add(Kind::Leaked, format!("{DAEMONS} processes should be left, there are {daemons:#?}"));
    }
    others.into_iter().for_each(|line| findings.add(Kind::Leaked, line));
    for line in files_of_sandboxes(&stack.agent_state()) {
        findings.add(Kind::Leaked, line);
    }
}

/// Disks, name maps and memory snapshots, of which none may be left; and unfinished files.
pub fn files_of_sandboxes(agent_state: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for directory in ["disks", "snapshots"] {
        let entries = std::fs::read_dir(agent_state.join(directory)).into_iter().flatten().flatten();
        found.extend(entries.map(|entry| format!("file {}", entry.path().display())));
    }
    found
}

/// Errors and panics; warnings are what a killed neighbour makes.
fn errors_in_logs(stack: &Stack) -> anyhow::Result<Vec<String>> {
    let complaints = crate::stack::log::complaints(&stack.place().root.join("logs"), &[" WARN "]);
    Ok(complaints.into_iter().map(|found| format!("{} logged: {}", found.process, found.line)).collect())
}
