//! The tour: what Roost does, shown step by step on a running stack.
//!
//! Each step calls the product as its user does, prints the command, checks what came of it and says what that
//! shows. A step that does not hold ends the tour. No step says more than it checked.

mod credential;
mod lifecycle;
mod preview;
mod print;
mod sandbox;

use anyhow::Context;
use serde_json::{Value, json};

use crate::quickstart::interrupt::Interrupt;
use crate::stack::Stack;
use crate::stack::tenant::Tenant;
use crate::upstream::Upstream;
use print::Steps;

/// What a step answers: a value for later steps, and the sentence on what it showed.
type Step<T> = anyhow::Result<(T, String)>;

/// Walks every step; the first that does not hold is the error.
pub fn run(stack: &Stack, upstream: &Upstream, interrupt: &Interrupt) -> anyhow::Result<()> {
    let mut steps = Steps::new(interrupt.clone());
    let tenant = stack.tenant();
    let id = steps.step("Create a sandbox for an end-user of yours", || sandbox::create(stack))?;
    steps.step("Run a command in it", || sandbox::exec(tenant, &id))?;
    steps.step("Write, read and list files", || sandbox::files(tenant, &id))?;
    steps.step("Call a server with a credential the sandbox never sees", || {
        credential::swap(tenant, &id, upstream)
    })?;
    steps.step("Find that call in the audit", || credential::audit(tenant, &id))?;
    let preview = steps.step("Serve a page and preview it, privately", || preview::open(stack, &id))?;
    steps.step("Share it with a token", || preview::share(stack, &preview))?;
    steps.step("Revoke the share", || preview::revoke(stack, &preview))?;
    let mark = steps.step("Pause it", || lifecycle::pause(stack, &id))?;
    steps.step("Resume it where it was", || lifecycle::resume(stack, &id, &mark))?;
    steps.step("See what your end-user used", || lifecycle::usage(tenant))?;
    steps.step("Destroy it", || lifecycle::destroy(stack, &id))?;
    steps.end();
    Ok(())
}

/// One call, printed as a person would type it.
fn call(tenant: &Tenant, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
    print::command(&tenant.shown(method, path, body));
    tenant.call(method, path, body)?.data()
}

/// The output of shell text in the sandbox, through the API; the text must succeed.
fn shell(tenant: &Tenant, id: &str, text: &str) -> anyhow::Result<String> {
    let body = json!({ "command": text });
    let result = call(tenant, "POST", &format!("/sandboxes/{id}/exec"), Some(&body))?;
    let (stdout, stderr) =
        (result["stdout"].as_str().unwrap_or_default(), result["stderr"].as_str().unwrap_or_default());
    anyhow::ensure!(result["exit_code"] == 0, "it exited with {}: {stderr}{stdout}", result["exit_code"]);
    print::output(stdout);
    Ok(stdout.trim_end().to_owned())
}

fn text<'a>(value: &'a Value, field: &str) -> anyhow::Result<&'a str> {
    value[field].as_str().with_context(|| format!("the answer has no {field}: {value}"))
}
