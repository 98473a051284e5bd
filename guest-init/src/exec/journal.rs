//! The retained output of a detached process: the last megabyte, for any number of readers.
//!
//! Owns the bytes and who is told of new ones. Never blocks the writer: a reader that falls behind the oldest
//! retained byte goes on from there.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

/// Output kept of one process.
pub const RETAINED_BYTES_MAX: usize = 1 << 20;
/// Chunks kept of one process, however small they are.
const RETAINED_CHUNKS_MAX: usize = 4096;
/// Small chunks written after each other are joined up to this size.
const JOINED_BYTES_MAX: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Stdout,
    Stderr,
}

#[derive(Debug)]
struct Chunk {
    source: Source,
    bytes: Bytes,
}

#[derive(Debug, Default)]
struct Retained {
    chunks: VecDeque<Chunk>,
    /// Position of the first retained byte in everything ever written.
    start: u64,
    bytes: usize,
}

#[derive(Debug)]
pub struct Journal {
    retained: Mutex<Retained>,
    /// Position of the end, and whether the writers are done.
    end: watch::Sender<(u64, bool)>,
}

impl Default for Journal {
    fn default() -> Self {
        Self { retained: Mutex::default(), end: watch::Sender::new((0, false)) }
    }
}

impl Journal {
    fn retained(&self) -> MutexGuard<'_, Retained> {
        self.retained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn append(&self, source: Source, bytes: Bytes) {
        let length = bytes.len();
        {
            let mut retained = self.retained();
            retained.push(source, bytes);
            retained.trim();
        }
        self.end.send_modify(|(end, _)| *end += length as u64);
    }

    /// No byte will follow.
    pub fn close(&self) {
        self.end.send_modify(|(_, closed)| *closed = true);
    }

    pub fn bytes(&self) -> usize {
        self.retained().bytes
    }

    /// Where to start reading for the last `tail_bytes`; 0 means all that is retained.
    pub fn position_of_tail(&self, tail_bytes: u64) -> u64 {
        let retained = self.retained();
        let end = retained.start + retained.bytes as u64;
        if tail_bytes == 0 { retained.start } else { end.saturating_sub(tail_bytes).max(retained.start) }
    }

    /// The first piece at or after `position`, with the position behind it.
    pub fn read(&self, position: u64) -> Option<(Source, Bytes, u64)> {
        let retained = self.retained();
        let mut at = retained.start;
        let position = position.max(at);
        for chunk in &retained.chunks {
            let end = at + chunk.bytes.len() as u64;
            if position < end {
                let skip = usize::try_from(position - at).unwrap_or(usize::MAX);
                return Some((chunk.source, chunk.bytes.slice(skip..), end));
            }
            at = end;
        }
        None
    }

    /// Waits until there is something after `position`; false when there never will be.
    pub async fn wait_past(&self, position: u64) -> bool {
        let mut end = self.end.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        let reached = end.wait_for(|(end, closed)| *end > position || *closed).await;
        reached.is_ok_and(|reached| reached.0 > position)
    }
}

impl Retained {
    fn push(&mut self, source: Source, bytes: Bytes) {
        self.bytes += bytes.len();
        if let Some(last) = self.chunks.back_mut()
            && last.source == source
            && last.bytes.len() + bytes.len() <= JOINED_BYTES_MAX
        {
            last.bytes = Bytes::from([&last.bytes[..], &bytes[..]].concat());
            return;
        }
        // A small piece must not keep the whole read buffer alive.
        let bytes = if bytes.len() <= JOINED_BYTES_MAX { Bytes::copy_from_slice(&bytes) } else { bytes };
        self.chunks.push_back(Chunk { source, bytes });
    }

    fn trim(&mut self) {
        while self.bytes > RETAINED_BYTES_MAX || self.chunks.len() > RETAINED_CHUNKS_MAX {
            let over = self.bytes.saturating_sub(RETAINED_BYTES_MAX);
            let Some(first) = self.chunks.front_mut() else {
                return;
            };
            let dropped = if over > 0 && over < first.bytes.len() {
                first.bytes = first.bytes.slice(over..);
                over
            } else {
                let length = first.bytes.len();
                self.chunks.pop_front();
                length
            };
            self.bytes -= dropped;
            self.start += dropped as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(journal: &Journal, mut position: u64) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some((_, bytes, next)) = journal.read(position) {
            all.extend_from_slice(&bytes);
            position = next;
        }
        all
    }

    #[test]
    fn the_oldest_output_is_dropped_to_the_byte() {
        let journal = Journal::default();
        let written: Vec<u8> = (0..RETAINED_BYTES_MAX + 70_001).map(|i| (i % 251) as u8).collect();
        for piece in written.chunks(40_000) {
            journal.append(Source::Stdout, Bytes::copy_from_slice(piece));
        }
        assert_eq!(journal.bytes(), RETAINED_BYTES_MAX);
        assert_eq!(read_all(&journal, 0), written[70_001..]);
        assert_eq!(read_all(&journal, journal.position_of_tail(10)), written[written.len() - 10..]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn waiting_ends_with_output_or_close() {
        let journal = Journal::default();
        journal.append(Source::Stdout, Bytes::from_static(b"x"));
        assert!(journal.wait_past(0).await);
        journal.close();
        assert!(!journal.wait_past(1).await);
        assert!(journal.wait_past(0).await, "what is retained is still read after the end");
    }

    proptest! {
        #[test]
        fn what_is_read_is_the_end_of_what_was_written(
            pieces in proptest::collection::vec((any::<bool>(), 1usize..9000), 0..300), tail in 0u64..20_000
        ) {
            let journal = Journal::default();
            let mut written = Vec::new();
            for (index, (to_stdout, length)) in pieces.into_iter().enumerate() {
                let piece = vec![(index % 256) as u8; length];
                written.extend_from_slice(&piece);
                journal.append(if to_stdout { Source::Stdout } else { Source::Stderr }, piece.into());
            }
            let kept = written.len().min(RETAINED_BYTES_MAX);
            prop_assert_eq!(read_all(&journal, 0), &written[written.len() - kept..]);
            let expected = if tail == 0 { kept } else { kept.min(tail as usize) };
            prop_assert_eq!(read_all(&journal, journal.position_of_tail(tail)), &written[written.len() - expected..]);
        }
    }
}
