//! `scripts/quickstart` after its shell part: one stack, the tour, and then it stays up.
//!
//! Prints for a person who has never seen Roost. Leaves nothing behind, however it ends.

pub mod environment;
pub mod interrupt;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Parser;

use crate::stack::place::Place;
use crate::stack::{Allowed, PREVIEW_DOMAIN, Stack, Wish};
use crate::tour;
use crate::upstream::Upstream;
use interrupt::Interrupt;

/// Exit code of a program that SIGINT ended, as shells have it.
const INTERRUPTED: u8 = 130;
/// How soon Ctrl-C or a process that does not stay up is noticed.
const GLANCE: Duration = Duration::from_millis(200);

/// A whole Roost on this machine, for development: starts it, shows what it does, and stays up until Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "scripts/quickstart", max_term_width = 100)]
pub struct Arguments {
    /// End after the tour: 0 only if every step held and nothing is left on the machine.
    #[arg(long)]
    exit: bool,
    /// Instead of the tour, run this command with the API's address and key in its environment (ROOST_API_URL,
    /// ROOST_API_KEY, MIOSA_BASE_URL, MIOSA_API_KEY, ROOST_CA_FILE, SSL_CERT_FILE, ROOST_PREVIEW_DOMAIN); its exit
    /// code is the quickstart's.
    #[arg(long, num_args = 1.., value_name = "COMMAND", allow_hyphen_values = true, conflicts_with = "exit")]
    exec: Vec<String>,
    /// The clone to run from.
    #[arg(long, value_name = "DIRECTORY", default_value = ".", hide = true)]
    clone: PathBuf,
}

/// Runs it; the exit code is for the shell.
pub fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("\nquickstart: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let interrupt = Interrupt::catch()?;
    let begun = Instant::now();
    let upstream = Upstream::start()?;
    let wish = Wish { upstream: Some(Allowed::from(&upstream)), ..Wish::default() };
    let stack = Stack::start(Place::of_clone(&arguments.clone)?, &wish)?;
    println!(
        "Roost is up after {:.1} s; logs and state in {}\n",
        begun.elapsed().as_secs_f32(),
        stack.place().root.display()
    );
    if let Some((program, rest)) = arguments.exec.split_first() {
        let code = environment::run(&stack, program, rest)?;
        stop(stack)?;
        return Ok(code);
    }
    let toured = tour::run(&stack, &upstream, &interrupt);
    if interrupt.came() {
        println!("\ninterrupted, stopping …");
        stop(stack)?;
        return Ok(INTERRUPTED);
    }
    toured?;
    if !arguments.exit {
        print_invitation(&stack)?;
        wait_for_interrupt(&stack, &interrupt)?;
        println!("\nstopping …");
    }
    stop(stack)?;
    Ok(0)
}

fn stop(stack: Stack) -> anyhow::Result<()> {
    let verdict = stack.stop()?;
    if !verdict.left.is_empty() {
        bail!("this was left on the machine (and is removed now):\n  {}", verdict.left.join("\n  "));
    }
    println!("Stopped: no process, network namespace, tap, cgroup, mount or file in /dev/shm is left.");
    for line in verdict.complaints {
        println!("  logged on the way: {line}");
    }
    Ok(())
}

fn print_invitation(stack: &Stack) -> anyhow::Result<()> {
    let tenant = stack.tenant();
    let (base, key, root) = (tenant.base(), &tenant.key, stack.place().preview_root());
    let agent = stack.agent()?.shown();
    println!(
        "\nRoost stays up until Ctrl-C.\n\n\
         \x20 API      {base}\n\
         \x20 key      {key}\n\
         \x20 CA file  {root}   (previews: *.{PREVIEW_DOMAIN}:{port})\n\n\
         Three things to try in another terminal:\n\n\
         1. Your own sandbox, from the shell:\n\
         \x20    curl -H 'Authorization: Bearer {key}' '{base}/sandboxes?wait=60' --json '{{\"external_user_id\":\"me\"}}'\n\
         2. The Python SDK (pip install miosa), unchanged:\n\
         \x20    MIOSA_BASE_URL={base} MIOSA_API_KEY={key} SSL_CERT_FILE={root} python3\n\
         3. The host operator's side, as root:\n\
         \x20    {agent} ps        # or doctor, run, exec, inspect\n",
        root = root.display(),
        port = stack.ports().preview,
    );
    Ok(())
}

fn wait_for_interrupt(stack: &Stack, interrupt: &Interrupt) -> anyhow::Result<()> {
    while !interrupt.came() {
        if let Some(ended) = stack.find_ended() {
            bail!("{ended}");
        }
        std::thread::sleep(GLANCE);
    }
    Ok(())
}
