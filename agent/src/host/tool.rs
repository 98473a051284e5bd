//! Runs the few host tools that have no better interface (`nft`, `mke2fs`, version probes).
//!
//! The only place of the agent that uses `std::process::Command`; virtual machine monitors start in
//! `spawn.rs`. Arguments never come from a tenant: they are constants, numbers, and paths of our own.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What a tool may say before the rest is dropped.
pub const MAX_OUTPUT_BYTES: u64 = 64 * 1024;
const POLL_INTERVAL: Duration = Duration::from_millis(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{tool} is not installed")]
    Missing { tool: String },
    #[error("starting {tool}")]
    Start { tool: String, source: io::Error },
    #[error("talking to {tool}")]
    Talk { tool: String, source: io::Error },
    #[error("{tool} did not end within {deadline:?}")]
    Deadline { tool: String, deadline: Duration },
    #[error("{tool} failed ({status}): {stderr}")]
    Failed { tool: String, status: ExitStatus, stderr: String },
}

/// Runs `tool` with `input` on its standard input and returns its standard output.
///
/// The tool is found on the PATH, keeps no environment but PATH and the C locale, and inherits the network
/// namespace of the calling *thread*.
pub fn run<A: AsRef<OsStr>>(
    tool: &str,
    arguments: &[A],
    input: &[u8],
    deadline: Duration,
) -> Result<Vec<u8>, Error> {
    #[expect(clippy::disallowed_methods, reason = "the place that starts host tools")]
    let mut child = Command::new(tool)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing { tool: tool.to_owned() },
            _ => Error::Start { tool: tool.to_owned(), source },
        })?;
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let talk = |source| Error::Talk { tool: tool.to_owned(), source };
    std::thread::scope(|scope| {
        // A tool that ends before it has read everything says why on standard error, not with EPIPE here.
        scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input)));
        let output = scope.spawn(move || drain(stdout));
        let errors = scope.spawn(move || drain(stderr));
        let status = wait(&mut child, tool, deadline)?;
        let output = output.join().map_err(|_| talk(io::Error::other("reader panicked")))?.map_err(talk)?;
        let errors = errors.join().map_err(|_| talk(io::Error::other("reader panicked")))?.map_err(talk)?;
        if status.success() {
            return Ok(output);
        }
        let stderr = String::from_utf8_lossy(&errors).trim().replace('\n', "; ");
        Err(Error::Failed { tool: tool.to_owned(), status, stderr })
    })
}

fn drain(pipe: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.by_ref().take(MAX_OUTPUT_BYTES).read_to_end(&mut kept)?;
        io::copy(&mut pipe, &mut io::sink())?;
    }
    Ok(kept)
}

fn wait(child: &mut std::process::Child, tool: &str, deadline: Duration) -> Result<ExitStatus, Error> {
    let end = Instant::now() + deadline;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() < end => std::thread::sleep(POLL_INTERVAL),
            Ok(None) => {
                // Both fail only if it ended by itself just now.
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::Deadline { tool: tool.to_owned(), deadline });
            }
            Err(source) => {
                return Err(Error::Talk { tool: tool.to_owned(), source });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    #[test]
    fn output_and_input_pass_through() {
        assert_eq!(run("cat", &[] as &[&str], b"hello", DEADLINE).expect("cat runs"), b"hello");
    }

    #[test]
    fn a_failure_carries_what_the_tool_said() {
        let error = run("sh", &["-c", "echo no such table >&2; exit 3"], b"", DEADLINE).expect_err("fails");
        assert!(error.to_string().ends_with("no such table"), "{error}");
    }

    #[test]
    fn a_missing_tool_is_named() {
        let error = run("roost-no-such-tool", &[] as &[&str], b"", DEADLINE).expect_err("missing");
        assert!(matches!(error, Error::Missing { .. }), "{error:?}");
    }

    #[test]
    fn a_tool_that_hangs_is_ended() {
        let error = run("sleep", &["60"], b"", Duration::from_millis(50)).expect_err("hangs");
        assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
    }
}
