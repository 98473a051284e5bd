//! Table `event`: what happened to a tenant's resources, for event streams and webhooks.

use super::record::{self, Conditions, record};
use super::{Error, Tx, params};

record! {
    pub struct Event in "event" {
        id: String,
        tenant_id: String,
        /// Like `sandbox.running`.
        kind: String,
        sandbox_id: Option<String>,
        data: serde_json::Value,
        created_us: i64,
    }
}

/// Inserts the event, later than every one its sandbox has: schedulers' clocks differ, and what follows from something
/// must not be listed before it, nor before the place from which a reader goes on.
pub fn insert(tx: &mut Tx<'_>, event: &Event) -> Result<(), Error> {
    let sql = "SELECT created_us FROM event WHERE sandbox_id = ?1 ORDER BY created_us DESC LIMIT 1";
    let latest = match &event.sandbox_id {
        Some(id) => tx.find_one(sql, params![id])?.map(|row| row.int("created_us")).transpose()?,
        None => None,
    };
    let created_us = latest.map_or(event.created_us, |latest| event.created_us.max(latest + 1));
    record::insert(tx, &Event { created_us, ..event.clone() })
}

/// Events after `after` (its time and id), oldest first.
pub fn list_after(
    tx: &mut Tx<'_>,
    tenant: &str,
    sandbox: Option<&str>,
    after: (i64, &str),
    limit: u32,
) -> Result<Vec<Event>, Error> {
    let mut where_ = Conditions::new("tenant_id", tenant);
    where_.push_if("sandbox_id", "=", &sandbox);
    let (time, id) = (where_.place(after.0), where_.place(after.1));
    where_.push_clause(format!("(created_us > {time} OR (created_us = {time} AND id > {id}))"));
    let limit = where_.place(limit);
    let (where_, params) = where_.finish();
    record::list(tx, &format!("{where_} ORDER BY created_us, id LIMIT {limit}"), &params)
}

/// The ids and times of what was recorded by now with a time from `from_us` to `to_us`: all in one view, so that what
/// is committed meanwhile is not among them.
pub fn list_places(
    tx: &mut Tx<'_>,
    tenant: &str,
    sandbox: Option<&str>,
    from_us: i64,
    to_us: i64,
) -> Result<Vec<(String, i64)>, Error> {
    let mut where_ = Conditions::new("tenant_id", tenant);
    where_.push_if("sandbox_id", "=", &sandbox);
    where_.push("created_us", ">=", from_us);
    where_.push("created_us", "<=", to_us);
    let (where_, params) = where_.finish();
    let rows = tx.query(&format!("SELECT id, created_us FROM event {where_}"), &params)?;
    rows.iter().map(|row| Ok((row.text("id")?, row.int("created_us")?))).collect()
}

pub fn find(tx: &mut Tx<'_>, tenant: &str, id: &str) -> Result<Option<Event>, Error> {
    record::find(tx, "WHERE tenant_id = ?1 AND id = ?2", params![tenant, id])
}

/// Removes what is older; returns how many.
pub fn remove_before(tx: &mut Tx<'_>, before_us: i64) -> Result<u64, Error> {
    tx.execute("DELETE FROM event WHERE created_us < ?1", params![before_us])
}
