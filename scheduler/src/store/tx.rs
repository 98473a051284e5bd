//! One transaction as a closure sees it, and the closure as an engine sees it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::oneshot;

use super::value::{Row, Value};
use super::{Error, postgres, sqlite};

/// A running transaction. All statements of the scheduler go through these four functions.
#[derive(Debug)]
pub struct Tx<'a> {
    session: Session<'a>,
    lost: bool,
}

#[derive(Debug)]
pub(super) enum Session<'a> {
    Sqlite(&'a rusqlite::Connection),
    Postgres(&'a mut postgres::Session),
}

impl<'a> Tx<'a> {
    pub(super) fn new(session: Session<'a>) -> Tx<'a> {
        Tx { session, lost: false }
    }

    /// Runs a statement and says how many rows it changed.
    pub fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, Error> {
        let done = match &mut self.session {
            Session::Sqlite(connection) => sqlite::execute(connection, sql, params),
            Session::Postgres(session) => session.execute(sql, params),
        };
        self.note(done)
    }

    pub fn query(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Row>, Error> {
        let rows = match &mut self.session {
            Session::Sqlite(connection) => sqlite::query(connection, sql, params),
            Session::Postgres(session) => session.query(sql, params),
        };
        self.note(rows)
    }

    /// Rows without the names of their columns, for [`super::record`].
    pub(super) fn query_values(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Vec<Value>>, Error> {
        let rows = match &mut self.session {
            Session::Sqlite(connection) => sqlite::query_values(connection, sql, params),
            Session::Postgres(session) => session.query_values(sql, params),
        };
        self.note(rows)
    }

    /// The only row, or the first; [`Error::Absent`] if there is none.
    pub fn query_one(&mut self, what: &'static str, sql: &str, params: &[Value]) -> Result<Row, Error> {
        self.find_one(sql, params)?.ok_or(Error::Absent { what })
    }

    pub fn find_one(&mut self, sql: &str, params: &[Value]) -> Result<Option<Row>, Error> {
        Ok(self.query(sql, params)?.into_iter().next())
    }

    /// True once a statement lost against another transaction: whatever the closure then makes of the error, the
    /// engine runs it again.
    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    fn note<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(Error::Postgres(source)) = &result
            && postgres::is_lost(source)
        {
            self.lost = true;
        }
        result
    }
}

/// What an engine does with a job: run it (perhaps again), then say how it ended.
pub(super) trait Task: Send {
    /// Runs the closure; true if its effects are to be committed.
    fn run(&mut self, tx: &mut Tx<'_>) -> bool;
    /// Hands the closure's last result to the caller, or the reason why there is none.
    fn finish(self: Box<Self>, committed: Result<(), Error>);
}

struct Job<T, E, F> {
    work: F,
    result: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

pub(super) fn task<T, E, F>(work: F, reply: oneshot::Sender<Result<T, E>>) -> Box<dyn Task>
where
    T: Send + 'static,
    E: From<Error> + Send + 'static,
    F: Fn(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
{
    Box::new(Job { work, result: None, reply })
}

impl<T, E, F> Task for Job<T, E, F>
where
    T: Send,
    E: From<Error> + Send,
    F: Fn(&mut Tx<'_>) -> Result<T, E> + Send,
{
    fn run(&mut self, tx: &mut Tx<'_>) -> bool {
        // One closure's mistake must not take the thread, and with it everybody's store.
        let result = catch_unwind(AssertUnwindSafe(|| (self.work)(tx)))
            .unwrap_or_else(|_| Err(Error::Panicked.into()));
        let commit = result.is_ok();
        self.result = Some(result);
        commit
    }

    fn finish(self: Box<Self>, committed: Result<(), Error>) {
        let answer = match (committed, self.result) {
            (Ok(()), Some(result)) => result,
            (Ok(()), None) => Err(Error::Closed.into()),
            (Err(error), _) => Err(error.into()),
        };
        // A caller that went away does not need the answer; what was committed stays.
        let _ = self.reply.send(answer);
    }
}
