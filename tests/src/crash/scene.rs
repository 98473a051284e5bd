//! What everyone in a trial shares: the API, the VMs and what is known of each, the ledger.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};

use super::ledger::{GAP_PER_VMM_KILL, Ledger};
use crate::program;
use crate::stack::agent::AgentCli;
use crate::stack::tenant::{Answer, Tenant};

/// Longer than any answer takes on a busy machine; a call that is cut ends at once.
const CALL_SECONDS: &str = "30";
/// Whose sandboxes and secret these are.
pub(super) const USER: &str = "crash";
pub(super) const ENV: &str = "CRASH_KEY";
pub(super) const PAGE_PORT: u16 = 8000;
pub(super) const PAGE: &str = "still here";

#[derive(Debug)]
pub(super) struct Scene {
    pub(super) tenant: Tenant,
    pub(super) cli: AgentCli,
    pub(super) preview_root: PathBuf,
    /// Where guests call, without the path.
    pub(super) outside: String,
    pub(super) vms: Vec<Vm>,
    pub(super) stop: AtomicBool,
    ledger: Mutex<Ledger>,
}

/// A VM that stays for the whole trial.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) id: String,
    vital: Mutex<Option<Vital>>,
    /// Of the VMM that was killed last.
    killed_pid: AtomicI64,
}

/// By what a running VM is known to be the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vital {
    pub(super) vmm_pid: i64,
    /// A process inside: its pid and start time.
    pub(super) marker: (String, String),
}

impl Vm {
    pub(super) fn new(id: String) -> Self {
        Self { id, vital: Mutex::default(), killed_pid: AtomicI64::new(0) }
    }

    /// None while it is not meant to run, or being brought up.
    pub(super) fn vital(&self) -> MutexGuard<'_, Option<Vital>> {
        self.vital.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scene {
    pub(super) fn new(
        tenant: Tenant,
        cli: AgentCli,
        preview_root: PathBuf,
        outside: String,
        vms: Vec<Vm>,
        ledger: Ledger,
    ) -> Self {
        let (stop, ledger) = (AtomicBool::new(false), Mutex::new(ledger));
        Self { tenant, cli, preview_root, outside, vms, stop, ledger }
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Told once, however often it is seen.
    pub(super) fn violation(&self, text: impl Into<String>) {
        let (text, mut ledger) = (text.into(), self.ledger());
        if !ledger.violations.contains(&text) {
            ledger.violations.push(text);
        }
    }

    /// One call, bounded in time. Any failure to get an answer is none: something may be down.
    pub(super) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Option<Answer> {
        self.tenant.call_with(method, path, body, &["--max-time", CALL_SECONDS]).ok()
    }

    /// The data of a call that was answered well.
    pub(super) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Option<Value> {
        self.call(method, path, body)?.data().ok()
    }

    /// Exit code and output of shell text, if that was answered.
    pub(super) fn exec(&self, id: &str, text: &str) -> Option<(i64, String)> {
        let result = self.ask("POST", &format!("/sandboxes/{id}/exec"), Some(&json!({ "command": text })))?;
        self.ledger().execs += 1;
        Some((result["exit_code"].as_i64()?, result["stdout"].as_str()?.trim_end().to_owned()))
    }

    /// The output of shell text that ended well.
    pub(super) fn shell(&self, id: &str, text: &str) -> Option<String> {
        self.exec(id, text).filter(|(code, _)| *code == 0).map(|(_, text)| text)
    }

    pub(super) fn state(&self, id: &str) -> Option<String> {
        let sandbox = self.ask("GET", &format!("/sandboxes/{id}"), None)?;
        sandbox["state"].as_str().map(str::to_owned)
    }

    /// Waits until the sandbox is in one of `states`; none at the deadline or when the trial is over.
    pub(super) fn await_state(&self, id: &str, states: &[&str], deadline: Duration) -> Option<String> {
        let begun = Instant::now();
        while begun.elapsed() < deadline {
            if let Some(state) = self.state(id).filter(|state| states.contains(&state.as_str())) {
                return Some(state);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        None
    }

    /// Whether another VMM than the killed one runs it.
    pub(super) fn has_successor(&self, vm: &Vm) -> bool {
        let found = self.cli.inspect(&vm.id).ok().and_then(|seen| seen["execution"]["vmm_pid"].as_i64());
        found.is_some_and(|pid| pid > 0 && pid != vm.killed_pid.load(Ordering::Relaxed))
    }

    /// Plants a marker and serves a page in a VM that runs; from then on it is known.
    pub(super) fn take_up(&self, vm: &Vm) -> Option<()> {
        let page = format!(
            "mkdir -p /tmp/site && cd /tmp/site && echo '{PAGE}' > index.html && \
             (setsid python3 -m http.server {PAGE_PORT} >/dev/null 2>&1 &)"
        );
        self.shell(&vm.id, &page)?;
        let pid = self.shell(&vm.id, "setsid sleep 86400 >/dev/null 2>&1 & echo $!")?;
        let started = self.shell(&vm.id, &format!("cut -d' ' -f22 /proc/{pid}/stat"))?;
        let vmm_pid = self.cli.inspect(&vm.id).ok()?["execution"]["vmm_pid"].as_i64()?;
        if let Some(sandbox) = self.ledger().sandboxes.get_mut(&vm.id) {
            sandbox.clock.running(Instant::now());
        }
        *vm.vital() = Some(Vital { vmm_pid, marker: (pid, started) });
        Some(())
    }

    /// Whether the marker is the one that was planted. None if nobody answered.
    pub(super) fn has_marker(&self, vm: &Vm, vital: &Vital) -> Option<bool> {
        let (pid, started) = &vital.marker;
        let (_, text) = self.exec(&vm.id, &format!("cut -d' ' -f22 /proc/{pid}/stat 2>/dev/null"))?;
        Some(text == *started)
    }

    /// Kills the VMM of a VM that runs. False if it does not.
    pub(super) fn kill_vmm(&self, vm: &Vm) -> anyhow::Result<bool> {
        let mut vital = vm.vital();
        let Some(known) = vital.take() else { return Ok(false) };
        drop(vital);
        // A pause whose answer was lost has ended it. Whether the guest lost anything by that, its marker tells.
        let Ok(command) = std::fs::read_to_string(format!("/proc/{}/cmdline", known.vmm_pid)) else {
            return Ok(false);
        };
        ensure!(command.contains("qemu-system"), "process {} is no VMM: {command}", known.vmm_pid);
        let pid = nix::unistd::Pid::from_raw(i32::try_from(known.vmm_pid)?);
        let now = Instant::now();
        vm.killed_pid.store(known.vmm_pid, Ordering::Relaxed);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
        if let Some(sandbox) = self.ledger().sandboxes.get_mut(&vm.id) {
            sandbox.clock.ending(now);
            sandbox.clock.gap += GAP_PER_VMM_KILL;
        }
        Ok(true)
    }

    /// Status and body of a page, as a browser gets it.
    pub(super) fn fetch(&self, url: &str) -> Option<(u16, String)> {
        let mut command = program::command("curl");
        command.args(["-sS", "-L", "-b", "", "--max-time", "10", "-w", "%{http_code}", "--cacert"]);
        command.arg(&self.preview_root).arg(url);
        let outcome = program::run(command, b"").ok()?.success("curl").ok()?;
        let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
        let (page, status) = text.split_at_checked(text.len().checked_sub(3)?)?;
        Some((status.parse().ok()?, page.trim_end().to_owned()))
    }
}
