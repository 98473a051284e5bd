//! The shipper before a receiver that stores and does not say so, says something else, or goes away, and over
//! restarts with every state of the note of what is acknowledged.
//!
//! The receiver keeps to its contract (`scheduler/src/audit/ingest`): it stores whole records, joined by event
//! id, and the same bytes again change nothing. The clock is paused, so that waiting between attempts costs no
//! time; the journal's threads are real.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use proptest::prelude::*;
use roost_domain::id::ulid_text;

use super::*;

/// What becomes of one call.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Nothing is stored.
    Away,
    /// Stored, and the answer is lost.
    AnswerLost,
    /// Stored, and what is acknowledged is what was before.
    OldOffset,
    /// Stored, and more is acknowledged than was sent.
    Beyond,
    /// One record is stored and acknowledged.
    Part,
    /// Stored, and no answer comes as long as the process lives.
    Hang,
}

/// What the next run finds in the place of the note.
#[derive(Debug, Clone, Copy)]
enum Note {
    Kept,
    /// As it was when the run before it began.
    Stale,
    Missing,
    Empty,
    Rubbish,
    /// An offset after the end of its segment.
    BeyondTheEnd,
    /// An offset within a record.
    WithinARecord,
    /// A segment that there will be some day.
    Future,
}

#[derive(Debug, Clone)]
struct Round {
    calls: usize,
    faults: Vec<Fault>,
    /// The process ends, and the next finds this.
    restart: Option<Note>,
}

#[derive(Debug, Default)]
struct Store {
    faults: VecDeque<Fault>,
    hangs: bool,
    /// What is stored of each segment from its beginning.
    segments: BTreeMap<String, Vec<u8>>,
    /// How much of it the shipper was told of.
    told: BTreeMap<String, usize>,
    /// Records in the order they were stored, each once.
    records: Vec<Record>,
}

impl Store {
    /// Stores records that may have come before; fails when they were others or when some are left out.
    fn put(&mut self, segment: &str, offset: usize, records: &[u8]) {
        let newest = self.segments.keys().next_back().cloned();
        let stored = self.segments.entry(segment.to_owned()).or_default();
        assert!(offset <= stored.len(), "{} records of {segment} were left out", offset - stored.len());
        let known = (stored.len() - offset).min(records.len());
        assert_eq!(stored[offset..offset + known], records[..known], "{segment}:{offset} has changed");
        let fresh = &records[known..];
        assert!(fresh.is_empty() || newest.is_none_or(|newest| *newest <= *segment), "out of order");
        assert!(records.ends_with(b"\n"), "whole records are sent");
        stored.extend_from_slice(fresh);
        let lines = fresh.split_inclusive(|byte| *byte == b'\n');
        self.records.extend(lines.map(|line| serde_json::from_slice::<Record>(line).unwrap()));
    }

    fn is_settled(&self, records: usize) -> bool {
        let is_told = |(segment, stored): (&String, &Vec<u8>)| self.told.get(segment) == Some(&stored.len());
        let is_done = self.records.len() == records && self.segments.iter().all(is_told);
        self.hangs || self.faults.is_empty() || is_done
    }
}

#[derive(Debug)]
struct Faulty {
    journal: PathBuf,
    store: Mutex<Store>,
    /// The newest content of every segment that was ever seen.
    seen: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Faulty {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    /// Fails when a segment is gone that is not stored to its end.
    fn check_removed(&self) {
        let mut seen = self.seen.lock().unwrap();
        // Listed first: what is removed between the two was there, and is looked at the next time.
        let names = segment::list_segments(&self.journal).unwrap();
        let store = self.store();
        for (name, content) in seen.iter() {
            let is_there = names.iter().any(|there| ulid_text(*there) == *name);
            let stored = store.segments.get(name).map_or(&[][..], Vec::as_slice);
            assert!(is_there || stored.starts_with(content), "{name} was removed before it was stored");
        }
        for name in names {
            if let Ok(content) = std::fs::read(segment::records_path(&self.journal, name)) {
                seen.insert(ulid_text(name), content);
            }
        }
    }
}

#[async_trait::async_trait]
impl ship::Shipper for Faulty {
    async fn ship(&self, segment: &str, offset: u64, records: bytes::Bytes) -> Result<u64, ship::Error> {
        self.check_removed();
        let lost = || Err(ship::Error::Send("the connection is gone".into()));
        let whole = offset + records.len() as u64;
        let first = records.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let fault = self.store().faults.pop_front();
        let stored = match fault {
            Some(Fault::Away) => return lost(),
            Some(Fault::Part) => first,
            _ => records.len(),
        };
        let start = usize::try_from(offset).unwrap();
        self.store().put(segment, start, &records[..stored]);
        match fault {
            Some(Fault::AnswerLost | Fault::Away) => return lost(),
            Some(Fault::OldOffset) => return Ok(offset),
            Some(Fault::Beyond) => return Ok(whole + 1),
            Some(Fault::Hang) => {
                self.store().hangs = true;
                return std::future::pending().await;
            }
            Some(Fault::Part) | None => {}
        }
        self.store().told.insert(segment.to_owned(), start + stored);
        Ok(offset + stored as u64)
    }
}

/// One run of the process: its journal and its shipper.
struct Run {
    audit: Audit,
    shipping: tokio::task::JoinHandle<()>,
}

impl Run {
    fn start(directory: &Path, receiver: &Arc<Faulty>) -> Self {
        let limits = Limits { segment_bytes: 900, ..SMALL };
        let audit = Audit::open_with(directory, limits.clone(), limits).unwrap();
        let (ships, receives) = (audit.clone(), Arc::clone(receiver));
        let shipping = tokio::spawn(async move { ships.ship(&*receives).await });
        Self { audit, shipping }
    }

    async fn end(self) {
        self.shipping.abort();
        let ended = self.shipping.await;
        assert!(ended.unwrap_err().is_cancelled(), "the receiver's checks hold");
        end(self.audit).await;
    }
}

/// Waits in time that costs none for threads that take theirs.
async fn shipped(receiver: &Faulty, run: &Run, what: &str, mut done: impl FnMut(&Store) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done(&receiver.store()) {
        assert!(!run.shipping.is_finished(), "the receiver's checks failed");
        assert!(Instant::now() < deadline, "gave up waiting for {what}: {:?}", receiver.store().records);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Puts in the place of the note what the round says.
fn leave_note(journal: &Path, note: Note, stale: Option<&str>) {
    let path = journal.join("acked");
    let newest = *segment::list_segments(journal).unwrap().last().unwrap();
    let length = std::fs::metadata(segment::records_path(journal, newest)).unwrap().len();
    let text = match note {
        Note::Kept => return,
        Note::Missing => return drop(std::fs::remove_file(path)),
        Note::Stale => stale.unwrap_or_default().to_owned(),
        Note::Empty => String::new(),
        Note::Rubbish => "\0\0\0\0 12\n".to_owned(),
        Note::BeyondTheEnd => format!("{} {}\n", ulid_text(newest), length + 1),
        Note::WithinARecord => format!("{} {}\n", ulid_text(newest), length.saturating_sub(2)),
        Note::Future => format!("{} 0\n", ulid_text(Ulid(newest.0 + (1 << 100)))),
    };
    std::fs::write(path, text).unwrap();
}

async fn play(rounds: Vec<Round>) {
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("shipped");
    let receiver =
        Arc::new(Faulty { journal: journal.clone(), store: Mutex::default(), seen: Mutex::default() });
    let mut begun = Vec::new();
    let mut run = Run::start(directory.path(), &receiver);
    let mut stale = None;
    for round in rounds {
        receiver.store().faults.extend(round.faults);
        for _ in 0..round.calls {
            let pending = run.audit.begin(&subject(false), call("a.example")).await.unwrap();
            begun.push(EventId::from_ulid(pending.event).to_string());
            pending.finish(Outcome::rejected(reason::POLICY));
        }
        let records = begun.len() * 2;
        shipped(&receiver, &run, "the faults", |store| store.is_settled(records)).await;
        if let Some(note) = round.restart {
            run.end().await;
            receiver.check_removed();
            let before = std::fs::read_to_string(journal.join("acked")).ok();
            leave_note(&journal, note, stale.as_deref());
            stale = before;
            receiver.store().hangs = false;
            run = Run::start(directory.path(), &receiver);
        }
    }
    receiver.store().faults.clear();
    if std::mem::take(&mut receiver.store().hangs) {
        run.end().await;
        run = Run::start(directory.path(), &receiver);
    }
    shipped(&receiver, &run, "every record", |store| store.records.len() >= begun.len() * 2).await;
    run.end().await;
    receiver.check_removed();
    check_rows(&receiver.store().records, &begun);
}

/// Each event is one row, begun in the order it happened and ended after it began.
fn check_rows(records: &[Record], begun: &[String]) {
    assert_eq!(records.len(), begun.len() * 2, "each record is stored once");
    let (mut intents, mut ends) = (Vec::new(), HashSet::new());
    for record in records {
        let event = record.event_id().to_owned();
        match record {
            Record::Intent(_) => intents.push(event),
            Record::Completion(_) => {
                assert!(intents.contains(&event), "an end without a beginning");
                assert!(ends.insert(event), "two ends");
            }
        }
    }
    assert_eq!(intents, begun);
}

fn play_now(rounds: Vec<Round>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(play(rounds));
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    use Fault::*;
    let fault = prop::sample::select(vec![Away, AnswerLost, OldOffset, Beyond, Part, Part, Hang]);
    use Note::*;
    let note =
        prop::sample::select(vec![Kept, Stale, Missing, Empty, Rubbish, BeyondTheEnd, WithinARecord, Future]);
    let round = (0usize..8, prop::collection::vec(fault, 0..3), prop::option::of(note));
    prop::collection::vec(round.prop_map(|(calls, faults, restart)| Round { calls, faults, restart }), 1..6)
}

/// Each way in which an acknowledgement is lost or wrong, with nothing else around it.
#[test]
fn f2_a_lost_or_wrong_acknowledgement_costs_a_repeat_and_nothing_else() {
    use Fault::*;
    for fault in [Away, AnswerLost, OldOffset, Beyond, Part, Hang] {
        let round = || Round { calls: 5, faults: vec![fault], restart: None };
        play_now(vec![round(), Round { restart: Some(Note::Kept), ..round() }, round()]);
    }
}

/// Each state of the note, found while records wait that were never sent.
#[test]
fn f2_no_state_of_the_note_loses_what_was_never_sent() {
    use Note::*;
    for note in [Kept, Stale, Missing, Empty, Rubbish, BeyondTheEnd, WithinARecord, Future] {
        let quiet = || Round { calls: 5, faults: Vec::new(), restart: Some(Kept) };
        // The shipper hangs in a call of the first round's, so that the rest is never sent by this run.
        let faults = vec![Fault::Part, Fault::Hang];
        let unsent = Round { calls: 5, faults, restart: Some(note) };
        play_now(vec![quiet(), unsent, quiet()]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn f2_every_event_arrives_as_one_row_in_order_whatever_fails(rounds in rounds()) {
        play_now(rounds);
    }
}
