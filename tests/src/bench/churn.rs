//! churn.

use clap::Args;

use super::report::Report;

#[derive(Debug, Args)]
pub(super) struct Options {}

pub(super) fn run(_: &Options, _: &mut Report) -> anyhow::Result<()> {
    anyhow::bail!("not written")
}
