//! The shared engine: a fixed number of threads, each owning one connection to PostgreSQL.
//!
//! The synchronous client runs a tokio runtime of its own and must neither be used nor dropped inside another one, so
//! connections live and die on these threads. Transactions are SERIALIZABLE; one that loses runs again, a bounded
//! number of times.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use postgres::error::SqlState;
use postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use postgres::{Client, NoTls, Statement};
use tokio::sync::mpsc;

use super::Error;
use super::schema::{self, Dialect, Schema};
use super::tx::{Session as TxSession, Task, Tx};
use super::value::{Row, Value};

/// How long a transaction that loses against others is tried again. By time, not by count: in a burst of creates over
/// two schedulers the unluckiest one loses as often as there are others.
const PATIENCE: Duration = Duration::from_secs(5);
const BACKOFF_FIRST: Duration = Duration::from_millis(1);
const BACKOFF_MOST: Duration = Duration::from_millis(50);
const STATEMENT_CACHE: usize = 256;
/// The advisory lock under which one scheduler at a time migrates the schema: "roost" in ASCII.
const MIGRATION_LOCK: &str = "SELECT pg_advisory_xact_lock(492323336052)";

type Jobs = Arc<Mutex<mpsc::Receiver<Box<dyn Task>>>>;

pub(super) fn start(
    url: &str,
    connections: usize,
    schema: Schema,
    writes: mpsc::Receiver<Box<dyn Task>>,
    reads: mpsc::Receiver<Box<dyn Task>>,
) -> Result<(), Error> {
    let config: postgres::Config =
        url.parse().map_err(|e| Error::Open { step: "read the PostgreSQL address", source: Box::new(e) })?;
    let (writes, reads) = (Arc::new(Mutex::new(writes)), Arc::new(Mutex::new(reads)));
    let (ready, opened) = std::sync::mpsc::channel();
    let connections = connections.max(2);
    for number in 0..connections {
        // Readers and writers wait on queues of their own, so neither can starve the other.
        let (jobs, begin) = match number % 2 {
            0 => (writes.clone(), "BEGIN ISOLATION LEVEL SERIALIZABLE"),
            _ => (reads.clone(), "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY"),
        };
        let (config, ready) = (config.clone(), ready.clone());
        let migrates = (number == 0).then_some(schema);
        std::thread::Builder::new()
            .name(format!("store-pg-{number}"))
            .spawn(move || serve(&config, begin, &jobs, migrates, &ready))
            .map_err(|source| Error::Open { step: "start a thread", source: Box::new(source) })?;
    }
    for _ in 0..connections {
        opened.recv().map_err(|_| Error::Closed)??;
    }
    Ok(())
}

fn serve(
    config: &postgres::Config,
    begin: &'static str,
    jobs: &Jobs,
    migrates: Option<Schema>,
    ready: &std::sync::mpsc::Sender<Result<(), Error>>,
) {
    let opened = Session::connect(config).and_then(|mut session| {
        if let Some(schema) = migrates {
            session.migrate(schema)?;
        }
        Ok(session)
    });
    let mut session = match opened {
        Ok(session) => {
            let _ = ready.send(Ok(()));
            Some(session)
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    loop {
        let next = jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).blocking_recv();
        let Some(mut task) = next else { return };
        let outcome =
            begun(&mut session, config, begin).and_then(|session| session.run(begin, task.as_mut()));
        if session.as_ref().is_some_and(|session| session.client.is_closed()) {
            session = None;
        }
        task.finish(outcome);
    }
}

/// A session within a fresh transaction. A connection that died since its last job is replaced: nothing is lost by
/// that before a transaction has begun.
fn begun<'a>(
    session: &'a mut Option<Session>,
    config: &postgres::Config,
    begin: &str,
) -> Result<&'a mut Session, Error> {
    if let Some(known) = session
        && known.batch(begin).is_err()
    {
        *session = None;
    }
    match session {
        Some(session) => Ok(session),
        None => {
            let session = session.insert(Session::connect(config)?);
            session.batch(begin)?;
            Ok(session)
        }
    }
}

/// One connection and its prepared statements.
pub(super) struct Session {
    client: Client,
    statements: HashMap<String, (Statement, Arc<[String]>)>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}

impl Session {
    fn connect(config: &postgres::Config) -> Result<Session, Error> {
        let client = config
            .connect(NoTls)
            .map_err(|source| Error::Open { step: "connect to PostgreSQL", source: Box::new(source) })?;
        Ok(Session { client, statements: HashMap::new() })
    }

    fn migrate(&mut self, schema: Schema) -> Result<(), Error> {
        self.batch("BEGIN")?;
        let done = self.batch(MIGRATION_LOCK).and_then(|()| {
            schema::migrate(&mut Tx::new(TxSession::Postgres(self)), schema, Dialect::Postgres)
        });
        self.batch(if done.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
        done
    }

    /// Runs the task in the transaction that has begun, and in further ones while it loses.
    fn run(&mut self, begin: &str, task: &mut dyn Task) -> Result<(), Error> {
        let mut backoff = BACKOFF_FIRST;
        let (begun, mut attempts) = (Instant::now(), 0);
        loop {
            if attempts > 0 {
                self.batch(begin)?;
            }
            attempts += 1;
            let mut tx = Tx::new(TxSession::Postgres(self));
            let commit = task.run(&mut tx);
            let mut lost = tx.is_lost();
            if commit && !lost {
                match self.batch("COMMIT") {
                    Ok(()) => return Ok(()),
                    Err(Error::Postgres(source)) if is_lost(&source) => lost = true,
                    Err(error) => return Err(error),
                }
            } else {
                // A connection that is gone has rolled back by itself; the task's own result says what happened.
                let _ = self.batch("ROLLBACK");
            }
            if !lost {
                return Ok(());
            }
            if begun.elapsed() >= PATIENCE {
                return Err(Error::Contention { attempts });
            }
            std::thread::sleep(backoff.mul_f64(jitter()));
            backoff = (backoff * 2).min(BACKOFF_MOST);
        }
    }

    fn batch(&mut self, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).map_err(error)
    }

    fn prepare(&mut self, sql: &str) -> Result<(Statement, Arc<[String]>), Error> {
        if let Some(known) = self.statements.get(sql) {
            return Ok(known.clone());
        }
        let statement = self.client.prepare(&rewrite(sql)).map_err(error)?;
        let columns = statement.columns().iter().map(|column| column.name().to_owned()).collect();
        if self.statements.len() >= STATEMENT_CACHE {
            self.statements.clear();
        }
        self.statements.insert(sql.to_owned(), (statement.clone(), Arc::clone(&columns)));
        Ok((statement, columns))
    }

    pub(super) fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, Error> {
        let (statement, _) = self.prepare(sql)?;
        self.client.execute(&statement, &borrowed(params)).map_err(error)
    }

    pub(super) fn query(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Row>, Error> {
        let (statement, columns) = self.prepare(sql)?;
        let values = self.collect(&statement, params)?;
        Ok(values.into_iter().map(|values| Row { columns: columns.clone(), values }).collect())
    }

    pub(super) fn query_values(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Vec<Value>>, Error> {
        let (statement, _) = self.prepare(sql)?;
        self.collect(&statement, params)
    }

    fn collect(&mut self, statement: &Statement, params: &[Value]) -> Result<Vec<Vec<Value>>, Error> {
        let rows = self.client.query(statement, &borrowed(params)).map_err(error)?;
        let values = |row: postgres::Row| {
            (0..row.len()).map(|at| row.try_get::<_, Value>(at).map_err(error)).collect()
        };
        rows.into_iter().map(values).collect()
    }
}

fn borrowed(params: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    params.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

/// A factor between 0.5 and 1.5, so that transactions that met once do not meet again in step.
fn jitter() -> f64 {
    let mut byte = [0u8; 1];
    let _ = getrandom::fill(&mut byte);
    0.5 + f64::from(byte[0]) / 255.0
}

/// `?1` becomes `$1`. No statement of ours has a question mark in a literal.
fn rewrite(sql: &str) -> String {
    sql.replace('?', "$")
}

/// True if the transaction lost against another and may simply run again.
pub(super) fn is_lost(source: &postgres::Error) -> bool {
    let lost = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED];
    source.code().is_some_and(|code| lost.contains(code))
}

fn error(source: postgres::Error) -> Error {
    match source.code() {
        Some(code) if *code == SqlState::UNIQUE_VIOLATION => Error::Unique,
        _ => Error::Postgres(Box::new(source)),
    }
}

type BoxError = Box<dyn std::error::Error + Sync + Send>;

impl ToSql for Value {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        match self {
            Value::Null => Ok(IsNull::Yes),
            Value::Int(value) if *ty == Type::INT8 => value.to_sql(ty, out),
            Value::Text(text) if *ty == Type::TEXT => text.to_sql(ty, out),
            Value::Bytes(bytes) if *ty == Type::BYTEA => bytes.to_sql(ty, out),
            other => Err(format!("a parameter of type {ty} was given {other:?}").into()),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Value {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Value, BoxError> {
        match *ty {
            Type::INT8 => i64::from_sql(ty, raw).map(Value::Int),
            Type::INT4 => i32::from_sql(ty, raw).map(Value::from),
            Type::TEXT => String::from_sql(ty, raw).map(Value::Text),
            Type::BYTEA => Vec::from_sql(ty, raw).map(Value::Bytes),
            _ => Err(format!("a column has the type {ty}; cast it to BIGINT, TEXT or BYTEA").into()),
        }
    }

    fn from_sql_null(_: &Type) -> Result<Value, BoxError> {
        Ok(Value::Null)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
