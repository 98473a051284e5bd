//! What may happen to one transaction besides going well: the seam at which tests let a scheduler fail or die.
//!
//! Owns the meaning of each fate and nothing else; which transaction meets which is decided by whoever made the
//! handle ([`Store::under`]). A running scheduler has none.

use std::fmt;

use super::{Error, Store, Tx, params};

/// What becomes of one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It runs and its caller hears how it ended.
    Heard,
    /// It does not run.
    Refused,
    /// It runs and its caller does not hear of it: the connection broke at the commit, or the process died after it.
    Unheard,
    /// The engine runs it, takes it back and runs it again, as after a serialisation failure.
    Rerun,
}

/// Decides what becomes of transactions, in the order they are asked for.
pub trait Fates: fmt::Debug + Send + Sync {
    fn of_write(&self) -> Fate;
    fn of_read(&self) -> Fate;
}

impl Store {
    /// Another handle on the same engine whose transactions meet these fates.
    pub fn under(&self, fates: std::sync::Arc<dyn Fates>) -> Store {
        Store { queues: self.queues.clone(), fates: Some(fates) }
    }
}

/// Runs `work` as an engine does that lost the first time.
pub(super) fn rerun<T, E: From<Error>>(
    tx: &mut Tx<'_>,
    work: impl Fn(&mut Tx<'_>) -> Result<T, E>,
) -> Result<T, E> {
    tx.execute("SAVEPOINT first_run", params![])?;
    // What it made of the first run is lost with it, a refusal included.
    drop(work(tx));
    tx.execute("ROLLBACK TO SAVEPOINT first_run", params![])?;
    work(tx)
}
