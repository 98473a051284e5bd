//! How the tour prints: a numbered title, the commands as typed, what came of them, and the time.

use std::time::{Duration, Instant};

use anyhow::Context;

use crate::quickstart::interrupt::Interrupt;

/// Lines shown of what a command printed.
const OUTPUT_LINES: usize = 6;
const LINE_BYTES: usize = 150;

#[derive(Debug)]
pub(super) struct Steps {
    done: usize,
    begun: Instant,
    interrupt: Interrupt,
}

impl Steps {
    pub(super) fn new(interrupt: Interrupt) -> Self {
        Self { done: 0, begun: Instant::now(), interrupt }
    }

    /// One step: `work` does it, checks it and answers with the sentence on what it showed.
    pub(super) fn step<T>(
        &mut self,
        title: &str,
        work: impl FnOnce() -> anyhow::Result<(T, String)>,
    ) -> anyhow::Result<T> {
        self.interrupt.check()?;
        let number = self.done + 1;
        println!("{number:>2}. {title}");
        let begun = Instant::now();
        let (value, shown) =
            work().with_context(|| format!("step {number} of the tour ({title}) does not hold"))?;
        println!("    → {shown}  [{}]\n", seconds(begun.elapsed()));
        self.done = number;
        Ok(value)
    }

    pub(super) fn end(&self) {
        println!("All {} steps hold, in {}.", self.done, seconds(self.begun.elapsed()));
    }
}

/// A command as a person would type it.
pub(super) fn command(text: &str) {
    println!("    $ {text}");
}

/// The beginning of what a command printed.
pub(super) fn output(text: &str) {
    let mut lines = text.lines();
    for line in lines.by_ref().take(OUTPUT_LINES) {
        let shown: String = line.chars().take(LINE_BYTES).collect();
        println!("    {shown}{}", if shown.len() < line.len() { " …" } else { "" });
    }
    if lines.next().is_some() {
        println!("    …");
    }
}

fn seconds(time: Duration) -> String {
    match time.as_millis() {
        millis @ ..1000 => format!("{millis} ms"),
        _ => format!("{:.1} s", time.as_secs_f32()),
    }
}
