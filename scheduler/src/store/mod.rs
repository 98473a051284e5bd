//! The scheduler's durable state: one verb to read, one to write, on two engines.
//!
//! Owns every SQL statement of the scheduler (one file per table or small group below this one, functions taking
//! `&mut Tx`), the schema and its migrations. It must not decide anything but what a conditional write decides, and
//! must not read the clock: times come in as parameters, because closures may be run again.
//!
//! Rules for statements, so that both engines take them:
//! * placeholders are `?1`, `?2`, …; columns are BIGINT, TEXT, BYTEA; a parameter that is not directly compared or
//!   inserted, and every SUM, is CAST;
//! * an admission is a conditional write (`UPDATE … WHERE n < max`, `ON CONFLICT DO NOTHING`), never read-then-write;
//! * after a failed statement give up the transaction: PostgreSQL has already done so.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

pub mod api_key;
pub mod audit_log;
pub mod egress_event;
pub mod event;
pub mod execution;
pub mod fate;
pub mod host;
pub mod idempotency;
mod postgres;
pub mod preview;
pub mod quota;
pub mod record;
pub mod sandbox;
mod schema;
pub mod secret;
pub mod setting;
mod sqlite;
pub mod tenant;
mod tx;
pub mod usage;
mod value;

pub use tx::Tx;
pub use value::{Row, Value, params};

use fate::{Fate, Fates};
use tx::Task;

/// How many jobs may wait for a writer or a reader before callers wait themselves.
const QUEUE_JOBS: usize = 1024;
/// Threads that read a SQLite file.
const READERS: usize = 4;
const AUDIT_READERS: usize = 1;
/// How long a caller waits for a place in the queue.
const QUEUE_WAIT: Duration = Duration::from_secs(10);

/// Where the state is.
#[derive(Debug, Clone)]
pub enum Settings {
    /// Embedded: one file, made if absent.
    Sqlite { path: PathBuf },
    /// A database shared by several schedulers.
    Postgres { url: String, connections: usize },
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open the store: {step}")]
    Open { step: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("apply schema version {version}")]
    Migrate { version: i64, source: Box<Error> },
    #[error("the store's schema is version {found}, this build knows only {known}")]
    SchemaNewer { found: i64, known: i64 },
    #[error("sqlite refused a statement")]
    Sqlite(#[source] rusqlite::Error),
    #[error("postgres refused a statement")]
    Postgres(#[source] Box<::postgres::Error>),
    /// A unique index refused the row. Prefer `ON CONFLICT DO NOTHING` where this is an expected answer.
    #[error("a row with the same unique value exists")]
    Unique,
    #[error("no such {what}")]
    Absent { what: &'static str },
    #[error("a statement's answer has no column {column}")]
    NoColumn { column: String },
    #[error("column {column} holds {found} where {expected} was expected")]
    ColumnType { column: String, expected: &'static str, found: &'static str },
    #[error("column {column} holds text that is not the expected JSON")]
    Json { column: String, source: serde_json::Error },
    #[error("column {column} holds the unknown word {word:?}")]
    UnknownWord { column: &'static str, word: String },
    #[error("the transaction lost against others {attempts} times")]
    Contention { attempts: u32 },
    #[error("the store has been busy for {} s", QUEUE_WAIT.as_secs())]
    Busy,
    #[error("a transaction's code panicked; nothing of it remains")]
    Panicked,
    #[error("the store is closed")]
    Closed,
}

impl Error {
    /// True where the same call may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Contention { .. } | Error::Busy | Error::Closed | Error::Postgres(_))
    }
}

/// A cheap handle; clones share the engine, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Store {
    queues: Arc<Queues>,
    fates: Option<Arc<dyn Fates>>,
}

#[derive(Debug)]
struct Queues {
    writes: mpsc::Sender<Box<dyn Task>>,
    reads: mpsc::Sender<Box<dyn Task>>,
}

impl Store {
    /// Opens the engine and applies what is missing of the schema. Blocks, so call it before serving or on a
    /// blocking thread.
    pub fn open(settings: Settings) -> Result<Store, Error> {
        Store::open_schema(settings, schema::MAIN, READERS)
    }

    /// A store of its own for egress audit rows, so that dropping old ones is cheap and their load is not ours.
    pub fn open_audit(settings: Settings) -> Result<Store, Error> {
        Store::open_schema(settings, schema::AUDIT, AUDIT_READERS)
    }

    fn open_schema(settings: Settings, schema: schema::Schema, readers: usize) -> Result<Store, Error> {
        let (writes, write_jobs) = mpsc::channel(QUEUE_JOBS);
        let (reads, read_jobs) = mpsc::channel(QUEUE_JOBS);
        match settings {
            Settings::Sqlite { path } => sqlite::start(&path, schema, readers, write_jobs, read_jobs)?,
            Settings::Postgres { url, connections } => {
                postgres::start(&url, connections, schema, write_jobs, read_jobs)?;
            }
        }
        Ok(Store { queues: Arc::new(Queues { writes, reads }), fates: None })
    }

    /// How many transactions wait: to write, to read.
    pub fn waiting(&self) -> (usize, usize) {
        (QUEUE_JOBS - self.queues.writes.capacity(), QUEUE_JOBS - self.queues.reads.capacity())
    }

    /// Runs `work` in one transaction and commits it. On `Err` nothing of it remains. `work` may run again.
    pub async fn write<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Fn(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
    {
        self.decide(work).await
    }

    /// Like [`Store::write`] for work that can also be refused: any `Err`, the caller's own included, rolls back.
    pub async fn decide<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: Fn(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    {
        let fate = self.fates.as_ref().map_or(Fate::Heard, |fates| fates.of_write());
        submit(&self.queues.writes, fate, work).await
    }

    /// Runs `work` on one consistent view of committed state.
    pub async fn read<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Fn(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
    {
        self.examine(work).await
    }

    /// Like [`Store::read`] for work that can fail in ways of its own.
    pub async fn examine<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: Fn(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    {
        let fate = self.fates.as_ref().map_or(Fate::Heard, |fates| fates.of_read());
        submit(&self.queues.reads, fate, work).await
    }
}

async fn submit<T, E, F>(queue: &mpsc::Sender<Box<dyn Task>>, fate: Fate, work: F) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Error> + Send + 'static,
    F: Fn(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    let task = match fate {
        Fate::Heard | Fate::Unheard => tx::task(work, reply),
        Fate::Rerun => tx::task(move |tx: &mut Tx<'_>| fate::rerun(tx, &work), reply),
        Fate::Refused => return Err(Error::Closed.into()),
    };
    match tokio::time::timeout(QUEUE_WAIT, queue.send(task)).await {
        Err(_) => return Err(Error::Busy.into()),
        Ok(Err(_)) => return Err(Error::Closed.into()),
        Ok(Ok(())) => {}
    }
    let answer = answer.await.unwrap_or_else(|_| Err(Error::Closed.into()));
    if fate == Fate::Unheard { Err(Error::Closed.into()) } else { answer }
}
