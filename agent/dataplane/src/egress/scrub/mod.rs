//! Takes a credential's value out of what an upstream sends back, in the encodings echoes come in.
//!
//! The second line of defence: the first is that values only stand where servers do not echo from. What is
//! found is replaced by the placeholder. An upstream that transforms a value in a way of its own is not
//! caught.
//!
//! ```text
//! chunk ─▶ held ‖ chunk ─▶ replace whole occurrences ─▶ emit all but the tail ─▶ hold the tail
//! ```
//! How much is held depends on the data and never on the value: the run of token-like bytes at the end, at
//! most `hold` of them. Otherwise a guest could have guesses streamed to it and see from a delay which one is
//! right. For the same reason nothing is released by a timer.

use std::sync::Arc;

use bytes::Bytes;
use memchr::memmem;
use roost_domain::sabotage::Defence;
use zeroize::Zeroizing;

mod pattern;

use pattern::patterns;

/// Shorter values are not searched for: they would be found everywhere.
const MIN_VALUE_BYTES: usize = 8;
/// Held at most for values of usual length, so that the length does not show.
const MIN_HOLD_BYTES: usize = 512;

/// What is searched for, made once for each lease.
pub(crate) struct Scrub {
    patterns: Vec<Zeroizing<Vec<u8>>>,
    placeholder: String,
    hold: usize,
    /// The value has bytes that end a run of token bytes, so the tail is held whatever it is.
    always_hold: bool,
}

impl std::fmt::Debug for Scrub {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Scrub(…)")
    }
}

impl Scrub {
    pub(crate) fn new(value: &[u8], placeholder: &str) -> Self {
        let patterns = if value.len() < MIN_VALUE_BYTES { Vec::new() } else { patterns(value) };
        let longest = patterns.iter().map(|pattern| pattern.len()).max().unwrap_or(0);
        Self {
            always_hold: !value.iter().all(|byte| is_token(*byte)),
            hold: longest.next_power_of_two().max(MIN_HOLD_BYTES),
            placeholder: placeholder.to_owned(),
            patterns,
        }
    }

    /// A whole text with every occurrence replaced; none if there is nothing to replace.
    pub(crate) fn replace_all(&self, text: &[u8]) -> Option<Vec<u8>> {
        let found = self.find(text);
        (!found.is_empty()).then(|| {
            let mut clean = Vec::with_capacity(text.len());
            self.copy(text, &found, text.len(), &mut clean);
            clean
        })
    }

    /// Where occurrences stand, from the left, the longest first; they do not overlap.
    fn find(&self, text: &[u8]) -> Vec<(usize, usize)> {
        let mut found: Vec<(usize, usize)> = Vec::new();
        // Preparing a search costs more than most header values are long, and there are many encodings.
        let fits = |pattern: &&Zeroizing<Vec<u8>>| {
            pattern.len() <= text.len() && !Defence::ResponseScrubbing.is_off()
        };
        for pattern in self.patterns.iter().filter(fits) {
            found.extend(memmem::find_iter(text, pattern.as_slice()).map(|at| (at, at + pattern.len())));
        }
        found.sort_unstable_by_key(|(begin, end)| (*begin, usize::MAX - end));
        let mut clear_from = 0;
        found.retain(|(begin, end)| {
            let keep = *begin >= clear_from;
            if keep {
                clear_from = *end;
            }
            keep
        });
        found
    }

    /// Copies `text` up to `end`, or to the end of an occurrence that begins before; returns where it
    /// stopped.
    fn copy(&self, text: &[u8], found: &[(usize, usize)], end: usize, clean: &mut Vec<u8>) -> usize {
        let mut copied = 0;
        for (begin, stop) in found.iter().filter(|(begin, _)| *begin < end) {
            clean.extend_from_slice(&text[copied..*begin]);
            clean.extend_from_slice(self.placeholder.as_bytes());
            copied = *stop;
        }
        if copied < end {
            clean.extend_from_slice(&text[copied..end]);
            copied = end;
        }
        copied
    }

    /// Length of the tail that has to wait for what follows.
    fn tail(&self, text: &[u8]) -> usize {
        let longest = self.hold - 1;
        if self.always_hold {
            return longest.min(text.len());
        }
        text.iter().rev().take(longest).take_while(|byte| is_token(**byte)).count()
    }
}

/// Bytes of tokens and of all their encodings.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/=_-.%~\\:".contains(&byte)
}

/// A stream being scrubbed of one value.
#[derive(Debug)]
struct Stage {
    scrub: Arc<Scrub>,
    held: Zeroizing<Vec<u8>>,
}

impl Stage {
    fn push(&mut self, chunk: &[u8], last: bool, replaced: &mut usize) -> Vec<u8> {
        self.held.extend_from_slice(chunk);
        let found = self.scrub.find(&self.held);
        let end = if last { self.held.len() } else { self.held.len() - self.scrub.tail(&self.held) };
        let mut clean = Vec::with_capacity(end);
        let copied = self.scrub.copy(&self.held, &found, end, &mut clean);
        *replaced += found.iter().filter(|(begin, _)| *begin < end).count();
        self.held.drain(..copied);
        clean
    }
}

/// A stream being scrubbed of every value that its request carried.
#[derive(Debug)]
pub(crate) struct Scrubber {
    stages: Vec<Stage>,
    replaced: usize,
}

impl Scrubber {
    pub(crate) fn new(scrubs: &[Arc<Scrub>]) -> Self {
        let stage = |scrub: &Arc<Scrub>| Stage { scrub: Arc::clone(scrub), held: Zeroizing::default() };
        Self { stages: scrubs.iter().map(stage).collect(), replaced: 0 }
    }

    /// What may be passed on of a chunk and of what was held before it.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Bytes {
        self.run(chunk, false)
    }

    /// The rest.
    pub(crate) fn finish(&mut self) -> Bytes {
        self.run(&[], true)
    }

    /// Occurrences replaced so far.
    pub(crate) fn replaced(&self) -> usize {
        self.replaced
    }

    fn run(&mut self, chunk: &[u8], last: bool) -> Bytes {
        let mut chunk = chunk.to_vec();
        for stage in &mut self.stages {
            chunk = stage.push(&chunk, last, &mut self.replaced);
        }
        chunk.into()
    }
}

#[cfg(test)]
mod tests;
