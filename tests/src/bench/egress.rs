//! The egress proxy against nginx: TLS in, a header put in, TLS out; one core for the proxy, one for all else.
//!
//! Both serve the same guest's load from the same upstream (an nginx of its own), in turns. `egress-yardstick`
//! stands the real process up in namespaces of its own; nginx gets a link into the same two namespaces.
//! Every answer must be 2xx, and with a credential the upstream checks that the value arrived.

mod load;
mod proxy;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;

use super::report::{Figure, Report, Samples};
use load::{Load, Measured, Tool, Way};
use proxy::Place;

/// Where the proxies run, and where the upstream, the load and the lab do.
const PROXY_CORE: usize = 0;
const OTHER_CORE: usize = 1;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// How long each measurement of one proxy lasts.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// How often the two proxies take turns, for each kind of load.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
}

const SMALL: Load = Load { path: "/1k", credential: false, connections: 16, tool: Tool::KeepAlive };

/// Kind of load, ids and names of its figures.
const KINDS: [(Load, [&str; 2], &str); 6] = [
    (SMALL, ["egress.small", "egress.small.cpu"], "1 KiB, keep-alive"),
    (Load { connections: 64, ..SMALL }, ["egress.many", "egress.many.cpu"], "1 KiB, keep-alive"),
    (
        Load { path: "/secret/1k", credential: true, ..SMALL },
        ["egress.secret", "egress.secret.cpu"],
        "1 KiB, keep-alive, credential put in",
    ),
    (Load { path: "/1m", ..SMALL }, ["egress.large", "egress.large.cpu"], "1 MiB, keep-alive"),
    (
        Load { tool: Tool::Resuming, ..SMALL },
        ["egress.resumed", "egress.resumed.cpu"],
        "1 KiB, a new connection each, TLS session resumed",
    ),
    (
        Load { tool: Tool::Handshaking, connections: 1, ..SMALL },
        ["egress.handshake", "egress.handshake.cpu"],
        "1 KiB, a new connection each, full TLS handshake",
    ),
];

pub(super) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    ensure!(
        std::thread::available_parallelism()?.get() > OTHER_CORE,
        "two cores are needed: one for the proxy, one for all else"
    );
    let place = Place::build(&binaries()?, PROXY_CORE, OTHER_CORE)?;
    let spell = Duration::from_secs(options.seconds);
    for (load, ids, what) in &KINDS {
        // Connections are opened, certificates made, leases asked for: what a proxy does once is not measured.
        for way in [Way::Egress, Way::Nginx] {
            load.run(&place, way, Duration::from_secs(1))?;
        }
        let [mut egress, mut nginx] = [Turns::default(), Turns::default()];
        for _ in 0..options.rounds {
            egress.push(load.run(&place, Way::Egress, spell)?);
            nginx.push(load.run(&place, Way::Nginx, spell)?);
        }
        add(report, load, *ids, what, &egress, &nginx);
    }
    Ok(())
}

/// What the rounds of one proxy gave.
#[derive(Debug, Default)]
struct Turns {
    per_s: Samples,
    mb_per_s: Samples,
    cpu_us: Samples,
    busy: Samples,
    p50_us: Samples,
}

impl Turns {
    fn push(&mut self, measured: Measured) {
        self.per_s.push(measured.requests / measured.seconds);
        self.mb_per_s.push(measured.bytes / measured.seconds / 1e6);
        self.cpu_us.push(measured.cpu_s * 1e6 / measured.requests);
        self.busy.push(measured.cpu_s / measured.seconds);
        self.p50_us.push(measured.p50_us);
    }
}

fn add(report: &mut Report, load: &Load, ids: [&'static str; 2], what: &str, egress: &Turns, nginx: &Turns) {
    let Load { connections, .. } = load;
    let of_core = |turns: &Turns| (turns.busy.p50() * 100.0).round();
    // A proxy whose core is not busy was held back by the load or the upstream: then only CPU-µs compare.
    let detail = format!(
        "{connections} at once; core {} % busy, nginx {} %; p50 {:.2} ms, nginx {:.2} ms",
        of_core(egress),
        of_core(nginx),
        egress.p50_us.p50() / 1e3,
        nginx.p50_us.p50() / 1e3
    );
    let of_rate = match load.path {
        "/1m" => ("MB/s", &egress.mb_per_s, &nginx.mb_per_s),
        _ => ("requests/s", &egress.per_s, &nginx.per_s),
    };
    let (unit, ours, theirs) = of_rate;
    report.add(Figure::of(ids[0], format!("{unit}: {what} ({detail})"), ours, Some(theirs)));
    report.add(Figure::of(
        ids[1],
        format!("CPU-µs per request: {what}"),
        &egress.cpu_us,
        Some(&nginx.cpu_us),
    ));
}

/// The directory cargo put this program and the product in.
fn binaries() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().context("this program is in no directory")?.to_owned())
}
