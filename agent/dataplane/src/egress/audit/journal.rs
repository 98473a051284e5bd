//! One durable stream of records: a bounded queue, a thread that writes, a thread that syncs.
//!
//! ```text
//! begin ──queue──▶ writer: append ──ack──▶ caller may dial
//! finish ─────────▶        │ (≤ 512 records a write)
//!                          └──▶ syncer: fdatasync every 5 ms while dirty ──▶ durable length ──▶ ship
//! ```
//! An intent is in the kernel before its caller goes on, so a killed process loses none; a host that loses
//! power may lose the last few milliseconds, and ships none of them. The place of a completion in the queue
//! is taken together with that of its intent, so finishing never waits and never fails. When too much is
//! unshipped (`room` says for whom) or the disk takes no more, new intents are refused and completions are kept
//! until they can be written; a ballast file beside the segments is given back for them, and intents are refused
//! until it can be set aside again.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc as thread_mpsc};
use std::time::{Duration, Instant};

use roost_domain::Ulid;
use roost_domain::audit::Record;
use roost_domain::id::ulid_text;
use tokio::sync::{mpsc, oneshot, watch};

use super::Subject;
use super::ballast::Ballast;
use super::room::{NoRoom, Room};
use super::segment::{self, Segment};

/// Records that may wait to be written, places kept for completions of open calls included.
const QUEUE_RECORDS: usize = 65_536;
/// Records of one write.
const BATCH_RECORDS: usize = 512;
/// How long a record may be written and not yet synced.
const SYNC_EVERY: Duration = Duration::from_millis(5);
const RETRY_WRITE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("preparing the audit directory")]
    Directory(#[source] io::Error),
    #[error("audit segment")]
    Segment(#[from] segment::Error),
    #[error("starting an audit thread")]
    Thread(#[source] io::Error),
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error("the audit disk takes no more records")]
    Disk,
    #[error("the audit writer has ended")]
    Closed,
}

/// When segments end and how many are kept.
#[derive(Debug, Clone)]
pub struct Limits {
    pub segment_bytes: u64,
    pub segment_age: Duration,
    /// What all segments together may take.
    pub total_bytes: u64,
    /// Beyond `total_bytes` the oldest segment goes instead of new records being refused; nobody has a share.
    pub drop_oldest: bool,
}

/// What is safely on disk of the segment being written; all older ones are complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Durable {
    pub(crate) segment: Ulid,
    pub(crate) bytes: u64,
}

/// A cheap handle; the threads end when the last one is gone.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    queue: mpsc::Sender<Job>,
    durable: watch::Receiver<Durable>,
    room: Arc<Room>,
    directory: Arc<Path>,
}

#[derive(Debug)]
struct Job {
    event: Ulid,
    subject: Arc<Subject>,
    line: Vec<u8>,
    /// Intents only.
    ack: Option<oneshot::Sender<Result<(), Error>>>,
}

impl Job {
    /// Tells who waits for an intent that it is not written.
    fn refuse(&mut self, reason: Error) {
        if let Some(ack) = self.ack.take() {
            let _ = ack.send(Err(reason));
        }
    }
}

/// The completion's place in the queue.
#[derive(Debug)]
pub(crate) struct Reserved(mpsc::OwnedPermit<Job>);

impl Journal {
    /// Opens the directory, completes as aborted what a crash left open, and starts the threads.
    pub(crate) fn open(directory: &Path, limits: Limits) -> Result<Self, Error> {
        std::fs::create_dir_all(directory).map_err(Error::Directory)?;
        let mut ballast = Ballast::beside(directory);
        let (segment, found) = match recover(directory) {
            // What a crash left open is ended even when nothing else can be written.
            Err(error) if ballast.give_back() => {
                tracing::error!(error = &error as &dyn std::error::Error, "recovering the audit once more");
                recover(directory)?
            }
            other => other?,
        };
        if let Err(error) = ballast.set_aside() {
            tracing::error!(%error, "no ballast for the audit: calls are refused until there is room");
        }
        let room = Arc::new(Room::new(limits.total_bytes, !limits.drop_oldest, found));
        Self::start(directory, limits, segment, room, ballast)
    }

    fn start(
        directory: &Path,
        limits: Limits,
        segment: Segment,
        room: Arc<Room>,
        ballast: Ballast,
    ) -> Result<Self, Error> {
        let (publish, durable) = watch::channel(Durable { segment: segment.name, bytes: segment.len() });
        let (dirty, syncs) = thread_mpsc::sync_channel(1);
        let (queue, jobs) = mpsc::channel(QUEUE_RECORDS);
        let directory: Arc<Path> = directory.into();
        let writer = Writer {
            directory: Arc::clone(&directory),
            limits,
            room: Arc::clone(&room),
            written: Arc::new(AtomicU64::new(segment.len())),
            began: Instant::now(),
            segment,
            open: HashSet::new(),
            ballast,
            dirty,
        };
        let tracked = writer.tracked().map_err(Error::Directory)?;
        spawn("audit-sync", move || sync_loop(tracked, syncs, publish))?;
        spawn("audit-write", move || writer.run(jobs))?;
        Ok(Self { queue, durable, room, directory })
    }

    /// Takes the place of a completion. Waits while the queue is full.
    pub(crate) async fn reserve(&self) -> Result<Reserved, Error> {
        let permit = self.queue.clone().reserve_owned().await.map_err(|_| Error::Closed)?;
        Ok(Reserved(permit))
    }

    /// Writes an intent; when this returns the kernel has it. Waits while the queue is full.
    pub(crate) async fn write_intent(
        &self,
        event: Ulid,
        subject: &Arc<Subject>,
        record: &Record,
    ) -> Result<(), Error> {
        let (ack, written) = oneshot::channel();
        let subject = Arc::clone(subject);
        let job = Job { event, subject, line: super::encode(record), ack: Some(ack) };
        self.queue.send(job).await.map_err(|_| Error::Closed)?;
        written.await.map_err(|_| Error::Closed)?
    }

    pub(crate) fn durable(&self) -> watch::Receiver<Durable> {
        self.durable.clone()
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Deletes a segment that is shipped to its end.
    pub(crate) fn remove_segment(&self, name: Ulid) -> io::Result<()> {
        remove_counted(&self.directory, name, &self.room)
    }
}

/// Completes as aborted what a crash left open; the segment to write to, and what each segment holds.
fn recover(directory: &Path) -> Result<(Segment, Vec<(Ulid, u64)>), Error> {
    let segments = segment::list_segments(directory)?;
    let newest = segments.last().copied();
    let open = match newest {
        Some(newest) => segment::recover_open_events(directory, newest)?,
        None => HashSet::new(),
    };
    let mut found = Vec::with_capacity(segments.len() + 1);
    for name in segments {
        let path = segment::records_path(directory, name);
        found.push((name, std::fs::metadata(path).map_err(Error::Directory)?.len()));
    }
    let mut segment = Segment::begin(directory, newest, &open)?;
    let aborted: Vec<u8> = open.iter().flat_map(|event| super::aborted_line(*event)).collect();
    segment.append(&aborted).and_then(|()| segment.sync()).map_err(Error::Directory)?;
    found.push((segment.name, segment.len()));
    Ok((segment, found))
}

impl Reserved {
    pub(crate) fn finish(self, event: Ulid, subject: &Arc<Subject>, record: &Record) {
        self.0.send(Job { event, subject: Arc::clone(subject), line: super::encode(record), ack: None });
    }
}

fn remove_counted(directory: &Path, name: Ulid, room: &Room) -> io::Result<()> {
    segment::remove_segment(directory, name)?;
    room.forget(name);
    Ok(())
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(Error::Thread)?;
    Ok(())
}

/// What the syncer needs of a segment.
struct Tracked {
    name: Ulid,
    file: File,
    written: Arc<AtomicU64>,
}

enum Sync {
    Dirty,
    Next(Tracked),
}

fn sync_loop(mut tracked: Tracked, syncs: thread_mpsc::Receiver<Sync>, publish: watch::Sender<Durable>) {
    while let Ok(sync) = syncs.recv() {
        match sync {
            // The writer has synced the old segment to its end.
            Sync::Next(next) => tracked = next,
            Sync::Dirty => {
                let bytes = tracked.written.load(Ordering::Acquire);
                if let Err(error) = tracked.file.sync_data() {
                    tracing::error!(%error, "syncing the audit segment");
                    continue;
                }
                publish.send_replace(Durable { segment: tracked.name, bytes });
                std::thread::sleep(SYNC_EVERY);
            }
        }
    }
}

struct Writer {
    directory: Arc<Path>,
    limits: Limits,
    room: Arc<Room>,
    segment: Segment,
    written: Arc<AtomicU64>,
    began: Instant,
    open: HashSet<Ulid>,
    ballast: Ballast,
    dirty: thread_mpsc::SyncSender<Sync>,
}

impl Writer {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut batch = Vec::with_capacity(BATCH_RECORDS);
        while jobs.blocking_recv_many(&mut batch, BATCH_RECORDS) > 0 {
            if self.must_rotate()
                && let Err(error) = self.rotate()
            {
                tracing::error!(error = &error as &dyn std::error::Error, "rotating the audit segment");
            }
            self.write(&mut batch);
        }
        if let Err(error) = self.segment.sync() {
            tracing::error!(%error, "syncing the audit segment at the end");
        }
    }

    fn must_rotate(&self) -> bool {
        let long = self.segment.len() >= self.limits.segment_bytes;
        long || (self.segment.len() > 0 && self.began.elapsed() >= self.limits.segment_age)
    }

    fn rotate(&mut self) -> Result<(), Error> {
        self.segment.sync().map_err(Error::Directory)?;
        self.segment = Segment::begin(&self.directory, Some(self.segment.name), &self.open)?;
        self.began = Instant::now();
        self.written = Arc::new(AtomicU64::new(0));
        let tracked = self.tracked().map_err(Error::Directory)?;
        self.dirty.send(Sync::Next(tracked)).map_err(|_| Error::Closed)?;
        self.dirty.send(Sync::Dirty).map_err(|_| Error::Closed)?;
        if self.limits.drop_oldest {
            self.drop_oldest();
        }
        Ok(())
    }

    fn tracked(&self) -> io::Result<Tracked> {
        let (name, written) = (self.segment.name, Arc::clone(&self.written));
        Ok(Tracked { name, file: self.segment.duplicate()?, written })
    }

    fn drop_oldest(&self) {
        let segments = segment::list_segments(&self.directory).unwrap_or_default();
        for name in segments.into_iter().filter(|name| *name < self.segment.name) {
            if !self.room.is_exceeded() {
                break;
            }
            if let Err(error) = remove_counted(&self.directory, name, &self.room) {
                tracing::error!(%error, segment = ulid_text(name), "removing an old audit segment");
            }
        }
    }

    /// Takes room for each intent, one after the other, and refuses those that get none.
    fn take_room(&self, batch: &mut Vec<Job>) {
        batch.retain_mut(|job| {
            if job.ack.is_none() {
                return true;
            }
            let taken = self.room.take(self.segment.name, job.subject.owner(), job.line.len());
            taken.map_err(|reason| job.refuse(reason.into())).is_ok()
        });
    }

    /// Writes the whole batch; intents that the disk does not take are refused, completions wait for it.
    fn write(&mut self, batch: &mut Vec<Job>) {
        if batch.iter().any(|job| job.ack.is_some()) && !self.ballast.is_set_aside() {
            refuse_intents(batch, || Error::Disk);
        }
        self.take_room(batch);
        self.open.extend(batch.iter().filter(|job| job.ack.is_some()).map(|job| job.event));
        // A completion without an intent is that of a caller who went away before its intent was queued.
        batch.retain(|job| self.open.contains(&job.event));
        let mut lines = joined(batch);
        while let Err(error) = self.segment.append(&lines) {
            tracing::error!(%error, records = batch.len(), "writing audit records");
            for job in refuse_intents(batch, || Error::Disk) {
                self.open.remove(&job.event);
                self.room.give_back(self.segment.name, job.subject.owner(), job.line.len());
            }
            batch.retain(|job| self.open.contains(&job.event));
            lines = joined(batch);
            if !self.ballast.give_back() {
                std::thread::sleep(RETRY_WRITE);
            }
        }
        self.written.store(self.segment.len(), Ordering::Release);
        for job in batch.drain(..) {
            match job.ack {
                None => {
                    self.open.remove(&job.event);
                    self.room.count(self.segment.name, job.subject.owner(), job.line.len());
                }
                // A caller that is gone has queued its completion.
                Some(ack) => drop(ack.send(Ok(()))),
            }
        }
        // A full channel holds a Dirty already, and the syncer reads the length after taking it.
        let _ = self.dirty.try_send(Sync::Dirty);
    }
}

fn joined(batch: &[Job]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(batch.iter().map(|job| job.line.len()).sum());
    for job in batch {
        lines.extend_from_slice(&job.line);
    }
    lines
}

fn refuse_intents(batch: &mut Vec<Job>, reason: impl Fn() -> Error) -> Vec<Job> {
    let mut refused: Vec<Job> = batch.extract_if(.., |job| job.ack.is_some()).collect();
    for job in &mut refused {
        job.refuse(reason());
    }
    refused
}
