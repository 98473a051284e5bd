//! Creates and destroys without pause and says what grew.

use std::time::Duration;

use anyhow::ensure;
use clap::Args;

use super::report::{Figure, Report};
use crate::churn::{self, DAEMONS, Daemon, Outcome, Trial};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// How many sandboxes there are at once.
    #[arg(long, default_value_t = 16)]
    sandboxes: usize,
    /// How many of them boot at a time.
    #[arg(long, default_value_t = 2)]
    at_once: usize,
}

pub(super) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let &Options { minutes, sandboxes, at_once } = options;
    println!("{minutes} minutes with {sandboxes} sandboxes, {at_once} booting at a time");
    let trial = Trial { time: Duration::try_from_secs_f64(minutes * 60.0)?, sandboxes, at_once };
    let outcome = churn::run(&trial)?;
    figures(&outcome, report);
    ensure!(outcome.growth.is_empty(), "grown:\n  {}", outcome.growth.join("\n  "));
    Ok(())
}

fn figures(outcome: &Outcome, report: &mut Report) {
    for (id, turns) in [("churn.turns.first", outcome.turns[0]), ("churn.turns.second", outcome.turns[1])] {
        report.add(Figure::count(id, "sandboxes created and destroyed in that half", turns));
    }
    type Part = (&'static str, &'static str, fn(&Daemon) -> u64);
    let parts: [Part; 4] = [
        ("churn.rss", "RSS in KiB", |daemon| daemon.rss_kib),
        ("churn.anonymous", "anonymous memory in KiB", |daemon| daemon.anonymous_kib),
        ("churn.descriptors", "descriptors", |daemon| daemon.descriptors),
        ("churn.threads", "threads", |daemon| daemon.threads),
    ];
    for name in DAEMONS {
        for (id, what, of) in parts {
            let [_, first, second] =
                outcome.looks.each_ref().map(|look| look.daemons.get(name).map(of).unwrap_or_default());
            report.add(beside(id, format!("{what} of {name}"), first, second));
        }
    }
    for (kind, second) in &outcome.looks[2].host {
        let first = outcome.looks[1].host.get(kind).copied().unwrap_or_default();
        report.add(beside("churn.host", (*kind).to_owned(), first, *second));
    }
}

/// The end of the second half beside that of the first.
fn beside(id: &'static str, what: String, first: u64, second: u64) -> Figure {
    let count = usize::try_from(second).unwrap_or(usize::MAX);
    Figure { control: Some(first as f64), ..Figure::count(id, what, count) }
}
