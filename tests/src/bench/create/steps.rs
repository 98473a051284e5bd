//! Where the time of a creation and of a resume goes, by the agent's own log.
//!
//! Each finished step is a line with its time: a step took from the line before it to its own. What is missing of the
//! whole is the wish's way to the agent, its first commit, and the way of `running` back.

use std::collections::BTreeMap;

use crate::bench::report::{Figure, Report, Samples};

const DAY_US: i64 = 24 * 3600 * 1_000_000;
/// From the first commit of an execution to a guest that has answered.
const STEPS: [&str; 5] = ["EnsureDisk", "EnsureNetwork", "Launch", "Attach", "Start"];

/// Milliseconds of each of [`STEPS`].
#[derive(Debug, Default)]
pub(super) struct Steps {
    cold: [Samples; STEPS.len()],
    resumed: [Samples; STEPS.len()],
}

/// Where a sandbox is in its log.
#[derive(Debug, Default)]
struct Trace {
    executions: usize,
    last_us: i64,
}

impl Steps {
    pub(super) fn read(log: &str) -> Self {
        let mut steps = Self::default();
        let mut traces: BTreeMap<&str, Trace> = BTreeMap::new();
        for line in log.lines().filter_map(parse) {
            let trace = traces.entry(line.sandbox).or_default();
            trace.executions += usize::from(line.step == "BeginExecution");
            let took_us = (line.at_us - trace.last_us).rem_euclid(DAY_US);
            trace.last_us = line.at_us;
            let path = if trace.executions > 1 { &mut steps.resumed } else { &mut steps.cold };
            if let Some(index) = STEPS.iter().position(|step| *step == line.step) {
                path[index].push(took_us as f64 / 1e3);
            }
        }
        steps
    }

    pub(super) fn add(&self, report: &mut Report) {
        for (id, path) in [("create.cold.step", &self.cold), ("resume.step", &self.resumed)] {
            for (name, samples) in STEPS.iter().zip(path) {
                report.add(Figure::of(id, format!("ms, {name}, of the agent's log"), samples, None));
            }
        }
    }
}

struct Line<'a> {
    at_us: i64,
    sandbox: &'a str,
    step: &'a str,
}

fn parse(line: &str) -> Option<Line<'_>> {
    let (head, step) = line.split_once(": done step=")?;
    let (_, sandbox) = head.split_once("sandbox{id=")?;
    let time = head.split_once('T')?.1.split_once('Z')?.0;
    let (hours, rest) = time.split_once(':')?;
    let (minutes, seconds) = rest.split_once(':')?;
    let seconds_us = (seconds.parse::<f64>().ok()? * 1e6).round() as i64;
    let whole_minutes = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?;
    Some(Line { at_us: whole_minutes * 60_000_000 + seconds_us, sandbox: sandbox.split_once('}')?.0, step })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_took_from_the_line_before_it_over_midnight_too() {
        let line = |time: &str, sandbox: &str, step: &str| {
            format!(
                "2026-01-01T{time}Z  INFO sandbox{{id={sandbox}}}: roost_agent::sandbox::actor: done step={step}\n"
            )
        };
        let log = [
            line("23:59:59.990000", "sbx_a", "BeginExecution"),
            line("23:59:59.995000", "sbx_b", "BeginExecution"),
            "2026-01-01T23:59:59.996000Z  WARN roost_agent: of something else\n".to_owned(),
            line("00:00:00.010000", "sbx_a", "Launch"),
            line("00:00:00.060000", "sbx_a", "Start"),
            line("00:00:01.000000", "sbx_a", "BeginExecution"),
            line("00:00:01.007500", "sbx_a", "Launch"),
        ]
        .concat();
        let steps = Steps::read(&log);
        assert_eq!((steps.cold[2].n(), steps.cold[2].p50()), (1, 20.0));
        assert_eq!((steps.cold[4].n(), steps.cold[4].p50()), (1, 50.0));
        assert_eq!((steps.resumed[2].n(), steps.resumed[2].p50()), (1, 7.5));
        assert_eq!(steps.resumed[4].n(), 0);
    }
}
