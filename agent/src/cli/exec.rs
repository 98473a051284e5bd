//! `roost-agent exec`: one process in a guest, over the guest gateway.
//!
//! The bytes of the guest go from edge to this process, past the agent.

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use hyper_util::rt::TokioIo;
use roost_proto::guest::exec_input::Input;
use roost_proto::guest::exec_output::Output;
use roost_proto::guest::{ExecInput, ExecStart};
use roost_proto::host::gateway_client::GatewayClient;
use roost_proto::local;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

use super::client::Client;

const STDIN_CHUNK_BYTES: usize = 64 * 1024;

#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// Sandbox or execution.
    id: String,
    /// Pass standard input on.
    #[arg(short, long)]
    interactive: bool,
    /// Run the one argument as text of a shell.
    #[arg(long)]
    shell: bool,
    /// User in the guest, by name or number.
    #[arg(short, long, default_value = "")]
    user: String,
    /// Working directory in the guest.
    #[arg(short = 'C', long, default_value = "")]
    cwd: String,
    /// A variable for this command, `NAME=value`; may be repeated.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = super::parse_environment)]
    environment: Vec<(String, String)>,
    /// End the command after this many seconds; 0 is never.
    #[arg(long, default_value_t = 0)]
    timeout_s: u64,
    /// Program and arguments.
    #[arg(required = true, last = false, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(super) async fn run(client: &mut Client, args: ExecArgs) -> anyhow::Result<ExitCode> {
    if args.shell && args.command.len() != 1 {
        bail!("--shell takes exactly one argument, the shell text: quote it");
    }
    let wish = local::Exec {
        id: args.id.clone(),
        actor: format!("uid:{}", nix::unistd::getuid()),
        command: args.command.join(" ").chars().take(1024).collect(),
    };
    let mut gateway = connect(client.open_gateway(wish).await?).await?;
    let start = ExecStart {
        argv: if args.shell { Vec::new() } else { args.command.clone() },
        shell: if args.shell { args.command[0].clone() } else { String::new() },
        working_directory: args.cwd,
        environment: args.environment.into_iter().collect(),
        user: args.user,
        deadline_ms: args.timeout_s.saturating_mul(1000),
        stdin: args.interactive,
        ..ExecStart::default()
    };
    let (inputs, receiver) = mpsc::channel(4);
    inputs.send(ExecInput { input: Some(Input::Start(start)) }).await?;
    let outputs = gateway
        .exec(tokio_stream::wrappers::ReceiverStream::new(receiver))
        .await
        .map_err(|status| anyhow::anyhow!("{}", status.message()))?
        .into_inner();
    // Held for as long as the call: closing the input would be taken for hanging up.
    let feeder = tokio::spawn(feed(inputs, args.interactive));
    let code = relay(outputs).await;
    feeder.abort();
    code
}

async fn connect(stream: OwnedFd) -> anyhow::Result<GatewayClient<Channel>> {
    let stream = std::os::unix::net::UnixStream::from(stream);
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    let mut once = Some(stream);
    let connector = tower::service_fn(move |_| {
        let stream =
            once.take().map(TokioIo::new).ok_or_else(|| std::io::Error::other("the stream is used up"));
        std::future::ready(stream)
    });
    let channel = Endpoint::from_static("http://guest.invalid")
        .connect_with_connector(connector)
        .await
        .context("speaking to the guest gateway")?;
    Ok(GatewayClient::new(channel))
}

async fn feed(inputs: mpsc::Sender<ExecInput>, interactive: bool) {
    if interactive {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; STDIN_CHUNK_BYTES];
        loop {
            let input = match stdin.read(&mut buffer).await {
                Ok(0) | Err(_) => Input::StdinClose(true),
                Ok(count) => Input::Stdin(bytes::Bytes::copy_from_slice(&buffer[..count])),
            };
            let last = matches!(input, Input::StdinClose(_));
            if inputs.send(ExecInput { input: Some(input) }).await.is_err() || last {
                break;
            }
        }
    }
    inputs.closed().await;
}

async fn relay(mut outputs: tonic::Streaming<roost_proto::guest::ExecOutput>) -> anyhow::Result<ExitCode> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(message) =
        outputs.message().await.map_err(|status| anyhow::anyhow!("{}", status.message()))?
    {
        match message.output {
            Some(Output::Stdout(bytes)) => stdout.write_all(&bytes).await?,
            Some(Output::Stderr(bytes)) => stderr.write_all(&bytes).await?,
            Some(Output::Exited(exited)) => {
                stdout.flush().await?;
                stderr.flush().await?;
                if exited.timed_out {
                    eprintln!("roost-agent: the command ran into its time limit");
                }
                return Ok(ExitCode::from(u8::try_from(exited.exit_code).unwrap_or(u8::MAX)));
            }
            Some(Output::Started(_)) | None => {}
        }
    }
    bail!("the guest went away before the command ended")
}
