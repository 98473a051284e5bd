//! Sends segments to where audit rows live, whole records only, in order, at least once.
//!
//! What is acknowledged is remembered as (segment, offset) in `acked`; losing it only means sending again,
//! since the receiver joins records by event id. A segment that is acknowledged to its end and no longer
//! written is deleted. Only what is synced is sent: the receiver never knows an intent that this host could
//! forget.

use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use roost_domain::Ulid;
use roost_domain::audit::MAX_RECORD_BYTES;
use roost_domain::id::{parse_ulid, ulid_text};

use super::journal::{Durable, Journal};
use super::segment;

/// Most bytes of one call; well below gRPC's 4 MiB.
const CHUNK_BYTES: usize = 1 << 20;
const _: () = assert!(CHUNK_BYTES > MAX_RECORD_BYTES);
/// Between two rounds, so that a busy host sends few large calls.
const SHIP_EVERY: Duration = Duration::from_millis(200);
const RETRY_AFTER: Duration = Duration::from_secs(1);
const RETRY_AT_MOST: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading audit segment {0}")]
    Read(String, #[source] io::Error),
    #[error("listing audit segments")]
    List(#[from] segment::Error),
    #[error("audit segment {0} has no whole record at offset {1}")]
    Torn(String, u64),
    #[error("the receiver acknowledged offset {acked} of {segment}, which is outside what was sent")]
    Ack { segment: String, acked: u64 },
    #[error("remembering what is acknowledged")]
    Remember(#[source] io::Error),
    #[error("sending audit records")]
    Send(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Where audit records go.
#[async_trait::async_trait]
pub trait Shipper: Send + Sync {
    /// Sends whole records that begin at `offset`; returns the offset up to which they are stored.
    async fn ship(&self, segment: &str, offset: u64, records: Bytes) -> Result<u64, Error>;
}

/// Everything before this is stored by the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    segment: Ulid,
    offset: u64,
}

pub(crate) async fn run(journal: &Journal, shipper: &dyn Shipper) {
    let mut durable = journal.durable();
    let mut retry_after = RETRY_AFTER;
    loop {
        let reached = *durable.borrow_and_update();
        match ship_until(journal, shipper, reached).await {
            Ok(()) => {
                retry_after = RETRY_AFTER;
                tokio::time::sleep(SHIP_EVERY).await;
                if durable.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, ?retry_after, "audit records wait");
                tokio::time::sleep(retry_after).await;
                retry_after = (retry_after * 2).min(RETRY_AT_MOST);
            }
        }
    }
}

async fn ship_until(journal: &Journal, shipper: &dyn Shipper, reached: Durable) -> Result<(), Error> {
    let directory = journal.directory();
    let segments = segment::list_segments(directory)?;
    let mut acked = find_position(directory, segments.first().copied());
    for name in segments {
        if name > reached.segment {
            break;
        }
        let mut offset = match acked {
            Some(acked) if name < acked.segment => u64::MAX,
            Some(acked) if name == acked.segment => acked.offset,
            _ => 0,
        };
        let current = name == reached.segment;
        let end = if current { reached.bytes } else { segment_bytes(directory, name)? };
        while offset < end {
            offset = ship_chunk(directory, shipper, Position { segment: name, offset }, end).await?;
            acked = Some(Position { segment: name, offset });
            write_position(directory, name, offset).map_err(Error::Remember)?;
        }
        if !current {
            journal.remove_segment(name).map_err(Error::Remember)?;
        }
    }
    Ok(())
}

async fn ship_chunk(directory: &Path, shipper: &dyn Shipper, from: Position, end: u64) -> Result<u64, Error> {
    let name = ulid_text(from.segment);
    let mut chunk = read_chunk(&segment::records_path(directory, from.segment), from.offset, end)
        .map_err(|error| Error::Read(name.clone(), error))?;
    let whole = chunk.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    if whole == 0 {
        return Err(Error::Torn(name, from.offset));
    }
    chunk.truncate(whole);
    let sent_to = from.offset + whole as u64;
    let acked = shipper.ship(&name, from.offset, chunk.into()).await?;
    if acked <= from.offset || acked > sent_to {
        return Err(Error::Ack { segment: name, acked });
    }
    Ok(acked)
}

fn read_chunk(path: &Path, offset: u64, end: u64) -> io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut chunk = Vec::new();
    file.take((end - offset).min(CHUNK_BYTES as u64)).read_to_end(&mut chunk)?;
    Ok(chunk)
}

fn segment_bytes(directory: &Path, name: Ulid) -> Result<u64, Error> {
    std::fs::metadata(segment::records_path(directory, name))
        .map(|metadata| metadata.len())
        .map_err(|error| Error::Read(ulid_text(name), error))
}

/// Nothing when the note is missing or cannot be true: what comes again is joined, what is left out is lost.
fn find_position(directory: &Path, oldest: Option<Ulid>) -> Option<Position> {
    let text = std::fs::read_to_string(directory.join("acked")).ok()?;
    let (segment, offset) = text.trim_end().split_once(' ')?;
    let position = Position { segment: parse_ulid(segment)?, offset: offset.parse().ok()? };
    // Segments go from the oldest on.
    let is_removed = oldest.is_none_or(|oldest| position.segment < oldest);
    (is_removed || ends_a_record(directory, position)).then_some(position)
}

fn ends_a_record(directory: &Path, position: Position) -> bool {
    let Some(last) = position.offset.checked_sub(1) else { return false };
    let mut byte = [0];
    let read = std::fs::File::open(segment::records_path(directory, position.segment))
        .and_then(|file| file.read_exact_at(&mut byte, last));
    read.is_ok() && byte == *b"\n"
}

fn write_position(directory: &Path, segment: Ulid, offset: u64) -> io::Result<()> {
    let fresh = directory.join("acked.new");
    std::fs::write(&fresh, format!("{} {offset}\n", ulid_text(segment)))?;
    std::fs::rename(fresh, directory.join("acked"))
}
