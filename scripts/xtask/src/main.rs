//! `cargo xtask`: the checks that every change passes, beside the compiler's and the tests'.
//!
//! `check` is what CI runs: formatting, clippy, the tidy rules and the licences of every dependency.

#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "starting cargo and git is what this tool is for")]

mod bench;
mod licences;
mod metadata;
mod run;
mod sabotage;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Checks of this repository")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Formatting, clippy, tidy rules, licences.
    Check {
        /// Without clippy.
        #[arg(long)]
        quick: bool,
    },
    /// The rules of ARCHITECTURE.md that no compiler knows.
    Tidy,
    /// Licences and bans over the whole dependency tree, by deny.toml.
    Licences,
    /// Measures against a control in the same run: create, egress, crash. `cargo xtask bench --help` lists them.
    #[command(disable_help_flag = true)]
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Switches each defence off in turn and sees that a test fails for it.
    Sabotage(sabotage::Options),
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let result = root().and_then(|root| match &command {
        Command::Check { quick } => run::check(&root, *quick),
        Command::Tidy => tidy::run(&root),
        Command::Licences => licences::run(&root),
        Command::Bench { arguments } => bench::run(&root, arguments),
        Command::Sabotage(options) => sabotage::run(&root, options),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace: two levels above this package.
fn root() -> anyhow::Result<PathBuf> {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = package.ancestors().nth(2).context("xtask lies two levels below the workspace")?;
    Ok(root.to_owned())
}
