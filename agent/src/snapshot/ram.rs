//! File format of a guest's memory. Pure over readers and writers.
//!
//! ```text
//! head:   "ROOSTRAM" · version u32 · page bytes u32 · memory bytes u64
//! chunk:  offset u64 · length u32 (whole pages, at most CHUNK_BYTES) · contents        … ascending
//! end:    offset u64 = ALL ONES · length u32 = 0
//! ```
//! Numbers are little-endian. Pages that are not in the file are zero. The SHA-256 of the whole is kept by the
//! manifest; it is computed beside writing and reading, so neither reads twice.

use std::io::{self, Read, Write};

use super::Contents;
use super::hashing::{Batch, Hashing};
use crate::host::memory::{self, GuestMemory, PAGE_BYTES, Range};

const MAGIC: [u8; 8] = *b"ROOSTRAM";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 24;
const CHUNK_HEAD_BYTES: usize = 12;
/// Most memory in one piece.
pub const CHUNK_BYTES: usize = 1024 * 1024;
const END: u64 = u64::MAX;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading or writing the file")]
    File(#[source] io::Error),
    #[error("copying the guest's memory")]
    Memory(#[source] memory::Error),
    #[error("it is not a memory file")]
    Magic,
    #[error("it has version {0}, this agent reads {VERSION}")]
    Version(u32),
    #[error("it is about {found} bytes of memory, the guest has {wanted}")]
    Size { found: u64, wanted: u64 },
    #[error("a piece of it does not fit where it should go")]
    Chunk,
    #[error("something follows its end")]
    Trailing,
}

/// Memory to save.
pub trait Source {
    fn bytes(&self) -> u64;
    /// Ascending, page-aligned; every page that is not zero is in one of them.
    fn ranges(&self) -> Result<Vec<Range>, memory::Error>;
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), memory::Error>;
}

/// Fresh memory, all zero, to restore into.
pub trait Target {
    fn bytes(&self) -> u64;
    fn write(&self, offset: u64, contents: &[u8]) -> Result<(), memory::Error>;
}

impl Source for GuestMemory {
    fn bytes(&self) -> u64 {
        GuestMemory::bytes(self)
    }

    fn ranges(&self) -> Result<Vec<Range>, memory::Error> {
        self.written()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), memory::Error> {
        GuestMemory::read(self, offset, buffer)
    }
}

impl Target for GuestMemory {
    fn bytes(&self) -> u64 {
        GuestMemory::bytes(self)
    }

    fn write(&self, offset: u64, contents: &[u8]) -> Result<(), memory::Error> {
        GuestMemory::write(self, offset, contents)
    }
}

/// A file that is counted and hashed as it passes.
#[derive(Debug)]
struct Tally<F> {
    file: F,
    batch: Batch,
    hashing: Hashing,
    bytes: u64,
}

impl<F> Tally<F> {
    fn new(file: F) -> Result<Self, Error> {
        let (hashing, batch) = Hashing::start(CHUNK_HEAD_BYTES + CHUNK_BYTES).map_err(Error::File)?;
        Ok(Self { file, batch, hashing, bytes: 0 })
    }

    /// Hands over what is in the batch, so that there is room for a chunk.
    fn turn(&mut self) -> Result<(), Error> {
        let full = std::mem::take(&mut self.batch);
        self.batch = self.hashing.exchange(full).map_err(Error::File)?;
        Ok(())
    }

    fn finish(self) -> Result<Contents, Error> {
        let sha256 = self.hashing.finish(self.batch).map_err(Error::File)?;
        Ok(Contents { sha256, bytes: self.bytes })
    }
}

impl<F: Write> Tally<F> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.batch.room() < bytes.len() {
            self.write_out()?;
            self.turn()?;
        }
        self.batch.extend(bytes.len()).copy_from_slice(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn put_chunk(&mut self, offset: u64, contents: &[u8]) -> Result<(), Error> {
        let mut head = [0u8; CHUNK_HEAD_BYTES];
        head[..8].copy_from_slice(&offset.to_le_bytes());
        head[8..].copy_from_slice(&(contents.len() as u32).to_le_bytes());
        self.put(&head)?;
        self.put(contents)
    }

    fn write_out(&mut self) -> Result<(), Error> {
        self.file.write_all(self.batch.filled()).map_err(Error::File)
    }
}

impl<F: Read> Tally<F> {
    /// The next `length` bytes, at most those of a chunk.
    fn take(&mut self, length: usize) -> Result<&[u8], Error> {
        if self.batch.room() < length {
            self.turn()?;
        }
        let place = self.batch.extend(length);
        self.file.read_exact(place).map_err(Error::File)?;
        self.bytes += length as u64;
        Ok(place)
    }
}

/// Writes all pages of `source` that are not zero.
pub fn write(source: &impl Source, file: impl Write) -> Result<Contents, Error> {
    let mut tally = Tally::new(file)?;
    let mut head = [0u8; HEAD_BYTES];
    head[..8].copy_from_slice(&MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[12..16].copy_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
    head[16..].copy_from_slice(&source.bytes().to_le_bytes());
    tally.put(&head)?;
    let mut buffer = vec![0u8; CHUNK_BYTES];
    for range in source.ranges().map_err(Error::Memory)? {
        let mut done = 0;
        while done < range.length {
            let length = (range.length - done).min(CHUNK_BYTES as u64) as usize;
            let piece = &mut buffer[..length];
            source.read(range.offset + done, piece).map_err(Error::Memory)?;
            for (start, end) in runs_of_data(piece) {
                tally.put_chunk(range.offset + done + start as u64, &piece[start..end])?;
            }
            done += length as u64;
        }
    }
    tally.put_chunk(END, &[])?;
    tally.write_out()?;
    tally.file.flush().map_err(Error::File)?;
    tally.finish()
}

/// The parts of `piece` between pages of zeroes.
fn runs_of_data(piece: &[u8]) -> Vec<(usize, usize)> {
    const PAGE: usize = PAGE_BYTES as usize;
    static ZERO_PAGE: [u8; PAGE] = [0; PAGE];
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (index, page) in piece.chunks(PAGE).enumerate() {
        let start = index * PAGE;
        // Compared as a whole: this is the C library's memcmp, not a loop of ours.
        if page == &ZERO_PAGE[..page.len()] {
            continue;
        }
        match runs.last_mut() {
            Some((_, end)) if *end == start => *end = start + page.len(),
            _ => runs.push((start, start + page.len())),
        }
    }
    runs
}

/// Puts the memory in `file` into `target` and returns what the file was, for comparison with its manifest.
pub fn read(file: impl Read, target: &impl Target) -> Result<Contents, Error> {
    let mut tally = Tally::new(file)?;
    let head = tally.take(HEAD_BYTES)?;
    if head[..8] != MAGIC {
        return Err(Error::Magic);
    }
    let version = number::<4>(&head[8..]) as u32;
    if version != VERSION || number::<4>(&head[12..]) != PAGE_BYTES {
        return Err(Error::Version(version));
    }
    let found = number::<8>(&head[16..]);
    if found != target.bytes() {
        return Err(Error::Size { found, wanted: target.bytes() });
    }
    let mut reached = 0;
    loop {
        let head = tally.take(CHUNK_HEAD_BYTES)?;
        let (offset, length) = (number::<8>(head), number::<4>(&head[8..]));
        if offset == END && length == 0 {
            break;
        }
        let whole = length > 0 && length.is_multiple_of(PAGE_BYTES) && offset.is_multiple_of(PAGE_BYTES);
        let ends = offset.checked_add(length).filter(|end| *end <= target.bytes());
        let (true, true, Some(end)) = (whole && length <= CHUNK_BYTES as u64, offset >= reached, ends) else {
            return Err(Error::Chunk);
        };
        target.write(offset, tally.take(length as usize)?).map_err(Error::Memory)?;
        reached = end;
    }
    let mut more = [0u8; 1];
    match tally.file.read(&mut more).map_err(Error::File)? {
        0 => tally.finish(),
        _ => Err(Error::Trailing),
    }
}

/// The first `N` bytes, which are there, as a little-endian number.
fn number<const N: usize>(bytes: &[u8]) -> u64 {
    let mut whole = [0u8; 8];
    whole[..N].copy_from_slice(&bytes[..N]);
    u64::from_le_bytes(whole)
}
