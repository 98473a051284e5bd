//! `roost-dataplane edge|egress`: takes what needs root, gives root up, serves.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use roost_daemon::telemetry;
use roost_dataplane::control::Role;
use roost_dataplane::{config, confine, directory, edge, egress};

/// The unprivileged half of a Roost host: everything that handles bytes of guests and browsers.
///
/// The agent starts with root; this process must not. Started as root it makes its own directories, then changes to
/// its own uid without capabilities and filters its system calls for good; started as that uid it only does the
/// latter. It listens on a control socket, where the agent (checked by uid) attaches executions by handing over
/// their sockets. It keeps them while the agent restarts.
#[derive(Debug, Parser)]
#[command(version, after_long_help = EXAMPLE)]
struct Arguments {
    #[command(subcommand)]
    role: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bytes to guests: the guest gateway (exec, files, terminals) and previews.
    #[command(after_long_help = EXAMPLE)]
    Edge(Options),
    /// Bytes from guests: their TCP connections and DNS, credentials, audit.
    #[command(after_long_help = EXAMPLE)]
    Egress(Options),
}

#[derive(Debug, Args)]
struct Options {
    /// The settings file (TOML); unknown keys are refused.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

const EXAMPLE: &str = r#"A settings file, with every default spelled out:

  [process]
  directory = "/var/lib/roost/edge"              # its own, mode 0700: keys, certificates
  control_socket = "/run/roost/edge/control.sock" # in a directory of its own; at most 107 bytes
  agent_uid = 0                                  # who may connect to it
  uid = 60601                                    # edge 60601, egress 60600
  gid = 60601

  [log]
  level = "info"                                 # or ROOST_LOG in the environment
  format = "text"                                # or "json"

  [health]                                       # optional: /healthz /readyz /metrics
  listen = "127.0.0.1:9602"

  [scheduler]                                    # optional; after the host has joined a fleet
  address = "scheduler.example:7440"

  [gateway]                                      # edge, optional: exec and files for the scheduler, mutual TLS
  listen = "0.0.0.0:7443"

  [preview]                                      # edge, optional: previews for browsers
  listen = ["0.0.0.0:443", "[::]:443"]
  certificate_file = "/etc/roost/preview.pem"    # else the development certificate that came with joining
  key_file = "/etc/roost/preview.key"
  brand = "miosa"                                # in token prefixes, the token header, the cookie's name
  cookie_isolation = "off"                       # "strict" hides cookies of the parent domain from previews

  [egress]                                       # egress, optional: what holds for every guest of the host
  bypass = ["pinned.example.com"]                # TLS passed through uninspected; no credentials there
  upstream_roots = [{ host = "*.corp.example", file = "/etc/roost/corp-roots.pem" }]
  hosts = [{ name = "git.corp.example", addresses = ["10.1.2.3"] }]
  floor_exceptions = [{ name = "git.corp.example", port = 443, cidr = "10.1.2.0/24" }]
  own_addresses = ["198.41.0.4/32"]              # never dialled for a guest

  [egress.policy]
  default_effect = "allow"                       # or "deny": only what a rule allows
  mail = false                                   # ports 25, 465, 587 where no rule says otherwise
  rules = [{ effect = "deny", host = "*.example.net", ports = [443] }]

Files in the directory: edge.key and edge.csr are made here, the agent puts edge.pem and roots.pem beside them;
they are loaded when they appear and when they change. The same for egress, and egress-ca.* for inspecting TLS.
Signals: SIGTERM and SIGINT drain and stop. See roost-agent doctor for what a host needs."#;

fn main() -> ExitCode {
    let (role, options) = match Arguments::parse().role {
        Command::Edge(options) => (Role::Edge, options),
        Command::Egress(options) => (Role::Egress, options),
    };
    match run(role, &options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("roost-dataplane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(role: Role, options: &Options) -> anyhow::Result<()> {
    let settings = config::load(&options.config, role)?;
    telemetry::init(&settings.log)?;
    let identity = settings.identity(role);
    let process = &settings.process;
    directory::ensure_own(&process.directory, identity)?;
    let socket_directory = process.control_socket.parent().context("control_socket has no directory")?;
    directory::ensure_own(socket_directory, identity)?;
    let ports = edge::Ports::take(&settings)?;
    confine::enter(identity)?;
    let _lock = directory::lock(&process.directory)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        match role {
            Role::Edge => edge::run(settings, ports).await.context("edge"),
            Role::Egress => egress::run(settings).await.context("egress"),
        }
    })
}
