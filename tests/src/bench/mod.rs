//! `cargo xtask bench`: measurements that are ratios against a control in the same run, and trials by fire.
//!
//! Owns the command line and how figures are written down (`report`). Each measurement is a module of its own; none
//! states an absolute time as a goal.

mod churn;
mod crash;
mod create;
mod egress;
pub mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use report::Report;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Also write the figures to this file, as a JSON list of {id, what, value, control, ratio, n, p50, p95}.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Creation and resume through the API, against the bare VMM.
    Create(create::Options),
    /// The egress proxy, against nginx.
    Egress(egress::Options),
    /// Kills processes at random under load and says what was lost, doubled or leaked.
    Crash(crash::Options),
    /// Creates and destroys without pause and says what grew.
    Churn(churn::Options),
}

/// Runs one measurement; the exit code says whether it could be taken and what it demands held.
pub fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nbench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut report = Report::default();
    let outcome = match &arguments.command {
        Command::Create(options) => create::run(options, &mut report),
        Command::Egress(options) => egress::run(options, &mut report),
        Command::Crash(options) => crash::run(options, &mut report),
        Command::Churn(options) => churn::run(options, &mut report),
    };
    // What was measured is told also when it is not as it should be.
    report.print();
    if let Some(path) = &arguments.json {
        report.write_json(path)?;
    }
    outcome
}
