//! Kills processes at random under load and says what was lost, doubled or leaked.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;

use super::report::{Figure, Report};
use crate::crash::check::Kind;
use crate::crash::schedule::Target;
use crate::crash::{self, Outcome, Trial};

/// Names a directory with other builds of the binaries.
const OTHER_BINARIES: &str = "ROOST_OTHER_BINARIES";
const BINARIES: [&str; 3] = ["roost-agent", "roost-dataplane", "roost-scheduler"];
const FINDINGS_SHOWN: usize = 40;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// How many processes are killed.
    #[arg(long, default_value_t = 40)]
    kills: usize,
    /// Draws who is killed when; a run prints its own.
    #[arg(long)]
    seed: Option<u64>,
}

pub(super) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let others = other_binaries()?;
    println!(
        "{} kills, --seed {seed}; every second start runs {}",
        options.kills,
        others.directory.display()
    );
    let trial =
        Trial { kills: options.kills, seed, other_binaries: Some(others.directory.clone()), is_loud: true };
    let outcome = crash::run(&trial, |_, _| Ok(()))?;
    figures(&outcome, report);
    for finding in outcome.findings.0.iter().take(FINDINGS_SHOWN) {
        println!("{finding}");
    }
    ensure!(outcome.findings.0.is_empty(), "{} findings, --seed {seed}", outcome.findings.0.len());
    Ok(())
}

fn figures(outcome: &Outcome, report: &mut Report) {
    let Outcome { findings, ledger, books, kills, recovery, took } = outcome;
    for (id, kind) in [
        ("crash.lost", Kind::Lost),
        ("crash.doubled", Kind::Doubled),
        ("crash.leaked", Kind::Leaked),
        ("crash.wrong", Kind::Wrong),
    ] {
        report.add(Figure::count(
            id,
            format!("{kind:?} after {} kills", total(outcome)),
            findings.count(kind),
        ));
    }
    for target in Target::ALL {
        let count = kills.get(&target).copied().unwrap_or_default();
        report.add(Figure::count(id_of(target).0, format!("kills of {}", target.name()), count));
        if let Some(samples) = recovery.get(&target) {
            let what = format!("s until commands ran again, {} killed", target.name());
            report.add(Figure::of(id_of(target).1, what, samples, None));
        }
    }
    let aborted = books.scheduler.events.iter();
    let aborted = aborted.filter(|event| event.rejected_by.as_deref() == Some("aborted")).count();
    let lines = ledger.sandboxes.values().map(|sandbox| sandbox.lines.acknowledged.len()).sum();
    for (id, what, count) in [
        ("crash.usage_rows", "rows of usage, the same on both sides", books.agent.deltas.len()),
        ("crash.audit_rows", "audit rows of calls, each call one", books.scheduler.events.len()),
        ("crash.aborted", "of them aborted by a kill of egress", aborted),
        (
            "crash.calls_seen",
            "calls the world outside saw",
            ledger.calls.values().filter(|call| call.seen > 0).count(),
        ),
        ("crash.execs", "commands answered", ledger.execs),
        ("crash.lines", "lines acknowledged, all found", lines),
        ("crash.sandboxes", "sandboxes created and destroyed", books.scheduler.sandboxes.len()),
        ("crash.executions", "executions", books.agent.executions.len()),
        ("crash.pauses", "pauses whose memory came back", ledger.pauses),
        ("crash.shares", "shares minted", ledger.shares.acknowledged),
        ("crash.rotations", "values the secret had", ledger.secrets.acknowledged),
        ("crash.seconds", "s the whole trial took", usize::try_from(took.as_secs()).unwrap_or_default()),
    ] {
        report.add(Figure::count(id, what, count));
    }
}

fn total(outcome: &Outcome) -> usize {
    outcome.kills.values().sum()
}

fn id_of(target: Target) -> (&'static str, &'static str) {
    match target {
        Target::Agent => ("crash.kills.agent", "crash.recovery.agent"),
        Target::Egress => ("crash.kills.egress", "crash.recovery.egress"),
        Target::Edge => ("crash.kills.edge", "crash.recovery.edge"),
        Target::Scheduler => ("crash.kills.scheduler", "crash.recovery.scheduler"),
        Target::Vmm => ("crash.kills.vmm", "crash.recovery.vmm"),
    }
}

/// The builds for every second start; copies of these go when the trial is over.
struct Others {
    directory: PathBuf,
    is_copy: bool,
}

impl Drop for Others {
    fn drop(&mut self) {
        if self.is_copy {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

fn other_binaries() -> anyhow::Result<Others> {
    let own = std::env::current_exe()?;
    let target = own.parent().context("this program is in no directory")?;
    let named = std::env::var_os(OTHER_BINARIES).map(PathBuf::from);
    let built = target.parent().map(|parent| parent.join("sabotage"));
    let has_all = |directory: &Path| BINARIES.iter().all(|name| directory.join(name).exists());
    if let Some(directory) = named.or(built).filter(|directory| has_all(directory)) {
        return Ok(Others { directory, is_copy: false });
    }
    let directory = target.join(format!("copies-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let others = Others { directory, is_copy: true };
    for name in BINARIES {
        std::fs::copy(target.join(name), others.directory.join(name))
            .with_context(|| format!("copying {name}"))?;
    }
    Ok(others)
}
