//! Steps: a sandbox with its attribution, a command, files.

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{Step, call, print, shell, text};
use crate::stack::Stack;
use crate::stack::tenant::Tenant;

/// The end-user of the tour; the e-mail-like form is what platforms use.
pub(super) const USER: &str = "user_1041@acme.example";

pub(super) fn create(stack: &Stack) -> Step<String> {
    let body = json!({
        "name": "tour",
        "external_workspace_id": "ws_acme", "external_user_id": USER, "external_project_id": "prj_7",
        "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 1024,
    });
    let sandbox = call(stack.tenant(), "POST", "/sandboxes?wait=60", Some(&body))?;
    let id = text(&sandbox, "id")?.to_owned();
    print::output(&format!("{id} is {}, booted in {} ms", text(&sandbox, "state")?, sandbox["boot_ms"]));
    ensure!(sandbox["state"] == "running", "it is not running: {sandbox}");
    for field in ["external_workspace_id", "external_user_id", "external_project_id"] {
        ensure!(sandbox[field] == body[field], "{field} came back as {}", sandbox[field]);
    }
    let pid = vmm_pid(stack, &id)?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the VMM is not running")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().unwrap_or_default().to_owned()
    };
    let (uid, capabilities) = (field("Uid:"), field("CapEff:"));
    ensure!(uid != "0", "the VMM runs as root");
    ensure!(capabilities.trim_matches('0').is_empty(), "the VMM has capabilities: {capabilities}");
    Ok((
        id,
        format!(
            "a virtual machine of its own in process {pid}: user {uid}, no capability; your three ids are on it"
        ),
    ))
}

pub(super) fn vmm_pid(stack: &Stack, id: &str) -> anyhow::Result<i64> {
    let sandbox = stack.agent()?.inspect(id)?;
    sandbox["execution"]["vmm_pid"].as_i64().context("the sandbox has no VMM")
}

pub(super) fn exec(tenant: &Tenant, id: &str) -> Step<()> {
    let output = shell(tenant, id, "uname -sr && python3 -c 'print(sum(range(100)))'")?;
    let own = nix::sys::utsname::uname()?;
    let own = own.release().to_string_lossy();
    ensure!(output.starts_with("Linux ") && output.ends_with("\n4950"), "it printed {output:?}");
    ensure!(!output.contains(&*own), "the guest runs the host's kernel");
    Ok(((), format!("the guest's kernel, not this machine's {own}")))
}

pub(super) fn files(tenant: &Tenant, id: &str) -> Step<()> {
    let content = "hello from outside\n";
    let body = json!({ "path": "/workspace/hello.txt", "content_base64": STANDARD.encode(content) });
    call(tenant, "POST", &format!("/sandboxes/{id}/fs/write"), Some(&body))?;
    ensure!(
        shell(tenant, id, "cat /workspace/hello.txt")? == content.trim_end(),
        "the guest sees another content"
    );
    let path = format!("/sandboxes/{id}/fs/download?path=/workspace/hello.txt");
    print::command(&tenant.shown("GET", &path, None));
    let answer = tenant.call("GET", &path, None)?;
    ensure!(answer.bytes == content.as_bytes(), "read back: {:?}", String::from_utf8_lossy(&answer.bytes));
    print::output(content);
    let listed = call(tenant, "GET", &format!("/sandboxes/{id}/files?path=/workspace"), None)?;
    let entries = listed["entries"].as_array().context("the list has no entries")?;
    let names: Vec<_> = entries.iter().filter_map(|entry| entry["name"].as_str()).collect();
    ensure!(names.contains(&"hello.txt"), "it is not listed: {names:?}");
    Ok(((), "written from outside, read inside and outside, listed".to_owned()))
}
