//! What a program of the product does with what it cannot do: ends with an error code and one sentence on stderr.

use anyhow::{Context, ensure};

use crate::program::{self, Outcome};

/// Words that belong to a programmer, not to whoever typed the command.
const JARGON: &[&str] =
    &["panicked", "Caused by", "stack backtrace", "RUST_BACKTRACE", "Error:", "unwrap", "os error 0"];

/// Runs the program as somebody would who has asked for backtraces.
pub fn run(mut command: std::process::Command) -> anyhow::Result<Outcome> {
    command.env("RUST_BACKTRACE", "full").env("RUST_LIB_BACKTRACE", "1").env_remove("ROOST_LOG");
    program::run(command, b"")
}

/// An error unless the program refused in one sentence that has all of `named` in it.
pub fn check(program: &str, outcome: &Outcome, named: &[&str]) -> anyhow::Result<()> {
    let said = outcome.complaint();
    let sentence = sentence(program, outcome).with_context(|| format!("it said: {said}"))?;
    for word in JARGON {
        ensure!(!said.contains(word), "{word:?} in what it said: {said}");
    }
    for word in named {
        ensure!(sentence.contains(word), "{word:?} is not in what it said: {said}");
    }
    Ok(())
}

fn sentence(program: &str, outcome: &Outcome) -> anyhow::Result<String> {
    let said = outcome.complaint();
    ensure!(outcome.stdout.is_empty(), "it printed {:?} as if it had done something", outcome.text());
    match outcome.code {
        // What a daemon logged before it gave up may come first.
        1 => {
            let last = said.lines().last().context("it said nothing")?;
            ensure!(
                last.starts_with(&format!("{program}: ")),
                "its last line is not a sentence of {program}"
            );
            Ok(last.to_owned())
        }
        // The command line itself was wrong: the sentence, how it is used, where more is said.
        2 => {
            ensure!(
                said.starts_with("error: ") && said.contains("--help"),
                "it does not teach how it is used"
            );
            Ok(said)
        }
        code => anyhow::bail!("it ended with {code}"),
    }
}
