//! The embedded engine: one thread that owns the only writing connection, a few that read.
//!
//! Writers never meet `SQLITE_BUSY`, because there is only one. What waits in the queue is committed together: each
//! job in a savepoint of its own, one `COMMIT` (and so one fsync) for all of them.

use std::path::Path;
use std::sync::{Arc, Mutex};

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, Statement, ToSql};
use tokio::sync::mpsc;

use super::Error;
use super::schema::{self, Dialect, Schema};
use super::tx::{Session, Task, Tx};
use super::value::{Row, Value};

const BATCH_JOBS: usize = 256;
const STATEMENT_CACHE: usize = 256;

pub(super) fn start(
    path: &Path,
    schema: Schema,
    readers: usize,
    writes: mpsc::Receiver<Box<dyn Task>>,
    reads: mpsc::Receiver<Box<dyn Task>>,
) -> Result<(), Error> {
    let writer = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    migrate(&writer, schema)?;
    spawn("store-write", move || write_loop(&writer, writes))?;
    let reads = Arc::new(Mutex::new(reads));
    for _ in 0..readers {
        let reader = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        reader.pragma_update(None, "query_only", true).map_err(open_error("make a reader"))?;
        let reads = reads.clone();
        spawn("store-read", move || read_loop(&reader, &reads))?;
    }
    Ok(())
}

fn open(path: &Path, flags: OpenFlags) -> Result<Connection, Error> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(open_error("open the database file"))?;
    let set = |name: &str, value: &dyn ToSql| connection.pragma_update(None, name, value);
    set("journal_mode", &"wal")
        .and_then(|()| set("synchronous", &"full"))
        .and_then(|()| set("foreign_keys", &true))
        .and_then(|()| set("case_sensitive_like", &true))
        .and_then(|()| connection.busy_timeout(super::QUEUE_WAIT))
        .map_err(open_error("set up the connection"))?;
    connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
    Ok(connection)
}

fn open_error(step: &'static str) -> impl Fn(rusqlite::Error) -> Error {
    move |source| Error::Open { step, source: Box::new(source) }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    thread.map(|_| ()).map_err(|source| Error::Open { step: "start a thread", source: Box::new(source) })
}

fn migrate(connection: &Connection, schema: Schema) -> Result<(), Error> {
    batch(connection, "BEGIN IMMEDIATE")?;
    let done = schema::migrate(&mut Tx::new(Session::Sqlite(connection)), schema, Dialect::Sqlite);
    batch(connection, if done.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
    done
}

fn write_loop(connection: &Connection, mut jobs: mpsc::Receiver<Box<dyn Task>>) {
    while let Some(first) = jobs.blocking_recv() {
        let mut tasks = vec![first];
        while tasks.len() < BATCH_JOBS
            && let Ok(next) = jobs.try_recv()
        {
            tasks.push(next);
        }
        write_batch(connection, tasks);
    }
}

fn write_batch(connection: &Connection, mut tasks: Vec<Box<dyn Task>>) {
    if run_batch(connection, &mut tasks).is_ok() {
        for task in tasks {
            task.finish(Ok(()));
        }
        return;
    }
    // One job took the whole transaction down (disk full, say): let each meet its own fate.
    for task in tasks {
        let mut alone = [task];
        let outcome = run_batch(connection, &mut alone);
        let [task] = alone;
        task.finish(outcome);
    }
}

fn run_batch(connection: &Connection, tasks: &mut [Box<dyn Task>]) -> Result<(), Error> {
    let outcome = batch(connection, "BEGIN IMMEDIATE").and_then(|()| {
        for task in tasks.iter_mut() {
            batch(connection, "SAVEPOINT job")?;
            if !task.run(&mut Tx::new(Session::Sqlite(connection))) {
                batch(connection, "ROLLBACK TO job")?;
            }
            batch(connection, "RELEASE job")?;
        }
        batch(connection, "COMMIT")
    });
    if outcome.is_err() && !connection.is_autocommit() {
        // Failing here leaves the connection in a transaction; the next BEGIN reports that.
        let _ = batch(connection, "ROLLBACK");
    }
    outcome
}

fn read_loop(connection: &Connection, jobs: &Mutex<mpsc::Receiver<Box<dyn Task>>>) {
    loop {
        let next = jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).blocking_recv();
        let Some(mut task) = next else { return };
        let outcome = batch(connection, "BEGIN");
        if outcome.is_ok() {
            task.run(&mut Tx::new(Session::Sqlite(connection)));
            let _ = batch(connection, "ROLLBACK");
        }
        task.finish(outcome);
    }
}

fn batch(connection: &Connection, sql: &str) -> Result<(), Error> {
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    statement.raw_execute().map(|_| ()).map_err(error)
}

pub(super) fn execute(connection: &Connection, sql: &str, params: &[Value]) -> Result<u64, Error> {
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    let changed = statement.execute(rusqlite::params_from_iter(params)).map_err(error)?;
    Ok(changed as u64)
}

pub(super) fn query(connection: &Connection, sql: &str, params: &[Value]) -> Result<Vec<Row>, Error> {
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    let columns: Arc<[String]> = statement.column_names().map(str::to_owned).collect();
    let values = collect(&mut statement, params)?;
    Ok(values.into_iter().map(|values| Row { columns: columns.clone(), values }).collect())
}

pub(super) fn query_values(
    connection: &Connection,
    sql: &str,
    params: &[Value],
) -> Result<Vec<Vec<Value>>, Error> {
    collect(&mut *connection.prepare_cached(sql).map_err(error)?, params)
}

fn collect(statement: &mut Statement<'_>, params: &[Value]) -> Result<Vec<Vec<Value>>, Error> {
    let columns = statement.column_count();
    let mut rows = statement.query(rusqlite::params_from_iter(params)).map_err(error)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(error)? {
        let values = (0..columns).map(|at| value(row.get_ref(at).map_err(error)?, at));
        found.push(values.collect::<Result<_, Error>>()?);
    }
    Ok(found)
}

fn value(raw: ValueRef<'_>, at: usize) -> Result<Value, Error> {
    let wrong = |found| {
        let column = format!("number {at}");
        Error::ColumnType { column, expected: "integer, text or bytes", found }
    };
    match raw {
        ValueRef::Null => Ok(Value::Null),
        ValueRef::Integer(value) => Ok(Value::Int(value)),
        ValueRef::Text(text) => std::str::from_utf8(text)
            .map(|text| Value::Text(text.to_owned()))
            .map_err(|_| wrong("text that is not UTF-8")),
        ValueRef::Blob(bytes) => Ok(Value::Bytes(bytes.to_vec())),
        ValueRef::Real(_) => Err(wrong("a float")),
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Null => ValueRef::Null,
            Value::Int(value) => ValueRef::Integer(*value),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

fn error(source: rusqlite::Error) -> Error {
    use rusqlite::ffi::{SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE};
    match source.sqlite_error().map(|e| e.extended_code) {
        Some(SQLITE_CONSTRAINT_UNIQUE | SQLITE_CONSTRAINT_PRIMARYKEY) => Error::Unique,
        _ => Error::Sqlite(source),
    }
}
