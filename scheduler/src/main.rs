//! `roost-scheduler`: the daemon, and the operator's commands to it.

#![forbid(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use roost_daemon::shutdown::Shutdown;
use roost_scheduler::config::Config;
use roost_scheduler::{admin, serve};

const USUAL_CONFIG: &str = "/etc/roost/scheduler.toml";

/// Runs and administers a Roost scheduler: tenants, their keys, and the hosts that run their sandboxes.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
First steps on one machine:
  roost-scheduler serve --config /etc/roost/scheduler.toml &
  roost-scheduler admin tenant create Acme
  roost-scheduler admin key create --tenant acme          # prints msk_live_…, once
  roost-scheduler admin host token > /etc/roost/join      # for the agent's join_token_file

Everything in the settings file has a default; an empty file serves the API on 127.0.0.1:8480 from SQLite in
/var/lib/roost/scheduler. ROOST_LOG overrides the log level."
)]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the scheduler until it is told to stop.
    Serve {
        /// The settings file; when left out /etc/roost/scheduler.toml, and all defaults without that one.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Ask the running scheduler to do something, over its unix socket.
    Admin {
        /// The settings file, to find the socket; found like that of `serve`.
        #[arg(long, global = true)]
        config: Option<PathBuf>,
        /// The socket itself, instead of the one in the settings file.
        #[arg(long, global = true)]
        socket: Option<PathBuf>,
        /// Print the whole answer as JSON.
        #[arg(long, global = true)]
        json: bool,
        #[command(subcommand)]
        command: admin::Command,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("roost-scheduler: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn load(asked: Option<&Path>) -> Result<Config, roost_daemon::config::Error> {
    roost_daemon::config::load_or_default(asked, Path::new(USUAL_CONFIG))
}

fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Serve { config } => {
            let config = load(config.as_deref())?;
            roost_daemon::telemetry::init(&config.log)?;
            roost_daemon::dumps::forbid()?;
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(async { serve::run(config, Shutdown::on_signals()?).await })
        }
        Verb::Admin { config, socket, json, command } => {
            let socket = match socket {
                Some(socket) => socket,
                None => load(config.as_deref())?.admin_socket,
            };
            let answer = admin::call(&socket, &command)?;
            let mut out = std::io::stdout().lock();
            let text = if json { serde_json::to_string(&answer)? } else { answer.text() };
            writeln!(out, "{text}").context("write the answer")?;
            if let (Some(note), false) = (answer.note(), json) {
                eprintln!("{note}");
            }
            Ok(())
        }
    }
}
