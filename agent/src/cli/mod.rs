//! The operator's command line, and the daemon's side of it.
//!
//! The client half speaks to a running daemon over its packet socket; it never touches the host or the database
//! itself. `serve` is the daemon.

mod client;
mod exec;
pub mod server;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use roost_proto::local::{self, request::Request as Ask};

use crate::config::Config;

/// Runs sandboxes in microVMs on this host.
///
/// Start the daemon with `serve`; every other command talks to it. Commands that change a sandbox work on local ones
/// (made by `run`); a tenant's sandboxes are changed through the scheduler's REST API only, but can be looked at and
/// entered here, which is written to the tenant's audit log.
#[derive(Debug, Parser)]
#[command(name = "roost-agent", version, max_term_width = 100)]
pub struct Cli {
    /// Configuration file (TOML).
    #[arg(long, global = true, default_value = "/etc/roost/agent.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The daemon: keeps this host's sandboxes as they are wanted.
    Serve,
    /// Boots a local sandbox, never reported and never billed, and waits until it runs.
    #[command(
        after_help = "Example: roost-agent run --memory-mib 256 && roost-agent exec sbx_… -- python3 -c 'print(1)'"
    )]
    Run(RunArgs),
    /// Lists the sandboxes of this host.
    Ps {
        /// As JSON, one object a line.
        #[arg(long)]
        json: bool,
    },
    /// Shows all that is known of one sandbox.
    Inspect {
        /// Sandbox or execution; the beginning of a sandbox's id will do.
        id: String,
    },
    /// Runs a command in a sandbox; exits with its exit code.
    #[command(
        after_help = "Examples:\n  roost-agent exec sbx_… -- uname -a\n  echo hi | roost-agent exec -i sbx_… -- cat\n  roost-agent exec --shell sbx_… 'seq 3 | wc -l'"
    )]
    Exec(exec::ExecArgs),
    /// Keeps memory and disk, frees the VM.
    Pause {
        /// A local sandbox.
        id: String,
    },
    /// Starts a paused or stopped sandbox.
    Resume {
        /// A local sandbox.
        id: String,
    },
    /// Keeps the disk, frees the VM; memory is lost.
    Stop {
        /// A local sandbox.
        id: String,
    },
    /// Removes a sandbox with its disk.
    Destroy {
        /// A local sandbox.
        id: String,
    },
    /// Shows what sandboxes have used.
    Usage {
        /// One sandbox; all if left out.
        id: Option<String>,
    },
    /// Shows the last output of a guest's serial console, as the guest wrote it.
    Console {
        /// Sandbox or execution.
        id: String,
    },
    /// Says for each need of a host whether it is met and how to meet it.
    Doctor {
        /// As JSON, one object a line.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Image to boot from, by the name of its directory.
    #[arg(long, default_value = "miosa-sandbox")]
    template: String,
    /// Virtual CPUs, 1 to 32.
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// Memory, at least 128.
    #[arg(long, default_value_t = 256)]
    memory_mib: u64,
    /// Disk, at least 64.
    #[arg(long, default_value_t = 1024)]
    disk_mib: u64,
    /// Host name in the guest; made from the sandbox's id when left out.
    #[arg(long, default_value = "")]
    host_name: String,
    /// Environment of every process of the sandbox, `NAME=value`; may be repeated.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = parse_environment)]
    environment: Vec<(String, String)>,
    /// Return as soon as the wish is recorded.
    #[arg(long)]
    no_wait: bool,
}

pub(crate) fn parse_environment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !name.contains('\0') => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err(format!("{text:?} is not NAME=value")),
    }
}

/// Runs the command line; the exit code is the command's, or 1 with one sentence on stderr.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("roost-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let config: Config = roost_daemon::config::load(&cli.config)?;
    if matches!(cli.command, Command::Serve) {
        crate::serve::run(config)?;
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(command(&config, cli.command))
}

async fn command(config: &Config, command: Command) -> anyhow::Result<ExitCode> {
    if let Command::Doctor { json } = command {
        return doctor(config, json).await;
    }
    let mut client = client::Client::connect(&config.cli_socket()).await?;
    match command {
        Command::Serve | Command::Doctor { .. } => unreachable!("handled above"),
        Command::Run(args) => return run_sandbox(&mut client, args).await,
        Command::Ps { json } => show::sandboxes(&client.list().await?, json),
        Command::Inspect { id } => show::sandbox(&client.inspect(&id).await?),
        Command::Exec(args) => return exec::run(&mut client, args).await,
        Command::Pause { id } => change(&mut client, id, "paused").await?,
        Command::Resume { id } => change(&mut client, id, "running").await?,
        Command::Stop { id } => change(&mut client, id, "stopped").await?,
        Command::Destroy { id } => change(&mut client, id, "destroyed").await?,
        Command::Usage { id } => show::usage(&client.usage(id.unwrap_or_default()).await?),
        Command::Console { id } => {
            use std::io::Write;
            std::io::stdout().write_all(&client.console(id).await?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_sandbox(client: &mut client::Client, args: RunArgs) -> anyhow::Result<ExitCode> {
    let wish = local::Run {
        template: args.template,
        vcpus: args.vcpus,
        memory_mib: args.memory_mib,
        disk_mib: args.disk_mib,
        host_name: args.host_name,
        environment: args.environment.into_iter().collect(),
    };
    let sandbox = client.sandbox(Ask::Run(wish)).await?;
    let id = sandbox.id.clone();
    if !args.no_wait {
        client.wait_for(sandbox, "running").await?;
    }
    println!("{id}");
    Ok(ExitCode::SUCCESS)
}

async fn change(client: &mut client::Client, id: String, run: &str) -> anyhow::Result<()> {
    let sandbox = client.sandbox(Ask::Change(local::Change { id, run: run.to_owned() })).await?;
    client.wait_for(sandbox, run).await
}

/// Works without a daemon too: most of what is missing on a host keeps the daemon from starting.
async fn doctor(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let findings = match client::Client::connect(&config.cli_socket()).await {
        Ok(mut client) => client.doctor().await?,
        Err(_) => crate::doctor::examine(config, None).await,
    };
    let missing = findings.iter().any(|finding| finding.level == "missing");
    show::findings(&findings, json);
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
