//! SHA-256 of a file on a thread of its own, beside the reading or writing of it.
//!
//! Owns the thread and the buffers that go round: filled here, hashed there, given back empty. A guest waits for its
//! memory, and hashing is a good part of that time.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use sha2::{Digest as _, Sha256};

/// One is filled, one is hashed, one is on its way.
const BATCHES: usize = 3;

/// The next bytes of the file.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Box<[u8]>,
    filled: usize,
}

impl Batch {
    fn new(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity].into_boxed_slice(), filled: 0 }
    }

    pub(super) fn room(&self) -> usize {
        self.bytes.len() - self.filled
    }

    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// The place of the next `length` bytes, of which there is room.
    pub(super) fn extend(&mut self, length: usize) -> &mut [u8] {
        let begin = self.filled;
        self.filled += length;
        &mut self.bytes[begin..self.filled]
    }
}

/// The thread. It ends by itself when this is dropped.
#[derive(Debug)]
pub(super) struct Hashing {
    full: SyncSender<Batch>,
    empty: Receiver<Batch>,
    thread: JoinHandle<Sha256>,
}

impl Hashing {
    /// With the first batch to fill; each takes `capacity` bytes.
    pub(super) fn start(capacity: usize) -> io::Result<(Self, Batch)> {
        let (full, batches) = sync_channel::<Batch>(BATCHES);
        let (give_back, empty) = sync_channel(BATCHES);
        for _ in 1..BATCHES {
            // There is room for all of them.
            let _ = give_back.try_send(Batch::new(capacity));
        }
        let thread = Builder::new().name("snapshot-hash".to_owned()).spawn(move || {
            let mut hash = Sha256::new();
            for mut batch in batches {
                hash.update(batch.filled());
                batch.filled = 0;
                // Nobody fills another: the end is near.
                let _ = give_back.try_send(batch);
            }
            hash
        })?;
        Ok((Self { full, empty, thread }, Batch::new(capacity)))
    }

    /// Hands over a batch for an empty one.
    pub(super) fn exchange(&self, batch: Batch) -> io::Result<Batch> {
        self.full.send(batch).map_err(|_| ended())?;
        self.empty.recv().map_err(|_| ended())
    }

    /// The hash of all that was handed over, `last` included, in hexadecimal.
    pub(super) fn finish(self, last: Batch) -> io::Result<String> {
        self.full.send(last).map_err(|_| ended())?;
        drop(self.full);
        let hash = self.thread.join().map_err(|_| ended())?;
        Ok(hex::encode(hash.finalize()))
    }
}

fn ended() -> io::Error {
    io::Error::other("the hashing thread ended early")
}
