//! Segment files: their names, their recovery after a crash, and how whole lines are appended.
//!
//! ```text
//! <ulid>.jsonl   records, one JSON object per line, appended by exactly one process
//! <ulid>.open    events that were open when the segment began, one id per line; private, never shipped
//! ```
//! Names are ULIDs and grow, even when the clock goes back: an acknowledged (segment, offset) means the same
//! bytes for ever. A segment is written by one run of the process only; the next run begins its own.
//! Must not decide when to rotate, ship or delete: that is `journal` and `ship`.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use roost_domain::Ulid;
use roost_domain::audit::{MAX_RECORD_BYTES, Record};
use roost_domain::id::{parse_ulid, ulid_text};

const RECORDS: &str = "jsonl";
const OPEN: &str = "open";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listing {0}")]
    List(PathBuf, #[source] io::Error),
    #[error("recovering {0}")]
    Recover(PathBuf, #[source] io::Error),
    #[error("beginning segment {0}")]
    Begin(PathBuf, #[source] io::Error),
}

/// The segments of a directory, oldest first.
pub(crate) fn list_segments(directory: &Path) -> Result<Vec<Ulid>, Error> {
    let fail = |source| Error::List(directory.to_owned(), source);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|extension| extension == RECORDS)
            && let Some(name) = path.file_stem().and_then(|stem| parse_ulid(&stem.to_string_lossy()))
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

pub(crate) fn records_path(directory: &Path, name: Ulid) -> PathBuf {
    directory.join(ulid_text(name)).with_extension(RECORDS)
}

fn open_path(directory: &Path, name: Ulid) -> PathBuf {
    directory.join(ulid_text(name)).with_extension(OPEN)
}

/// Deletes a segment; repeatable.
pub(crate) fn remove_segment(directory: &Path, name: Ulid) -> io::Result<()> {
    for path in [records_path(directory, name), open_path(directory, name)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Cuts what a crash tore off the newest segment and returns the events that never completed.
pub(crate) fn recover_open_events(directory: &Path, newest: Ulid) -> Result<HashSet<Ulid>, Error> {
    let path = records_path(directory, newest);
    let mut open = read_open_list(directory, newest).map_err(|error| Error::Recover(path.clone(), error))?;
    recover_records(&path, &mut open).map_err(|error| Error::Recover(path.clone(), error))?;
    Ok(open)
}

fn read_open_list(directory: &Path, name: Ulid) -> io::Result<HashSet<Ulid>> {
    match fs::read_to_string(open_path(directory, name)) {
        Ok(text) => Ok(text.lines().filter_map(parse_ulid).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HashSet::new()),
        Err(error) => Err(error),
    }
}

fn recover_records(path: &Path, open: &mut HashSet<Ulid>) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut reader = BufReader::new(&file);
    let mut whole_bytes = 0u64;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = io::Read::take(&mut reader, MAX_RECORD_BYTES as u64).read_until(b'\n', &mut line)?;
        let Some(record) =
            line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice::<Record>(line).ok())
        else {
            break;
        };
        whole_bytes += read as u64;
        if let Some(event) = parse_event(record.event_id()) {
            match record {
                Record::Intent(_) => open.insert(event),
                Record::Completion(_) => open.remove(&event),
            };
        }
    }
    if whole_bytes < file.metadata()?.len() {
        tracing::warn!(segment = %path.display(), whole_bytes, "cut a torn audit record");
        file.set_len(whole_bytes)?;
    }
    file.sync_data()
}

fn parse_event(text: &str) -> Option<Ulid> {
    text.strip_prefix(roost_domain::id::EventId::PREFIX).and_then(parse_ulid)
}

/// A name greater than `previous` and not older than the clock.
fn choose_name(previous: Option<Ulid>, now: SystemTime) -> Ulid {
    let now_ms = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let fresh = Ulid::from_parts(now_ms, 0);
    match previous {
        Some(previous) if previous >= fresh => Ulid(previous.0.saturating_add(1)),
        _ => fresh,
    }
}

/// The segment being written.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) name: Ulid,
    file: File,
    len: u64,
}

impl Segment {
    /// Begins the segment after `previous`, remembering which events are open.
    pub(crate) fn begin(
        directory: &Path,
        previous: Option<Ulid>,
        open: &HashSet<Ulid>,
    ) -> Result<Self, Error> {
        let name = choose_name(previous, SystemTime::now());
        let path = records_path(directory, name);
        Self::create(directory, name, open).map_err(|source| Error::Begin(path, source))
    }

    fn create(directory: &Path, name: Ulid, open: &HashSet<Ulid>) -> io::Result<Self> {
        // The list first: a crash in between leaves a list without a segment, which nobody reads.
        let mut list = File::create(open_path(directory, name))?;
        let text: String = open.iter().map(|event| ulid_text(*event) + "\n").collect();
        list.write_all(text.as_bytes())?;
        list.sync_data()?;
        let file = OpenOptions::new().create_new(true).append(true).open(records_path(directory, name))?;
        File::open(directory)?.sync_data()?;
        Ok(Self { name, file, len: 0 })
    }

    /// Appends whole lines. After an error the segment ends where it did before.
    pub(crate) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(lines) {
            self.file.set_len(self.len)?;
            self.file.seek(SeekFrom::Start(self.len))?;
            return Err(error);
        }
        self.len += lines.len() as u64;
        Ok(())
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// A second descriptor of the file, for the thread that syncs it.
    pub(crate) fn duplicate(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn names_grow_when_the_clock_goes_back() {
        let now = SystemTime::now();
        let first = choose_name(None, now);
        let second = choose_name(Some(first), now);
        let third = choose_name(Some(second), now - Duration::from_secs(3600));
        assert!(first < second && second < third);
    }

    fn line(event: Ulid, completion: bool) -> Vec<u8> {
        let event_id = format!("evt_{}", ulid_text(event));
        let json = if completion {
            format!(
                r#"{{"record":"completion","event_id":"{event_id}","time_us":1,"action":"allow","duration_us":1,"bytes_in":0,"bytes_out":0}}"#
            )
        } else {
            format!(
                r#"{{"record":"intent","event_id":"{event_id}","time_us":1,"execution":"e","sandbox":"s","scheme":"tcp","host":"h","port":1}}"#
            )
        };
        (json + "\n").into_bytes()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// A crash may tear the file at any byte: whole lines stay, the rest goes, the open ones are known.
        #[test]
        fn f3_a_torn_tail_is_cut_at_any_byte(
            carried in prop::collection::hash_set(0u128..4, 0..4),
            steps in prop::collection::vec((4u128..12, any::<bool>()), 0..20),
            torn in 0usize..200,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let carried: HashSet<Ulid> = carried.into_iter().map(Ulid).collect();
            let mut segment = Segment::begin(directory.path(), None, &carried).unwrap();
            let mut ends = vec![(0u64, carried.clone())];
            for (event, completion) in steps {
                segment.append(&line(Ulid(event), completion)).unwrap();
                let mut open = ends.last().unwrap().1.clone();
                if completion { open.remove(&Ulid(event)) } else { open.insert(Ulid(event)) };
                ends.push((segment.len(), open));
            }
            let path = records_path(directory.path(), segment.name);
            let kept = segment.len().saturating_sub(torn as u64);
            segment.file.set_len(kept).unwrap();
            let (whole, open) = ends.iter().rev().find(|(end, _)| *end <= kept).unwrap();
            prop_assert_eq!(&recover_open_events(directory.path(), segment.name).unwrap(), open);
            prop_assert_eq!(fs::metadata(path).unwrap().len(), *whole);
        }
    }
}
