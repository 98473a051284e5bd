//! Steps: pause, resume, usage, the end.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{Step, call, print, sandbox, shell};
use crate::poll;
use crate::stack::Stack;
use crate::stack::tenant::Tenant;

const CHANGE_DEADLINE: Duration = Duration::from_secs(60);
/// Usage is uploaded right after a change of state.
const USAGE_DEADLINE: Duration = Duration::from_secs(30);

/// What runs in the sandbox before it is paused.
pub(super) struct Mark {
    pid: String,
    started: String,
}

/// Start time of a process in clock ticks since boot: with the pid, it names a process and no successor.
fn started(pid: &str) -> String {
    format!("cut -d' ' -f22 /proc/{pid}/stat")
}

pub(super) fn pause(stack: &Stack, id: &str) -> Step<Mark> {
    let tenant = stack.tenant();
    let pid = shell(tenant, id, "sleep 86400 >/dev/null 2>&1 & echo $!")?;
    let mark = Mark { started: shell(tenant, id, &started(&pid))?, pid };
    let vmm = sandbox::vmm_pid(stack, id)?;
    call(tenant, "POST", &format!("/sandboxes/{id}/pause"), Some(&serde_json::json!({})))?;
    wait_for(tenant, id, "paused")?;
    poll::until("the VMM to be gone", CHANGE_DEADLINE, || {
        Ok((!Path::new(&format!("/proc/{vmm}")).exists()).then_some(()))
    })?;
    Ok((mark, format!("no process is left of it on this machine ({vmm} is gone)")))
}

pub(super) fn resume(stack: &Stack, id: &str, mark: &Mark) -> Step<()> {
    let tenant = stack.tenant();
    call(tenant, "POST", &format!("/sandboxes/{id}/resume"), Some(&serde_json::json!({})))?;
    wait_for(tenant, id, "running")?;
    let started =
        shell(tenant, id, &started(&mark.pid)).context("the process from before the pause is gone")?;
    ensure!(started == mark.started, "process {} is another one now", mark.pid);
    Ok(((), format!("process {} that was started before the pause still runs", mark.pid)))
}

pub(super) fn usage(tenant: &Tenant) -> Step<()> {
    let path = "/usage?group_by=external_user_id&period=7d";
    print::command(&tenant.shown("GET", path, None));
    let row = poll::until("usage of the end-user", USAGE_DEADLINE, || {
        let report = tenant.call("GET", path, None)?.data()?;
        let rows = report["results"].as_array().cloned().unwrap_or_default();
        let row = rows.into_iter().find(|row| row["external_user_id"] == sandbox::USER);
        Ok(row.filter(|row| row["cpu_seconds"].as_f64().unwrap_or(0.0) > 0.0))
    })?;
    print::output(&row.to_string());
    let amount = |field: &str| row[field].as_f64().unwrap_or(0.0);
    ensure!(amount("sandbox_seconds") > 0.0, "no time is counted: {row}");
    Ok((
        (),
        format!(
            "{}: {:.1} s alive, {:.2} s of CPU used, {:.1} GiB·s of memory allocated",
            sandbox::USER,
            amount("sandbox_seconds"),
            amount("cpu_seconds"),
            amount("memory_gib_seconds")
        ),
    ))
}

pub(super) fn destroy(stack: &Stack, id: &str) -> Step<()> {
    let vmm = sandbox::vmm_pid(stack, id)?;
    call(stack.tenant(), "DELETE", &format!("/sandboxes/{id}"), None)?;
    poll::until("the sandbox to be gone", CHANGE_DEADLINE, || {
        let is_listed = stack.tenant().list()?.iter().any(|sandbox| sandbox["id"] == id);
        let is_running = Path::new(&format!("/proc/{vmm}")).exists();
        Ok((!is_listed && !is_running).then_some(()))
    })?;
    Ok(((), format!("it is gone from the list, and process {vmm} with it")))
}

fn wait_for(tenant: &Tenant, id: &str, state: &str) -> anyhow::Result<()> {
    poll::until(&format!("the sandbox to be {state}"), CHANGE_DEADLINE, || {
        let sandbox = tenant.call("GET", &format!("/sandboxes/{id}"), None)?.data()?;
        ensure!(sandbox["state"] != "error", "the sandbox is in error: {}", sandbox["state_reason"]);
        Ok((sandbox["state"] == state).then_some(()))
    })
}
