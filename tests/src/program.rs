//! One run of a program to its end: input, deadline, exit code, output.
#![expect(
    clippy::disallowed_methods,
    reason = "starts the product and its users' programs, as a person does"
)]

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Longer than any single command of the tour or a test may take.
pub const DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(2);

/// The only place of this package where a program is named to be started.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    Command::new(program)
}

/// What a program said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// 128 + signal if a signal ended it, as shells have it.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub took: Duration,
}

impl Outcome {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    pub fn complaint(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }

    /// An error, with what the program said, unless it exited with 0.
    pub fn success(self, what: &str) -> anyhow::Result<Self> {
        if self.code != 0 {
            bail!("{what} exited with {}: {}{}", self.code, self.complaint(), self.text());
        }
        Ok(self)
    }
}

/// Runs `command` with `input` on its stdin. At the deadline it is killed, which is an error.
pub fn run(command: Command, input: &[u8]) -> anyhow::Result<Outcome> {
    run_within(command, input, DEADLINE)
}

pub fn run_within(mut command: Command, input: &[u8], deadline: Duration) -> anyhow::Result<Outcome> {
    let name = command.get_program().to_string_lossy().into_owned();
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let feeder = child.stdin.take().map(|mut stdin| {
        let input = input.to_vec();
        // A program need not read its input.
        std::thread::spawn(move || drop(stdin.write_all(&input)))
    });
    let status = wait(&mut child, begun + deadline)?;
    let took = begun.elapsed();
    let (stdout, stderr) = (join(stdout), join(stderr));
    if let Some(feeder) = feeder {
        let _ = feeder.join();
    }
    match status {
        Some(code) => Ok(Outcome { code, stdout, stderr, took }),
        None => bail!(
            "{name} did not end within {} s; so far it said: {}{}",
            deadline.as_secs(),
            String::from_utf8_lossy(&stderr),
            String::from_utf8_lossy(&stdout)
        ),
    }
}

/// The exit code, or none if it had to be killed.
fn wait(child: &mut Child, deadline: Instant) -> anyhow::Result<Option<i32>> {
    use std::os::unix::process::ExitStatusExt;
    loop {
        if let Some(status) = child.try_wait()? {
            let signalled = || 128 + status.signal().unwrap_or_default();
            return Ok(Some(status.code().unwrap_or_else(signalled)));
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn join(reader: JoinHandle<Vec<u8>>) -> Vec<u8> {
    reader.join().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(text: &str) -> Command {
        let mut command = command("sh");
        command.args(["-c", text]);
        command
    }

    #[test]
    fn input_output_and_code_come_back() {
        let outcome = run(shell("cat; echo bad >&2; exit 3"), b"good").unwrap();
        assert_eq!(
            (outcome.code, outcome.text(), outcome.complaint()),
            (3, "good".to_owned(), "bad".to_owned())
        );
        let error = outcome.success("the shell").unwrap_err().to_string();
        assert_eq!(error, "the shell exited with 3: badgood");
        assert_eq!(run(shell("kill -9 $$"), b"").unwrap().code, 137);
    }

    #[test]
    fn a_program_that_hangs_is_ended_and_quoted() {
        let hanging = shell("echo begun; exec sleep 60");
        let error = run_within(hanging, b"", Duration::from_millis(200)).unwrap_err();
        assert!(error.to_string().ends_with("so far it said: begun\n"), "{error}");
    }
}
