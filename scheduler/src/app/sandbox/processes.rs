//! Looking after processes of a sandbox that were started earlier.

use futures::Stream;
use roost_api::process::Process;

use super::{guest, row};
use crate::app::guest::command::Frame;
use crate::app::guest::{Guest, output, process};
use crate::app::{App, Caller, Error, Scope};

const MAX_TAIL_LINES: u32 = 100_000;

pub async fn list(app: &App, caller: &Caller, reference: &str) -> Result<Vec<Process>, Error> {
    process::list(&open(app, caller, reference, Scope::SandboxesRead).await?).await
}

pub async fn get(app: &App, caller: &Caller, reference: &str, pid: &str) -> Result<Process, Error> {
    let guest = open(app, caller, reference, Scope::SandboxesRead).await?;
    process::get(&guest, parse_pid(pid)?).await
}

pub async fn logs(
    app: &App,
    caller: &Caller,
    reference: &str,
    pid: &str,
    tail: Option<u32>,
) -> Result<String, Error> {
    let guest = open(app, caller, reference, Scope::SandboxesRead).await?;
    let text = process::logs(&guest, parse_pid(pid)?).await?;
    Ok(output::last_lines(&text, tail.unwrap_or(MAX_TAIL_LINES) as usize).to_owned())
}

pub async fn follow(
    app: &App,
    caller: &Caller,
    reference: &str,
    pid: &str,
) -> Result<impl Stream<Item = Frame> + Send + 'static + use<>, Error> {
    let guest = open(app, caller, reference, Scope::SandboxesRead).await?;
    process::follow(&guest, parse_pid(pid)?).await
}

pub async fn stop(app: &App, caller: &Caller, reference: &str, pid: &str) -> Result<(), Error> {
    let guest = open(app, caller, reference, Scope::SandboxesWrite).await?;
    process::stop(&guest, parse_pid(pid)?).await
}

pub async fn kill(
    app: &App,
    caller: &Caller,
    reference: &str,
    pid: &str,
    signal: Option<String>,
) -> Result<Process, Error> {
    let guest = open(app, caller, reference, Scope::SandboxesWrite).await?;
    let pid = parse_pid(pid)?;
    match signal {
        Some(signal) => process::signal(&guest, pid, process::parse_signal(&signal)?).await?,
        None => process::stop(&guest, pid).await?,
    }
    process::get(&guest, pid).await
}

async fn open(app: &App, caller: &Caller, reference: &str, scope: Scope) -> Result<Guest, Error> {
    caller.require(scope)?;
    guest(app, caller, row(app, caller, reference).await?).await
}

fn parse_pid(pid: &str) -> Result<u32, Error> {
    pid.parse().map_err(|_| Error::NoProcess { pid: pid.chars().take(32).collect() })
}
