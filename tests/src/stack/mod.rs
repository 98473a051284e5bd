//! A whole Roost on this machine, from the real binaries: starts it, supervises it, stops it, proves nothing is left.
//!
//! ```text
//! start: claim folder → settings → scheduler → join token → egress, edge, agent → all ready → tenant, key
//! finish: destroy sandboxes → stop in reverse → leftovers and log complaints are errors → folder removed
//! drop without finish (a failed test): stop → sweep → folder kept
//! ```

pub mod agent;
pub mod group;
mod http;
pub mod leftover;
pub mod log;
mod mount;
mod owner;
pub mod place;
mod ports;
mod settings;
pub mod supervise;
pub mod tenant;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;

use crate::{poll, program};
use agent::AgentCli;
use group::Group;
use leftover::Baseline;
use place::Place;
pub use ports::Ports;
pub use settings::{Allowed, PREVIEW_DOMAIN, Wish};
use supervise::{Program, Supervised};
use tenant::Tenant;

/// A trial boot of the guest kernel, to choose a VMM, is part of the agent's first start.
const READY_DEADLINE: Duration = Duration::from_secs(60);

const DESTROY_DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Stack {
    place: Place,
    ports: Ports,
    tenant: Tenant,
    /// In the order they were started.
    processes: Vec<Supervised>,
    baseline: Baseline,
    expected: Vec<&'static str>,
    other_binaries: Option<PathBuf>,
    agent_cgroup: Option<Group>,
    finished: bool,
    _owner: owner::Owner,
}

/// How a stack that was stopped in order ended.
#[derive(Debug)]
pub struct Verdict {
    /// What the product left on the machine.
    pub left: Vec<String>,
    /// Warnings and errors in the logs that nobody expected.
    pub complaints: Vec<String>,
}

impl Stack {
    /// A stack for one test, in the clone this package was built from.
    pub fn for_test(name: &str) -> anyhow::Result<Self> {
        Self::for_test_with(name, &Wish::default())
    }

    pub fn for_test_with(name: &str, wish: &Wish) -> anyhow::Result<Self> {
        let clone = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("this package is in no clone")?;
        let place = Place::of_test(clone, name)?;
        let stacks = place.root.parent().context("the stack's folder has no parent")?.to_owned();
        owner::sweep_abandoned(&stacks, &place)?;
        Self::start(place, wish)
    }

    pub fn start(place: Place, wish: &Wish) -> anyhow::Result<Self> {
        ensure!(
            nix::unistd::getuid().is_root(),
            "Roost makes network namespaces, taps and cgroups: run this as root (sudo)"
        );
        crate::image::find(&place.image_dir, crate::image::TEMPLATE)?;
        let owner = owner::claim(&place)?;
        for stale in ["agent", "scheduler", "logs"] {
            let _ = std::fs::remove_dir_all(place.root.join(stale));
        }
        std::fs::create_dir_all(&place.run_dir)
            .with_context(|| format!("cannot make {}", place.run_dir.display()))?;
        let ports = Ports::choose()?;
        settings::write(&place, &ports, wish).context("writing the settings files")?;
        let mut stack = Self {
            baseline: Baseline::take(),
            tenant: Tenant { origin: format!("http://127.0.0.1:{}", ports.api), key: String::new() },
            place,
            ports,
            processes: Vec::new(),
            expected: Vec::new(),
            other_binaries: wish.other_binaries.clone(),
            agent_cgroup: None,
            finished: false,
            _owner: owner,
        };
        if wish.agent_cgroup {
            stack.agent_cgroup = Some(Group::make(&format!("{}-agent", stack.place.instance))?);
        }
        if let Some(mib) = wish.agent_state_mib {
            mount::tmpfs(&stack.agent_state(), mib)?;
        }
        stack.start_processes()?;
        Ok(stack)
    }

    /// Where the agent keeps its database, disks and memory snapshots.
    pub fn agent_state(&self) -> PathBuf {
        self.place.root.join("agent")
    }

    /// The group the agent was started in, if that was wished for.
    pub fn agent_cgroup(&self) -> anyhow::Result<&Group> {
        self.agent_cgroup.as_ref().context("the agent has no group of its own")
    }

    fn start_processes(&mut self) -> anyhow::Result<()> {
        self.launch("scheduler", "roost-scheduler", &["serve"])?;
        self.wait_ready()?;
        let token = self.administer(&["host", "token"])?;
        std::fs::write(self.place.join_token(), token["made"]["secret"].as_str().unwrap_or_default())?;
        for role in ["egress", "edge"] {
            self.launch(role, "roost-dataplane", &[role])?;
        }
        // The agent carries their certificate requests when it joins; ready, they have written them.
        self.wait_ready()?;
        self.launch("agent", "roost-agent", &["serve"])?;
        self.administer(&["tenant", "create", "Acme"])?;
        let key = self.administer(&["key", "create", "--tenant", "acme"])?;
        self.tenant.key = key["made"]["secret"].as_str().context("no key was made")?.to_owned();
        self.wait_ready()
    }

    /// Ends every process the hard way and keeps them down, as when the power fails. VMs are not among them.
    pub fn cut_power(&mut self) -> anyhow::Result<()> {
        while let Some(mut process) = self.processes.pop() {
            process.end()?;
        }
        Ok(())
    }

    /// Starts every process on what is there.
    pub fn restore_power(&mut self) -> anyhow::Result<()> {
        self.launch("scheduler", "roost-scheduler", &["serve"])?;
        for role in ["egress", "edge"] {
            self.launch(role, "roost-dataplane", &[role])?;
        }
        self.launch("agent", "roost-agent", &["serve"])?;
        self.wait_ready()
    }

    /// The scheduler's operator: one admin command, its answer as JSON.
    pub fn administer(&self, command: &[&str]) -> anyhow::Result<serde_json::Value> {
        let mut program = program::command(self.place.binary("roost-scheduler")?);
        program
            .arg("admin")
            .arg("--config")
            .arg(self.place.settings("scheduler"))
            .arg("--json")
            .args(command);
        let outcome =
            program::run(program, b"")?.success(&format!("roost-scheduler admin {}", command.join(" ")))?;
        serde_json::from_str(&outcome.text()).context("reading the answer of roost-scheduler admin")
    }

    fn launch(&mut self, name: &'static str, binary: &str, command: &[&str]) -> anyhow::Result<()> {
        let settings = self.place.settings(name).to_string_lossy().into_owned();
        let mut arguments: Vec<String> = command.iter().map(ToString::to_string).collect();
        arguments.extend(["--config".to_owned(), settings]);
        let program = Program {
            name,
            binary: self.place.binary(binary)?,
            others: self.other_binaries.iter().map(|directory| directory.join(binary)).collect(),
            wrapper: self.wrapper(name),
            arguments,
            log: self.place.log(name),
        };
        self.processes.push(Supervised::start(program)?);
        Ok(())
    }

    fn wrapper(&self, name: &str) -> Vec<String> {
        let hosts = settings::egress_hosts(&self.place);
        match (name, &self.agent_cgroup) {
            ("egress", _) if hosts.exists() => with_hosts(&hosts),
            ("agent", Some(group)) => group.wrapper(),
            _ => Vec::new(),
        }
    }

    /// Waits until every process says it is ready.
    pub fn wait_ready(&self) -> anyhow::Result<()> {
        for process in &self.processes {
            let name = process.name();
            let mut last = String::new();
            let ready = poll::until(&format!("{name} to be ready"), READY_DEADLINE, || {
                if let Some(why) = process.ended() {
                    bail!("{name} does not stay up: {why}");
                }
                last = match http::ready(self.ports.health(name)) {
                    Ok(()) => return Ok(Some(())),
                    Err(error) => error,
                };
                Ok(None)
            });
            ready.with_context(|| format!("{name} is not ready ({last})\n{}", self.tails()))?;
        }
        Ok(())
    }

    /// Whether a process says it is ready; the error is what it says instead.
    pub fn readiness(&self, process: &str) -> Result<(), String> {
        http::ready(self.ports.health(process))
    }

    /// The tenant that was made with the stack.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The shared places of this machine before the stack started.
    pub fn baseline(&self) -> &Baseline {
        &self.baseline
    }

    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// The host's operator.
    pub fn agent(&self) -> anyhow::Result<AgentCli> {
        Ok(AgentCli::new(self.place.binary("roost-agent")?, self.place.settings("agent")))
    }

    pub fn process(&self, name: &str) -> anyhow::Result<&Supervised> {
        let process = self.processes.iter().find(|process| process.name() == name);
        process.with_context(|| format!("this stack has no {name}"))
    }

    /// Kills a process the hard way and waits until its successor is ready.
    pub fn kill_and_await(&self, name: &str) -> anyhow::Result<()> {
        self.end_and_await(name, Signal::SIGKILL)
    }

    /// The same by the signal that has a core file written, where one may be.
    pub fn crash_and_await(&self, name: &str) -> anyhow::Result<()> {
        self.end_and_await(name, Signal::SIGABRT)
    }

    fn end_and_await(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let process = self.process(name)?;
        let starts = process.starts();
        process.kill(signal)?;
        poll::until(&format!("{name} to be started again"), READY_DEADLINE, || {
            Ok((process.starts() > starts).then_some(()))
        })?;
        self.wait_ready()
    }

    /// Log lines with `text` in them are part of what the test does.
    pub fn expect_log(&mut self, text: &'static str) {
        self.expected.push(text);
    }

    /// The end of every process's log, for messages about a failure.
    pub fn tails(&self) -> String {
        log::tails(&self.place.root.join("logs"))
    }

    /// A sentence for each process that was given up by its supervisor.
    pub fn find_ended(&self) -> Option<String> {
        let mut ended = self.processes.iter().filter_map(|process| Some((process.name(), process.ended()?)));
        ended.next().map(|(name, why)| format!("{name} does not stay up: {why}"))
    }

    /// Takes everything down; an error if anything is left or a process complained. Removes the folder.
    pub fn finish(self) -> anyhow::Result<()> {
        let root = self.place.root.clone();
        let verdict = self.stop()?;
        ensure!(verdict.left.is_empty(), "left on this machine:\n  {}", verdict.left.join("\n  "));
        let lines = verdict.complaints;
        ensure!(lines.is_empty(), "unexpected warnings and errors in the logs:\n  {}", lines.join("\n  "));
        Ok(std::fs::remove_dir_all(root)?)
    }

    /// Destroys every sandbox, stops every process and says what that left; then removes it.
    pub fn stop(mut self) -> anyhow::Result<Verdict> {
        self.destroy_all()?;
        let stopped = self.stop_processes();
        self.remove_surroundings();
        let left = leftover::find(&self.place, &self.baseline);
        let complaints = log::complaints(&self.place.root.join("logs"), &self.expected);
        stopped?;
        if left.is_empty() {
            leftover::sweep(&self.place)?;
            self.finished = true;
        }
        let lines = complaints.iter().map(|found| format!("{}: {}", found.process, found.line)).collect();
        Ok(Verdict { left, complaints: lines })
    }

    fn destroy_all(&self) -> anyhow::Result<()> {
        self.tenant.destroy_all()?;
        let agent = self.agent()?;
        let is_there = |sandbox: &serde_json::Value| sandbox["state"] != "destroyed";
        poll::until("the tenant's sandboxes to leave the host", DESTROY_DEADLINE, || {
            let mut tenants = agent.list()?.into_iter().filter(|sandbox| sandbox["origin"] != "local");
            Ok((!tenants.any(|sandbox| is_there(&sandbox))).then_some(()))
        })?;
        for sandbox in agent.list()? {
            if is_there(&sandbox) {
                agent.destroy(sandbox["id"].as_str().unwrap_or_default())?;
            }
        }
        Ok(())
    }

    /// What the stack itself put around its processes.
    fn remove_surroundings(&mut self) {
        drop(self.agent_cgroup.take());
        mount::remove(&self.agent_state());
    }

    fn stop_processes(&mut self) -> anyhow::Result<()> {
        let mut first = Ok(());
        while let Some(mut process) = self.processes.pop() {
            let stopped = process.stop();
            first = first.and(stopped);
        }
        first
    }
}

/// Another `/etc/hosts`, in a mount namespace of its own.
fn with_hosts(hosts: &Path) -> Vec<String> {
    let script = "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";
    let words = ["/usr/bin/unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"];
    let mut wrapper = words.map(str::to_owned).to_vec();
    wrapper.push(hosts.to_string_lossy().into_owned());
    wrapper
}

impl Drop for Stack {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        eprintln!("{}the folder is kept: {}", self.tails(), self.place.root.display());
        let stopped = self.stop_processes();
        self.remove_surroundings();
        if let Err(error) = stopped.and_then(|()| leftover::sweep(&self.place)) {
            eprintln!("{error:#}");
        }
        for line in leftover::find(&self.place, &self.baseline) {
            eprintln!("still on this machine: {line}");
        }
    }
}
