//! `cargo xtask sabotage`: each defence switched off in turn, and a test that fails because of it.
//!
//! ```text
//! build once ─▶ control: nothing off, every test passes ─▶ for each defence: off, its tests fail
//! ```
//! Owns the order and what is printed; which defence is noticed by which test stands in `sabotage.toml`. Must not
//! leave a binary without its defences where anything but these runs takes it from.

mod build;
mod table;
mod verdict;

use std::path::Path;
use std::time::Instant;

use anyhow::bail;
use clap::Args;

use build::Build;
use table::{Row, Table};
use verdict::Verdict;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Print the defences, where they are and which tests notice, and run nothing.
    #[arg(long)]
    list: bool,
    /// These defences alone.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// A part that takes about a minute after the build.
    #[arg(long, conflicts_with = "only")]
    quick: bool,
    /// Build, and leave the daemons in target/sabotage: with no defence switched off they do what others do.
    #[arg(long, conflicts_with_all = ["list", "only", "quick"])]
    build_only: bool,
}

pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let table = Table::read()?;
    let rows = table.select(&options.only, options.quick)?;
    if options.list {
        rows.iter().for_each(list);
        return Ok(());
    }
    let begun = Instant::now();
    let build = build::build(root)?;
    eprintln!("xtask: sabotage: built in {:.1} s", begun.elapsed().as_secs_f64());
    if options.build_only {
        println!("{}", build.directory.display());
        return Ok(());
    }
    check_control(&build, &rows)?;
    let mut failed = 0;
    let attempts: Vec<_> =
        rows.iter().flat_map(|row| row.tests.iter().map(move |test| (row, test))).collect();
    for (row, test) in &attempts {
        let begun = Instant::now();
        let verdict = Verdict::of(&build.run(Some(&row.name), &[test])?);
        let (word, detail) = verdict.words();
        println!("{:<22} {:<10} {:>5.1} s  {test}", row.name, word, begun.elapsed().as_secs_f64());
        println!("{:<22} {detail}", "");
        failed += usize::from(!matches!(verdict, Verdict::Caught { .. }));
    }
    println!("{} passed, {failed} failed", attempts.len() - failed);
    if failed == 0 {
        Ok(())
    } else {
        bail!("{failed} of {} were not noticed as they should be", attempts.len())
    }
}

fn list(row: &Row) {
    println!("{:<22} {}", row.name, row.says);
    println!("{:<22} {}", "", row.place);
    row.tests.iter().for_each(|test| println!("{:<22} {test}", ""));
}

/// The same build with every defence on passes the same tests: what fails later fails for the defence.
fn check_control(build: &Build, rows: &[Row]) -> anyhow::Result<()> {
    let mut tests: Vec<_> = rows.iter().flat_map(|row| &row.tests).collect();
    tests.sort_unstable();
    tests.dedup();
    let begun = Instant::now();
    let ended = build.run(None, &tests)?;
    if let Err(why) = verdict::check_control(&ended, tests.len()) {
        bail!("the control failed, so nothing is proven: {why}\n{}", ended.output);
    }
    println!(
        "{:<22} {:<10} {:>5.1} s  {} tests pass with every defence on",
        "control",
        "ok",
        begun.elapsed().as_secs_f64(),
        tests.len()
    );
    Ok(())
}
