//! A command that finds the stack in its environment, under the names that clients look for.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::Context;

use crate::program;
use crate::stack::{PREVIEW_DOMAIN, Stack};

/// Debian's bundle of public roots.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where to find the stack, as environment variables.
pub fn of(stack: &Stack) -> anyhow::Result<Vec<(&'static str, String)>> {
    let tenant = stack.tenant();
    let bundle = write_bundle(stack)?.to_string_lossy().into_owned();
    Ok(vec![
        ("MIOSA_BASE_URL", tenant.base()),
        ("MIOSA_API_KEY", tenant.key.clone()),
        ("ROOST_API_URL", tenant.base()),
        ("ROOST_API_KEY", tenant.key.clone()),
        ("ROOST_CA_FILE", stack.place().preview_root().to_string_lossy().into_owned()),
        ("SSL_CERT_FILE", bundle),
        ("ROOST_PREVIEW_DOMAIN", format!("{PREVIEW_DOMAIN}:{}", stack.ports().preview)),
    ])
}

/// The public roots and ours: `SSL_CERT_FILE` replaces what a client trusts.
fn write_bundle(stack: &Stack) -> anyhow::Result<PathBuf> {
    let mut roots = std::fs::read(SYSTEM_ROOTS).unwrap_or_default();
    let own = stack.place().preview_root();
    roots.extend(std::fs::read(&own).with_context(|| format!("cannot read {}", own.display()))?);
    let bundle = stack.place().root.join("roots.pem");
    std::fs::write(&bundle, roots).with_context(|| format!("cannot write {}", bundle.display()))?;
    Ok(bundle)
}

/// Runs the command to its end on this terminal; answers with its exit code.
pub(super) fn run(stack: &Stack, name: &str, arguments: &[String]) -> anyhow::Result<u8> {
    use std::os::unix::process::ExitStatusExt;
    let mut command = program::command(name);
    command.args(arguments).envs(of(stack)?).stdin(Stdio::inherit());
    let status = command.status().with_context(|| format!("cannot run {name}"))?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}
