//! Running a command: to its end with its output, or as a stream of frames.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use roost_api::exec::{Command, ExecResult, ExitFrame};
use roost_proto::guest::exec_input::Input;
use roost_proto::guest::exec_output::Output;
use roost_proto::guest::{ExecExited, ExecInput, ExecOutput, ExecStart};
use tonic::{Status, Streaming};

use super::output::{Collected, Lines};
use super::{Guest, refuse};
use crate::app::Error;

/// What the guest protocol allows in one message of standard input.
const STDIN_CHUNK_BYTES: usize = 64 * 1024;
/// How long output without a line end is held back before it is sent as it is.
const PARTIAL_LINE_WAIT: Duration = Duration::from_millis(100);

/// A command with everything decided: environment merged, limits applied.
#[derive(Debug, Clone)]
pub struct Plan {
    pub command: Command,
    pub working_directory: String,
    pub environment: BTreeMap<String, String>,
    pub user: String,
    /// None: until it ends by itself.
    pub deadline: Option<Duration>,
    pub stdin: Option<String>,
    pub name: String,
}

/// One frame of a streamed command.
#[derive(Debug)]
pub enum Frame {
    Stdout(String),
    Stderr(String),
    Exit(ExitFrame),
    /// The guest or its host went away in the middle.
    Broken(String),
}

impl Plan {
    pub(super) fn into_inputs(self, detach: bool) -> Vec<ExecInput> {
        let (shell, argv) = match self.command {
            Command::Shell(text) => (text, Vec::new()),
            Command::Arguments(argv) => (String::new(), argv),
        };
        let start = ExecStart {
            argv,
            shell,
            working_directory: self.working_directory,
            environment: self.environment.into_iter().collect(),
            user: self.user,
            deadline_ms: self
                .deadline
                .map_or(0, |deadline| u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)),
            stdin: self.stdin.is_some(),
            detach,
            terminal: None,
            name: self.name,
        };
        let mut inputs = vec![input(Input::Start(start))];
        if let Some(text) = self.stdin {
            let text = bytes::Bytes::from(text);
            let starts = (0..text.len()).step_by(STDIN_CHUNK_BYTES);
            inputs.extend(starts.map(|at| {
                let end = (at + STDIN_CHUNK_BYTES).min(text.len());
                input(Input::Stdin(text.slice(at..end)))
            }));
            inputs.push(input(Input::StdinClose(true)));
        }
        inputs
    }
}

fn input(input: Input) -> ExecInput {
    ExecInput { input: Some(input) }
}

/// Runs a command to its end. A failure of the command is a result.
pub async fn run(guest: &Guest, plan: Plan) -> Result<ExecResult, Error> {
    let mut outputs = open(guest, plan, false).await?;
    let (mut stdout, mut stderr) = (Collected::default(), Collected::default());
    loop {
        match outputs
            .message()
            .await
            .map_err(|status| refuse(status, None))?
            .and_then(|message| message.output)
        {
            Some(Output::Stdout(chunk)) => stdout.push(&chunk),
            Some(Output::Stderr(chunk)) => stderr.push(&chunk),
            Some(Output::Started(_)) => {}
            Some(Output::Exited(exited)) => return Ok(result(stdout, stderr, &exited)),
            None => return Err(Error::GuestSilent { source: None }),
        }
    }
}

/// Starts a command and hands out its output as it comes, the exit last.
pub async fn stream(
    guest: &Guest,
    plan: Plan,
) -> Result<impl Stream<Item = Frame> + Send + 'static + use<>, Error> {
    Ok(frames(open(guest, plan, false).await?))
}

pub(super) async fn open(guest: &Guest, plan: Plan, detach: bool) -> Result<Streaming<ExecOutput>, Error> {
    // The input stays open until the call is dropped: its end would mean that the caller is gone.
    let inputs = tokio_stream::iter(plan.into_inputs(detach)).chain(tokio_stream::pending());
    let answer = guest.client.clone().exec(guest.request(inputs)).await;
    Ok(answer.map_err(|status| refuse(status, None))?.into_inner())
}

fn result(stdout: Collected, stderr: Collected, exited: &ExecExited) -> ExecResult {
    ExecResult {
        truncated: stdout.truncated || stderr.truncated,
        stdout: stdout.into_text(),
        stderr: stderr.into_text(),
        exit_code: exited.exit_code,
        signal: (exited.signal != 0).then_some(exited.signal),
        timed_out: exited.timed_out,
        duration_ms: u64::try_from(exited.duration_us / 1000).unwrap_or(0),
    }
}

/// Output messages as frames of whole lines; a line without an end is sent after a short wait.
pub(super) fn frames<S>(outputs: S) -> impl Stream<Item = Frame> + Send + 'static
where
    S: Stream<Item = Result<ExecOutput, Status>> + Send + Unpin + 'static,
{
    async_stream::stream! {
        let (mut outputs, mut framing) = (outputs, Framing::default());
        loop {
            let next = match framing.has_rest() {
                true => tokio::time::timeout(PARTIAL_LINE_WAIT, outputs.next()).await.ok(),
                false => Some(outputs.next().await),
            };
            let ready = match next {
                None => framing.take_rest(),
                Some(Some(Ok(message))) => framing.take(message.output),
                Some(Some(Err(status))) => vec![Frame::Broken(status.message().to_owned())],
                Some(None) => vec![Frame::Broken("the output ended before the process did".to_owned())],
            };
            let over = matches!(ready.last(), Some(Frame::Exit(_) | Frame::Broken(_)));
            for frame in ready {
                yield frame;
            }
            if over {
                return;
            }
        }
    }
}

/// Both streams of one process, cut into lines.
#[derive(Debug, Default)]
struct Framing {
    stdout: Lines,
    stderr: Lines,
}

impl Framing {
    fn has_rest(&self) -> bool {
        self.stdout.has_rest() || self.stderr.has_rest()
    }

    fn take(&mut self, output: Option<Output>) -> Vec<Frame> {
        match output {
            Some(Output::Stdout(chunk)) => self.stdout.push(&chunk).into_iter().map(Frame::Stdout).collect(),
            Some(Output::Stderr(chunk)) => self.stderr.push(&chunk).into_iter().map(Frame::Stderr).collect(),
            Some(Output::Exited(exited)) => {
                let mut frames = self.take_rest();
                frames.push(Frame::Exit(exit_frame(&exited)));
                frames
            }
            Some(Output::Started(_)) | None => Vec::new(),
        }
    }

    fn take_rest(&mut self) -> Vec<Frame> {
        let stdout = self.stdout.take_rest().map(Frame::Stdout);
        let stderr = self.stderr.take_rest().map(Frame::Stderr);
        stdout.into_iter().chain(stderr).collect()
    }
}

fn exit_frame(exited: &ExecExited) -> ExitFrame {
    ExitFrame {
        exit_code: exited.exit_code,
        signal: (exited.signal != 0).then_some(exited.signal),
        timed_out: exited.timed_out,
        duration_ms: u64::try_from(exited.duration_us / 1000).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn message(output: Output) -> Result<ExecOutput, Status> {
        Ok(ExecOutput { output: Some(output) })
    }

    #[tokio::test(start_paused = true)]
    async fn a_prompt_without_a_line_end_is_sent_and_the_exit_comes_last() {
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        let frames = frames(tokio_stream::wrappers::ReceiverStream::new(receiver));
        tokio::pin!(frames);
        sender.send(message(Output::Stdout(Bytes::from_static(b"one\nName: ")))).await.unwrap();
        assert!(matches!(frames.next().await, Some(Frame::Stdout(line)) if line == "one"));
        assert!(matches!(frames.next().await, Some(Frame::Stdout(line)) if line == "Name: "));
        sender.send(message(Output::Stderr(Bytes::from_static(b"last words")))).await.unwrap();
        let exited = ExecExited { exit_code: 3, ..Default::default() };
        sender.send(message(Output::Exited(exited))).await.unwrap();
        assert!(matches!(frames.next().await, Some(Frame::Stderr(line)) if line == "last words"));
        assert!(matches!(frames.next().await, Some(Frame::Exit(exit)) if exit.exit_code == 3));
        assert!(frames.next().await.is_none());
    }

    #[test]
    fn standard_input_is_cut_and_closed() {
        let plan = Plan {
            command: Command::Shell("cat".into()),
            working_directory: String::new(),
            environment: BTreeMap::new(),
            user: String::new(),
            deadline: Some(Duration::from_millis(1500)),
            stdin: Some("x".repeat(STDIN_CHUNK_BYTES + 1)),
            name: String::new(),
        };
        let inputs = plan.into_inputs(false);
        assert_eq!(inputs.len(), 4);
        assert!(
            matches!(&inputs[0].input, Some(Input::Start(start)) if start.stdin && start.deadline_ms == 1500)
        );
        assert!(matches!(&inputs[2].input, Some(Input::Stdin(chunk)) if chunk.len() == 1));
        assert!(matches!(inputs[3].input, Some(Input::StdinClose(true))));
    }
}
