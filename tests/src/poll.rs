//! Waiting: by asking again until a deadline, and saying what for.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::bail;

const INTERVAL: Duration = Duration::from_millis(20);
/// A wait longer than this says what it waits for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks until `probe` has a value. An error of the probe ends the wait at once; use `Ok(None)` for "not yet".
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    let mut progress = Progress::new(what);
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if begun.elapsed() > deadline {
            drop(progress);
            bail!("waited {} s for {what}, in vain", deadline.as_secs_f32());
        }
        progress.tick();
        std::thread::sleep(INTERVAL);
    }
}

/// Says on stderr what takes so long: one line kept current on a terminal, a line every ten seconds elsewhere.
#[derive(Debug)]
pub struct Progress<'a> {
    what: &'a str,
    begun: Instant,
    said: Option<Duration>,
}

impl<'a> Progress<'a> {
    pub fn new(what: &'a str) -> Self {
        Self { what, begun: Instant::now(), said: None }
    }

    pub fn tick(&mut self) {
        let elapsed = self.begun.elapsed();
        let is_terminal = std::io::stderr().is_terminal();
        let pause = Duration::from_secs(if is_terminal { 1 } else { 10 });
        let due = self.said.map_or(PATIENCE, |said| said + pause);
        if elapsed < due {
            return;
        }
        self.said = Some(elapsed);
        if is_terminal {
            eprint!("\r\x1b[K    … {} {} s", self.what, elapsed.as_secs());
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("    … {} {} s", self.what, elapsed.as_secs());
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if self.said.is_some() && std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_the_value_or_names_what_did_not_come() {
        let mut asked = 0;
        let value = until("three", Duration::from_secs(5), || {
            asked += 1;
            Ok((asked == 3).then_some(asked))
        });
        assert_eq!(value.unwrap(), 3);

        let error = until::<()>("a miracle", Duration::from_millis(30), || Ok(None)).unwrap_err();
        assert!(error.to_string().contains("for a miracle, in vain"), "{error}");
    }
}
