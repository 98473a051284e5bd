//! Bytes of a process into what the API shows: a bounded whole, or lines as they come.

use bytes::{Bytes, BytesMut};

/// What one answer holds of each stream; the rest is dropped and said to be.
pub const MAX_OUTPUT_BYTES: usize = 8 * 1024 * 1024;
/// A line longer than this is cut into several.
const MAX_LINE_BYTES: usize = 16 * 1024;

/// Collects one stream up to the cap.
#[derive(Debug, Default)]
pub struct Collected {
    bytes: BytesMut,
    pub truncated: bool,
}

impl Collected {
    pub fn push(&mut self, chunk: &[u8]) {
        let room = MAX_OUTPUT_BYTES - self.bytes.len();
        self.truncated |= chunk.len() > room;
        self.bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }

    pub fn into_text(self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// Cuts one stream into lines. What has no line end yet waits for it, until [`Lines::take_rest`].
#[derive(Debug, Default)]
pub struct Lines {
    pending: BytesMut,
}

impl Lines {
    pub fn push(&mut self, chunk: &Bytes) -> Vec<String> {
        self.pending.extend_from_slice(chunk);
        let mut lines = Vec::new();
        while let Some(line) = self.next_line() {
            lines.push(line);
        }
        lines
    }

    fn next_line(&mut self) -> Option<String> {
        match self.pending.iter().position(|byte| *byte == b'\n') {
            Some(end) if end <= MAX_LINE_BYTES => {
                let line = self.pending.split_to(end + 1);
                Some(text(&line[..end]))
            }
            _ if self.pending.len() > MAX_LINE_BYTES => {
                let cut = character_boundary(&self.pending[..MAX_LINE_BYTES]);
                let line = self.pending.split_to(cut);
                Some(text(&line))
            }
            _ => None,
        }
    }

    /// What was written without a line end: a prompt, a progress bar, the last words.
    pub fn take_rest(&mut self) -> Option<String> {
        let rest = self.pending.split();
        (!rest.is_empty()).then(|| text(&rest))
    }

    pub fn has_rest(&self) -> bool {
        !self.pending.is_empty()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The longest prefix that does not end inside a UTF-8 character; all of it where that cannot be told.
fn character_boundary(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    let start = (tail..bytes.len()).rev().find(|at| bytes[*at] & 0xC0 != 0x80);
    match start {
        Some(at) if at > 0 && std::str::from_utf8(&bytes[at..]).is_err() => at,
        _ => bytes.len(),
    }
}

/// The last `count` lines of `text`.
pub fn last_lines(text: &str, count: usize) -> &str {
    let body = text.strip_suffix('\n').unwrap_or(text);
    let start = body.rmatch_indices('\n').nth(count.saturating_sub(1)).map_or(0, |(at, _)| at + 1);
    if count == 0 { "" } else { &text[start..] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_cap_keeps_the_beginning_and_says_so() {
        let mut collected = Collected::default();
        collected.push(&vec![b'a'; MAX_OUTPUT_BYTES - 1]);
        assert!(!collected.truncated);
        collected.push(b"bc");
        assert!(collected.truncated);
        let text = collected.into_text();
        assert_eq!(text.len(), MAX_OUTPUT_BYTES);
        assert!(text.ends_with("ab"));
    }

    #[test]
    fn tails_count_lines() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last_lines("a\nb\nc", 1), "c");
        assert_eq!(last_lines("a\nb", 9), "a\nb");
        assert_eq!(last_lines("a\nb", 0), "");
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_the_chunks(
            text in "[a-zé\u{2028}\n]{0,400}",
            cuts in proptest::collection::vec(1usize..50, 0..20),
        ) {
            let bytes = Bytes::from(text.clone());
            let (mut lines, mut out, mut at) = (Lines::default(), Vec::new(), 0);
            for cut in cuts {
                let end = (at + cut).min(bytes.len());
                out.extend(lines.push(&bytes.slice(at..end)));
                at = end;
            }
            out.extend(lines.push(&bytes.slice(at..)));
            out.extend(lines.take_rest());
            let expected: Vec<String> = text.split_terminator('\n').map(str::to_owned).collect();
            prop_assert_eq!(out, expected);
        }

        #[test]
        fn long_lines_are_cut_between_characters(count in 1usize..30_000) {
            let text = "é".repeat(count);
            let mut lines = Lines::default();
            let mut out = lines.push(&Bytes::from(text.clone()));
            out.extend(lines.take_rest());
            prop_assert_eq!(out.concat(), text);
        }
    }
}
