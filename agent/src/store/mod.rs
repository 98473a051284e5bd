//! The agent's own database: what it was told, what it did, what it has not reported yet.
//!
//! Owns the SQLite file and its schema. All SQL of the agent is in this folder. One connection writes and reads,
//! on blocking threads; a closure is one transaction, synchronous on disk (FULL) when it returns.

pub mod execution;
pub mod outbox;
pub mod retention;
pub mod sandbox;
pub mod usage;

use std::path::Path;
use std::sync::{Arc, Mutex};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

const SCHEMA: &str = include_str!("schema.sql");

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the agent's database failed")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the agent's database holds {what} {value:?}, which this build does not know")]
    Unreadable { what: &'static str, value: String },
    #[error("no {what} {id}")]
    Absent { what: &'static str, id: String },
    #[error("the database is at schema version {found}, this build knows {known}: install a newer agent")]
    FromTheFuture { found: i64, known: i64 },
    #[error("every VMM user id of {first}–{last} is in use: raise [vmm] uid_last")]
    NoFreeUid { first: u32, last: u32 },
    #[error("the database task ended early")]
    TaskEnded,
}

/// How sure it is that a write failed because the disk is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    Surely,
    /// What SQLite says of the first write of a journal on a full disk, and of other troubles.
    Perhaps,
}

impl Error {
    fn find_full(&self) -> Option<Full> {
        let Self::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) = self else { return None };
        if failure.code == rusqlite::ErrorCode::DiskFull {
            return Some(Full::Surely);
        }
        let perhaps = matches!(
            failure.extended_code,
            rusqlite::ffi::SQLITE_IOERR_WRITE
                | rusqlite::ffi::SQLITE_IOERR_SHMSIZE
                | rusqlite::ffi::SQLITE_IOERR_SHMOPEN
                | rusqlite::ffi::SQLITE_CANTOPEN
        );
        perhaps.then_some(Full::Perhaps)
    }
}

/// A cheap handle to the database.
#[derive(Debug, Clone)]
pub struct Store {
    connection: Arc<Mutex<Connection>>,
    on_full: OnFull,
}

/// Called when the disk may be full, before the failure is answered: whoever tries again may find room.
#[derive(Clone)]
struct OnFull(Arc<dyn Fn(Full) + Send + Sync>);

impl std::fmt::Debug for OnFull {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("OnFull")
    }
}

impl Store {
    /// Opens (or creates) the database and brings its schema up to date.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::prepare(Connection::open(path)?)
    }

    #[cfg(test)]
    pub fn in_memory() -> Self {
        Self::prepare(Connection::open_in_memory().expect("sqlite opens in memory"))
            .expect("the schema applies")
    }

    fn prepare(mut connection: Connection) -> Result<Self, Error> {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.busy_timeout(std::time::Duration::from_secs(10))?;
        migrate(&mut connection)?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), on_full: OnFull(Arc::new(|_| ())) })
    }

    /// With something that makes room if the disk is full.
    pub fn with_room_maker(self, make_room: impl Fn(Full) + Send + Sync + 'static) -> Self {
        Self { on_full: OnFull(Arc::new(make_room)), ..self }
    }

    /// Runs `job` as one transaction; nothing of it is visible unless it returns `Ok`.
    pub async fn write<T, F>(&self, job: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, Error> + Send + 'static,
    {
        let connection = Arc::clone(&self.connection);
        let on_full = self.on_full.clone();
        tokio::task::spawn_blocking(move || {
            // A poisoned lock only means that another job panicked; its transaction was rolled back.
            let mut connection = connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let outcome = transact(&mut connection, job);
            if let Some(full) = outcome.as_ref().err().and_then(Error::find_full) {
                (on_full.0)(full);
            }
            outcome
        })
        .await
        .map_err(|_| Error::TaskEnded)?
    }

    /// A fact about this host that outlives the agent, e.g. its id or the boot it last ran under.
    pub async fn find_fact(&self, key: &'static str) -> Result<Option<String>, Error> {
        self.write(move |tx| {
            Ok(tx
                .query_row("SELECT value FROM host_fact WHERE key = ?1", [key], |row| row.get(0))
                .optional()?)
        })
        .await
    }

    pub async fn record_fact(&self, key: &'static str, value: String) -> Result<(), Error> {
        self.write(move |tx| {
            tx.execute(
                "INSERT INTO host_fact (key, value) VALUES (?1, ?2)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
            )?;
            Ok(())
        })
        .await
    }
}

fn transact<T>(
    connection: &mut Connection,
    job: impl FnOnce(&Transaction<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let value = job(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

/// Applies each `-- version N` block of the schema that the file does not have yet, each in its own transaction.
fn migrate(connection: &mut Connection) -> Result<(), Error> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let blocks: Vec<&str> = SCHEMA.split("-- version ").skip(1).collect();
    let known = blocks.len() as i64;
    if found > known {
        return Err(Error::FromTheFuture { found, known });
    }
    for (index, block) in blocks.iter().enumerate().skip(found.max(0) as usize) {
        let statements = block.split_once('\n').map_or("", |(_, rest)| rest);
        let transaction = connection.transaction()?;
        transaction.execute_batch(statements)?;
        transaction.pragma_update(None, "user_version", index as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::room::{Room, SmallDisk};

    #[tokio::test]
    async fn a_second_open_changes_nothing_and_facts_survive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.db");
        let store = Store::open(&path).unwrap();
        store.record_fact("boot_id", "one".into()).await.unwrap();
        store.record_fact("boot_id", "two".into()).await.unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.find_fact("boot_id").await.unwrap().as_deref(), Some("two"));
        assert_eq!(store.find_fact("host_id").await.unwrap(), None);
    }

    #[test]
    fn a_newer_database_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.db");
        drop(Store::open(&path).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(Store::open(&path), Err(Error::FromTheFuture { found: 99, .. })));
    }

    #[tokio::test]
    async fn on_a_full_disk_the_ballast_is_given_back_and_commits_go_on() {
        let disk = SmallDisk::mount(16);
        let room = Room::new(disk.path().to_owned(), 0, 4);
        assert!(room.set_aside().unwrap());
        let (store, given) = (Store::open(&disk.path().join("agent.db")).unwrap(), room.clone());
        let store = store.with_room_maker(move |_| {
            given.give_way_if_full();
        });
        disk.fill();
        // Large enough that what the journal has allocated does not hold them all.
        let value = "x".repeat(64 << 10);
        let mut failures = 0;
        for _ in 0..40 {
            failures += usize::from(store.record_fact("large", value.clone()).await.is_err());
        }
        assert!(!disk.path().join("ballast").exists(), "it was never needed");
        assert_eq!(failures, 1, "only the commit that found the disk full");
        assert_eq!(store.find_fact("large").await.unwrap(), Some(value));
    }

    #[tokio::test]
    async fn a_failed_job_leaves_nothing() {
        let store = Store::in_memory();
        let outcome: Result<(), Error> = store
            .write(|tx| {
                tx.execute("INSERT INTO host_fact (key, value) VALUES ('a', 'b')", [])?;
                Err(Error::TaskEnded)
            })
            .await;
        assert!(outcome.is_err());
        assert_eq!(store.find_fact("a").await.unwrap(), None);
    }
}
