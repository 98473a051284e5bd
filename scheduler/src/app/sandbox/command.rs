//! Commands in a sandbox: what a request means, and running it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::Stream;
use roost_api::exec::{ExecRequest, ExecResult};
use roost_api::process::{CommandResult, Process, RunCommand, StartProcess};

use super::{Row, environment, guest, require_running, row};
use crate::app::guest::command::{self, Frame, Plan};
use crate::app::guest::process;
use crate::app::{App, Caller, Error, Scope, text};

/// What a command gets that does not say: the SDK gives up the connection then.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);
const MAX_DEADLINE_S: u64 = 600;
const MAX_COMMAND_BYTES: usize = 256 * 1024;

/// Runs a command to its end.
pub async fn exec(
    app: &App,
    caller: &Caller,
    reference: &str,
    request: ExecRequest,
) -> Result<ExecResult, Error> {
    let (row, plan) = plan_exec(app, caller, reference, request).await?;
    let id = row.id.clone();
    let done = command::run(&guest(app, caller, row).await?, plan).await;
    explained(app, caller, &id, done).await
}

/// Runs a command and hands out its output line by line.
pub async fn exec_stream(
    app: &App,
    caller: &Caller,
    reference: &str,
    request: ExecRequest,
) -> Result<impl Stream<Item = Frame> + Send + 'static + use<>, Error> {
    let (row, plan) = plan_exec(app, caller, reference, request).await?;
    command::stream(&guest(app, caller, row).await?, plan).await
}

async fn plan_exec(
    app: &App,
    caller: &Caller,
    reference: &str,
    request: ExecRequest,
) -> Result<(Row, Plan), Error> {
    caller.require(Scope::SandboxesWrite)?;
    let row = row(app, caller, reference).await?;
    let plan = Plan {
        command: check_command(request.command)?,
        working_directory: text::check_guest_word("cwd", request.cwd, text::GUEST_PATH_BYTES_MAX)?,
        environment: merged(app, &row, request.env).await?,
        user: text::check_guest_word("user", request.user, text::GUEST_USER_BYTES_MAX)?,
        deadline: Some(deadline(request.timeout)?),
        stdin: request.stdin,
        name: String::new(),
    };
    Ok((row, plan))
}

/// Runs a command in the other spelling: waits for it, or leaves it running.
pub async fn run(
    app: &App,
    caller: &Caller,
    reference: &str,
    request: RunCommand,
) -> Result<CommandResult, Error> {
    caller.require(Scope::SandboxesWrite)?;
    let row = row(app, caller, reference).await?;
    let detached = request.detached.unwrap_or(false);
    let deadline = match request.timeout_seconds {
        None if detached => None,
        given => Some(deadline(given)?),
    };
    let user = text::check_guest_word("user", request.user, text::GUEST_USER_BYTES_MAX)?;
    let user = if request.sudo == Some(true) { "root".to_owned() } else { user };
    let plan = Plan {
        command: check_command(request.command)?,
        working_directory: text::check_guest_word("cwd", request.cwd, text::GUEST_PATH_BYTES_MAX)?,
        environment: merged(app, &row, request.env).await?,
        user,
        deadline,
        stdin: request.stdin,
        name: check_process_name(request.name)?,
    };
    let id = row.id.clone();
    let guest = guest(app, caller, row).await?;
    if detached {
        return Ok(started(process::start(&guest, plan).await?));
    }
    let done = explained(app, caller, &id, command::run(&guest, plan).await).await?;
    Ok(CommandResult {
        pid: None,
        id: None,
        status: "exited".to_owned(),
        detached: false,
        stdout: done.stdout,
        stderr: done.stderr,
        exit_code: Some(done.exit_code),
        timed_out: done.timed_out,
        truncated: done.truncated,
        duration_ms: Some(done.duration_ms),
    })
}

/// What a connection that broke means: that of a sandbox which was put to rest meanwhile is no fault of its host.
async fn explained<T>(app: &App, caller: &Caller, id: &str, done: Result<T, Error>) -> Result<T, Error> {
    if matches!(done, Err(Error::GuestSilent { .. })) {
        require_running(&row(app, caller, id).await?)?;
    }
    done
}

fn check_process_name(name: Option<String>) -> Result<String, Error> {
    match name.filter(|name| !name.is_empty()) {
        Some(name) => text::check_name("name", &name),
        None => Ok(String::new()),
    }
}

fn started(pid: u32) -> CommandResult {
    CommandResult {
        pid: Some(pid),
        id: Some(pid.to_string()),
        status: "running".to_owned(),
        detached: true,
        stdout: String::new(),
        stderr: String::new(),
        exit_code: None,
        timed_out: false,
        truncated: false,
        duration_ms: None,
    }
}

/// Starts a process that outlives the call.
pub async fn start(
    app: &App,
    caller: &Caller,
    reference: &str,
    request: StartProcess,
) -> Result<Process, Error> {
    caller.require(Scope::SandboxesWrite)?;
    let row = row(app, caller, reference).await?;
    let plan = Plan {
        command: check_command(request.command)?,
        working_directory: text::check_guest_word("cwd", request.cwd, text::GUEST_PATH_BYTES_MAX)?,
        environment: merged(app, &row, request.env).await?,
        user: text::check_guest_word("user", request.user, text::GUEST_USER_BYTES_MAX)?,
        deadline: request.timeout.map(|seconds| deadline(Some(seconds))).transpose()?,
        stdin: None,
        name: check_process_name(request.name)?,
    };
    let guest = guest(app, caller, row).await?;
    let pid = process::start(&guest, plan).await?;
    process::get(&guest, pid).await
}

/// The sandbox's own variables, the placeholders of its secrets, and what the request adds, each over the one
/// before.
async fn merged(
    app: &App,
    row: &Row,
    added: Option<BTreeMap<String, String>>,
) -> Result<BTreeMap<String, String>, Error> {
    let added = text::check_environment("env", added.unwrap_or_default())?;
    let mut variables = row.environment.clone();
    variables.extend(environment::placeholders(app, row).await?);
    variables.extend(added);
    Ok(variables)
}

fn check_command(command: roost_api::exec::Command) -> Result<roost_api::exec::Command, Error> {
    use roost_api::exec::Command;
    let (empty, bytes, zero) = match &command {
        Command::Shell(text) => (text.trim().is_empty(), text.len(), text.contains('\0')),
        Command::Arguments(argv) => {
            let empty = argv.first().is_none_or(String::is_empty);
            (empty, argv.iter().map(String::len).sum(), argv.iter().any(|part| part.contains('\0')))
        }
    };
    if empty {
        return Err(Error::invalid("command", "there is nothing to run"));
    }
    if bytes > MAX_COMMAND_BYTES || zero {
        return Err(Error::invalid(
            "command",
            format!("at most {MAX_COMMAND_BYTES} bytes, no zero byte; send long input as stdin"),
        ));
    }
    Ok(command)
}

fn deadline(seconds: Option<f64>) -> Result<Duration, Error> {
    match seconds {
        None => Ok(DEFAULT_DEADLINE),
        Some(seconds) if seconds > MAX_DEADLINE_S as f64 => {
            Err(Error::TimeoutTooLong { limit: MAX_DEADLINE_S })
        }
        Some(seconds) if seconds > 0.0 => Ok(Duration::from_secs_f64(seconds)),
        Some(_) => Err(Error::invalid("timeout", "a positive number of seconds")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roost_api::exec::Command;

    #[test]
    fn deadlines_are_positive_and_bounded() {
        assert_eq!(deadline(None).unwrap(), DEFAULT_DEADLINE);
        assert_eq!(deadline(Some(0.5)).unwrap(), Duration::from_millis(500));
        assert!(matches!(deadline(Some(601.0)), Err(Error::TimeoutTooLong { .. })));
        assert!(matches!(deadline(Some(f64::INFINITY)), Err(Error::TimeoutTooLong { .. })));
        for bad in [0.0, -1.0, f64::NAN] {
            assert!(matches!(deadline(Some(bad)), Err(Error::Invalid { .. })), "{bad}");
        }
    }

    #[test]
    fn empty_and_binary_commands_are_refused() {
        assert!(check_command(Command::Shell("true".into())).is_ok());
        for bad in [Command::Shell("  ".into()), Command::Arguments(vec![]), Command::Shell("a\0".into())] {
            assert!(check_command(bad).is_err());
        }
        assert!(check_command(Command::Shell("x".repeat(MAX_COMMAND_BYTES + 1))).is_err());
    }
}
