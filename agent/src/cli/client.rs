//! The CLI's connection to the daemon.

use std::io::IsTerminal;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use roost_daemon::packet::PacketSocket;
use roost_proto::local::reply::Reply as Answer;
use roost_proto::local::request::Request as Ask;
use roost_proto::local::{self, Reply, Request, Sandbox};

/// A start that takes longer than this is reported as it stands.
const WAIT_MAX: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(50);
/// Anything longer than this shows what it is waiting for.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connected client.
#[derive(Debug)]
pub(super) struct Client {
    socket: PacketSocket<Request, Reply>,
}

impl Client {
    pub(super) async fn connect(path: &Path) -> anyhow::Result<Self> {
        let socket = PacketSocket::connect(path).await.with_context(|| {
            format!(
                "no agent answers at {}: is `roost-agent serve` running, and are you root?",
                path.display()
            )
        })?;
        Ok(Self { socket })
    }

    async fn ask(&mut self, ask: Ask) -> anyhow::Result<(Answer, Vec<OwnedFd>)> {
        self.socket.send(&Request { request: Some(ask) }, &[]).await.context("asking the agent")?;
        match self.socket.recv().await.context("hearing from the agent")? {
            Some((Reply { reply: Some(Answer::Failure(failure)) }, _)) => bail!("{}", failure.message),
            Some((Reply { reply: Some(answer) }, descriptors)) => Ok((answer, descriptors)),
            _ => bail!("the agent closed the connection without an answer"),
        }
    }

    pub(super) async fn sandbox(&mut self, ask: Ask) -> anyhow::Result<Sandbox> {
        match self.ask(ask).await? {
            (Answer::Sandbox(sandbox), _) => Ok(sandbox),
            _ => bail!("the agent answered something else: is it of another version?"),
        }
    }

    pub(super) async fn inspect(&mut self, id: &str) -> anyhow::Result<Sandbox> {
        self.sandbox(Ask::Inspect(local::Inspect { id: id.to_owned() })).await
    }

    pub(super) async fn list(&mut self) -> anyhow::Result<Vec<Sandbox>> {
        let mut all = Vec::new();
        loop {
            match self.ask(Ask::List(local::List { offset: all.len() as u32 })).await? {
                (Answer::Sandboxes(page), _) => {
                    let more = page.more && !page.sandboxes.is_empty();
                    all.extend(page.sandboxes);
                    if !more {
                        return Ok(all);
                    }
                }
                _ => bail!("the agent answered something else: is it of another version?"),
            }
        }
    }

    /// A stream on which edge serves the guest gateway for the sandbox's current execution.
    pub(super) async fn open_gateway(&mut self, exec: local::Exec) -> anyhow::Result<OwnedFd> {
        match self.ask(Ask::Exec(exec)).await? {
            (Answer::Opened(_), descriptors) => {
                descriptors.into_iter().next().context("the agent sent no stream")
            }
            _ => bail!("the agent answered something else: is it of another version?"),
        }
    }

    pub(super) async fn usage(&mut self, id: String) -> anyhow::Result<Vec<local::UsageRow>> {
        let mut all: Vec<local::UsageRow> = Vec::new();
        loop {
            let after = all.last().map(|row| row.sandbox.clone()).unwrap_or_default();
            match self.ask(Ask::Usage(local::Usage { id: id.clone(), after })).await? {
                (Answer::Usage(page), _) => {
                    let more = page.more && !page.rows.is_empty();
                    all.extend(page.rows);
                    if !more {
                        return Ok(all);
                    }
                }
                _ => bail!("the agent answered something else: is it of another version?"),
            }
        }
    }

    pub(super) async fn console(&mut self, id: String) -> anyhow::Result<Vec<u8>> {
        match self.ask(Ask::Console(local::Console { id })).await? {
            (Answer::Console(bytes), _) => Ok(bytes.to_vec()),
            _ => bail!("the agent answered something else: is it of another version?"),
        }
    }

    pub(super) async fn doctor(&mut self) -> anyhow::Result<Vec<local::Finding>> {
        match self.ask(Ask::Doctor(local::Doctor {})).await? {
            (Answer::Findings(findings), _) => Ok(findings.findings),
            _ => bail!("the agent answered something else: is it of another version?"),
        }
    }

    /// Waits until `sandbox` is in `state`, showing what it is doing meanwhile.
    pub(super) async fn wait_for(&mut self, sandbox: Sandbox, state: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut progress = Progress::default();
        let mut sandbox = sandbox;
        while sandbox.state != state {
            if sandbox.state == "failed" || (!sandbox.local_cause.is_empty() && sandbox.run == "stopped") {
                progress.end();
                bail!("sandbox {} is {}: {}", sandbox.id, sandbox.state, sandbox.state_reason);
            }
            if begun.elapsed() > WAIT_MAX {
                progress.end();
                bail!(
                    "sandbox {} is still {} ({}) after {} s; `roost-agent inspect {}` shows how it goes on",
                    sandbox.id,
                    sandbox.state,
                    waiting_for(&sandbox),
                    WAIT_MAX.as_secs(),
                    sandbox.id
                );
            }
            progress.show(begun, &sandbox);
            tokio::time::sleep(POLL).await;
            sandbox = self.inspect(&sandbox.id).await?;
        }
        progress.end();
        Ok(())
    }
}

/// What a sandbox on its way is waiting for, in words.
fn waiting_for(sandbox: &Sandbox) -> String {
    match sandbox.phase.as_str() {
        "launched" | "attached" if !sandbox.egress_attached => {
            "waiting for roost-dataplane egress".to_owned()
        }
        "launched" | "attached" if !sandbox.edge_attached => "waiting for roost-dataplane edge".to_owned(),
        "attached" => "the guest boots".to_owned(),
        "" => "not begun".to_owned(),
        phase => format!("step {phase} done"),
    }
}

/// One line on a terminal that says what is being waited for.
#[derive(Default)]
struct Progress {
    shown: bool,
}

impl Progress {
    fn show(&mut self, begun: Instant, sandbox: &Sandbox) {
        if begun.elapsed() > PATIENCE && std::io::stderr().is_terminal() {
            self.shown = true;
            let seconds = begun.elapsed().as_secs();
            eprint!("\r\x1b[K{} {} {seconds} s ({})", sandbox.id, sandbox.state, waiting_for(sandbox));
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.shown) {
            eprint!("\r\x1b[K");
        }
    }
}
