//! `scripts/quickstart` after its shell part: one stack, the tour, and then it stays up.
//!
//! Prints for a person who has never seen Roost. Leaves nothing behind, however it ends.

pub mod interrupt;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Parser;

use crate::stack::place::Place;
use crate::stack::{Stack, Wish};
use crate::tour;
use interrupt::Interrupt;

/// How soon Ctrl-C or a process that does not stay up is noticed.
const GLANCE: Duration = Duration::from_millis(200);

/// A whole Roost on this machine, for development: starts it, shows what it does, and stays up until Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "scripts/quickstart", max_term_width = 100)]
pub struct Arguments {
    /// End after the tour: 0 only if every step held and nothing is left on the machine.
    #[arg(long)]
    exit: bool,
    /// The clone to run from.
    #[arg(long, value_name = "DIRECTORY", default_value = ".", hide = true)]
    clone: PathBuf,
}

/// Runs it; the exit code is for the shell.
pub fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nquickstart: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let interrupt = Interrupt::catch()?;
    let begun = Instant::now();
    let stack = Stack::start(Place::of_clone(&arguments.clone)?, &Wish::default())?;
    println!(
        "Roost is up after {:.1} s; logs and state in {}\n",
        begun.elapsed().as_secs_f32(),
        stack.place().root.display()
    );
    tour::run(&stack, &interrupt)?;
    if !arguments.exit {
        print_invitation(&stack)?;
        wait_for_interrupt(&stack, &interrupt)?;
        println!("\nstopping …");
    }
    stop(stack)
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
    let agent = stack.agent()?.shown();
    println!(
        "\nRoost stays up until Ctrl-C. In another terminal, as root:\n\n\
         \x20 alias roost={agent:?}\n\
         \x20 roost run                      # boots a sandbox and prints its id\n\
         \x20 roost exec SANDBOX -- uname -a # an unambiguous start of the id will do\n\
         \x20 roost doctor                   # what this machine can and cannot do\n"
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
