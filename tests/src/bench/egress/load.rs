//! Load from the guest, by `wrk` or `openssl s_time` in its namespace, and what the proxy spent on it.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::proxy::Place;
use crate::program;

/// Beside the load's own duration, for opening and closing.
const GRACE: Duration = Duration::from_secs(20);
const STALLS_MAX: usize = 5;

/// Which proxy is between guest and upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Egress,
    Nginx,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) path: &'static str,
    /// The guest sends a placeholder, and only the value is good enough for the upstream.
    pub(super) credential: bool,
    pub(super) connections: usize,
    pub(super) tool: Tool,
}

/// What makes the load. `wrk` resumes the TLS session of a connection it replaces; `s_time` never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tool {
    KeepAlive,
    Resuming,
    Handshaking,
}

/// One spell of load.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) requests: f64,
    pub(super) bytes: f64,
    pub(super) seconds: f64,
    pub(super) p50_us: f64,
    /// Of all threads of the proxy.
    pub(super) cpu_s: f64,
}

impl Load {
    /// Loads one proxy for a while. An answer that is no 2xx is an error.
    ///
    /// Where other work takes the machine, a spell may be over before the connections are open. It says nothing
    /// about the proxy; it is repeated, and that is said.
    pub(super) fn run(&self, place: &Place, way: Way, spell: Duration) -> anyhow::Result<Measured> {
        for _ in 0..STALLS_MAX {
            let measured = self.run_once(place, way, spell)?;
            if measured.requests > 0.0 {
                return Ok(measured);
            }
            eprintln!("bench: {way:?} answered nothing for {} s, {self:?}: again", spell.as_secs());
        }
        bail!("{way:?} answered nothing, {STALLS_MAX} times: {self:?}")
    }

    fn run_once(&self, place: &Place, way: Way, spell: Duration) -> anyhow::Result<Measured> {
        let pid = place.proxy_pid(way);
        let before = cpu_s(pid)?;
        let command = place.in_guest(way, &self.arguments(place, spell));
        let outcome = program::run_within(command, b"", spell + GRACE)?.success("the load")?;
        let cpu_s = cpu_s(pid)? - before;
        let read = match self.tool {
            Tool::KeepAlive | Tool::Resuming => read_wrk(&outcome.text()),
            Tool::Handshaking => read_s_time(&outcome.text(), outcome.took),
        };
        let measured = read.with_context(|| format!("{way:?}, {self:?}: {}", outcome.text()))?;
        Ok(Measured { cpu_s, ..measured })
    }

    fn arguments(&self, place: &Place, spell: Duration) -> Vec<String> {
        if self.tool == Tool::Handshaking {
            let words = format!(
                "openssl s_time -new -connect {}:443 -www {} -time {} -tls1_3",
                place.name,
                self.path,
                spell.as_secs()
            );
            return words.split(' ').map(str::to_owned).collect();
        }
        let mut words = format!("wrk --threads 1 --connections {} --timeout 10s", self.connections);
        let _ = write!(words, " --duration {}s --script {}", spell.as_secs(), place.script().display());
        let mut list: Vec<String> = words.split(' ').map(str::to_owned).collect();
        if self.credential {
            list.extend(["--header".to_owned(), format!("x-api-key: {}", place.placeholder)]);
        }
        if self.tool == Tool::Resuming {
            list.extend(["--header".to_owned(), "connection: close".to_owned()]);
        }
        list.push(format!("https://{}{}", place.name, self.path));
        list
    }
}

/// The line that [`SCRIPT`] prints.
fn read_wrk(text: &str) -> anyhow::Result<Measured> {
    let line = text.lines().last().context("wrk printed nothing")?;
    let answer: serde_json::Value = serde_json::from_str(line).context("wrk printed no result")?;
    let number = |name: &str| answer[name].as_f64().with_context(|| format!("wrk said no {name}"));
    ensure!(number("errors")? == 0.0, "not every request had its answer");
    Ok(Measured {
        requests: number("requests")?,
        bytes: number("bytes")?,
        seconds: number("us")? / 1e6,
        p50_us: number("p50_us")?,
        cpu_s: 0.0,
    })
}

/// `N connections in S real seconds, B bytes read per connection`, where S is a whole number and of no use.
fn read_s_time(text: &str, took: Duration) -> anyhow::Result<Measured> {
    let line = text.lines().find(|line| line.contains("real seconds")).context("s_time printed no result")?;
    let numbers: Vec<f64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [requests, _, bytes] = numbers[..] else { bail!("s_time printed another line: {line}") };
    ensure!(bytes >= 1024.0, "the answers were too short");
    let seconds = took.as_secs_f64();
    Ok(Measured { requests, bytes: bytes * requests, seconds, p50_us: seconds / requests * 1e6, cpu_s: 0.0 })
}

/// Prints the result as one line of JSON.
pub(super) const SCRIPT: &str = r#"done = function(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('{"requests":%d,"bytes":%d,"us":%d,"errors":%d,"p50_us":%d}\n',
    summary.requests, summary.bytes, summary.duration, failed, latency:percentile(50)))
end
"#;

/// What a process has used so far, by the kernel's count in hundredths of a second.
fn cpu_s(pid: u64) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the proxy is gone")?;
    let (_, fields) = stat.rsplit_once(") ").context("an odd line in /proc")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_both_tools_are_read_and_failures_are_none() {
        let wrk = r#"{"requests":10,"bytes":12000,"us":2000000,"errors":0,"p50_us":70}"#;
        let measured = read_wrk(&format!("Running 2s test\n{wrk}")).unwrap();
        assert_eq!((measured.requests, measured.seconds, measured.p50_us), (10.0, 2.0, 70.0));
        assert!(read_wrk(&wrk.replace("\"errors\":0", "\"errors\":1")).is_err());
        assert!(read_wrk("unable to connect").is_err());
        let s_time = "9 connections in 0.01s; 900 connections/user sec, bytes read 0\n\
                      8 connections in 3 real seconds, 1190 bytes read per connection";
        let measured = read_s_time(s_time, Duration::from_secs(2)).unwrap();
        assert_eq!((measured.requests, measured.seconds), (8.0, 2.0));
        assert!(read_s_time(&s_time.replace("1190", "0"), Duration::from_secs(2)).is_err());
    }
}
