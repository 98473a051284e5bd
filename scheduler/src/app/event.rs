//! Events as they happen: of one sandbox, or of everything the caller sees.
//!
//! An event's time is taken before its transaction commits, and from the clock of the scheduler that commits it, so
//! one that comes late may carry an earlier time than one already sent: every look goes back a little and leaves out
//! what was sent. Events of one sandbox have times in their order; only among those of a tenant can one that comes
//! late be missed by a reader that comes back in between.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::Stream;
use roost_api::Timestamp;
use roost_api::event::Event;
use serde_json::Value;

use super::{App, Caller, Error, Scope, sandbox};
use crate::store::event as table;

const BATCH: u32 = 500;
/// How long a transaction may be on its way, and how far a scheduler's clock may be behind.
const LOOK_BACK_US: i64 = 10_000_000;
/// How long a change that was announced nowhere may go unseen.
const POLL: Duration = Duration::from_secs(1);

/// Which events.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// By id or slug; everything where there is none.
    pub sandbox: Option<String>,
    /// Exact names, or beginnings that end in `*`; all where there is none.
    pub types: Vec<String>,
    /// The last one the caller has; from now on where there is none.
    pub after: Option<String>,
}

/// Events from now on, or from the one named on, until the caller goes away.
pub async fn follow(
    app: std::sync::Arc<App>,
    caller: Caller,
    wanted: Wanted,
) -> Result<impl Stream<Item = Event> + Send + 'static, Error> {
    caller.require(Scope::SandboxesRead)?;
    let sandbox = match &wanted.sandbox {
        Some(reference) => Some(sandbox::row(&app, &caller, reference).await?.id),
        None => None,
    };
    let mut reader = Reader::start(&app, &caller, sandbox.as_deref(), wanted.after.clone()).await?;
    Ok(async_stream::stream! {
        let mut changes = app.fleet.changes();
        loop {
            // A store that fails ends the stream; the caller comes back with the last id it has.
            let Ok(rows) = reader.next(&app, &caller, sandbox.as_deref()).await else { return };
            let idle = rows.is_empty();
            for row in rows {
                if is_wanted(&wanted.types, &row.kind) && is_visible(&caller, &row.data) {
                    yield record(row);
                }
            }
            if idle {
                // Either outcome means: look again.
                let _ = tokio::time::timeout(POLL, changes.changed()).await;
            }
        }
    })
}

/// A place in the order of events, and what was sent near it.
#[derive(Debug)]
struct Reader {
    /// Nothing before this is sent.
    from: (i64, String),
    latest_us: i64,
    sent: BTreeMap<String, i64>,
}

impl Reader {
    async fn start(
        app: &App,
        caller: &Caller,
        sandbox: Option<&str>,
        after: Option<String>,
    ) -> Result<Reader, Error> {
        let tenant_id = caller.tenant_id.clone();
        let found = match after {
            Some(id) => app.store.read(move |tx| table::find(tx, &tenant_id, &id)).await?,
            None => None,
        };
        if let Some(row) = found {
            let (latest_us, from) = (row.created_us, (row.created_us, row.id));
            return Ok(Reader { from, latest_us, sent: BTreeMap::new() });
        }
        let now_us = app.now_us();
        let from_us = now_us - LOOK_BACK_US;
        let (tenant_id, sandbox) = (caller.tenant_id.clone(), sandbox.map(str::to_owned));
        // What is there was before; what is yet to come may carry a time before now all the same. In one look: a busy
        // tenant's events never cease to come, and what came between two looks would be taken for old.
        let before =
            app.store.read(move |tx| table::list_places(tx, &tenant_id, sandbox.as_deref(), from_us, now_us));
        let sent = before.await?.into_iter().collect();
        Ok(Reader { from: (from_us, String::new()), latest_us: now_us, sent })
    }

    /// What was not sent yet, oldest first.
    async fn next(
        &mut self,
        app: &App,
        caller: &Caller,
        sandbox: Option<&str>,
    ) -> Result<Vec<table::Event>, Error> {
        let back_us = self.latest_us - LOOK_BACK_US;
        let mut after = if back_us > self.from.0 { (back_us, String::new()) } else { self.from.clone() };
        let mut fresh = Vec::new();
        loop {
            let (tenant_id, sandbox, place) =
                (caller.tenant_id.clone(), sandbox.map(str::to_owned), after.clone());
            let rows = app.store.read(move |tx| {
                table::list_after(tx, &tenant_id, sandbox.as_deref(), (place.0, &place.1), BATCH)
            });
            let rows = rows.await?;
            let more = rows.len() == BATCH as usize;
            if let Some(last) = rows.last() {
                after = (last.created_us, last.id.clone());
            }
            for row in rows {
                self.latest_us = self.latest_us.max(row.created_us);
                if self.sent.insert(row.id.clone(), row.created_us).is_none() {
                    fresh.push(row);
                }
            }
            if !more || !fresh.is_empty() {
                break;
            }
        }
        let forget_us = self.latest_us - LOOK_BACK_US;
        self.sent.retain(|_, created_us| *created_us >= forget_us);
        Ok(fresh)
    }
}

fn is_wanted(types: &[String], kind: &str) -> bool {
    let fits = |wanted: &String| match wanted.strip_suffix('*') {
        Some(beginning) => kind.starts_with(beginning),
        None => kind == wanted,
    };
    types.is_empty() || types.iter().any(fits)
}

/// A workspace's key hears of its own workspace only.
fn is_visible(caller: &Caller, data: &Value) -> bool {
    match (&caller.workspace_id, data.get("workspace_id").and_then(Value::as_str)) {
        (None, _) => true,
        (Some(own), Some(workspace_id)) => own == workspace_id,
        (Some(_), None) => false,
    }
}

fn record(row: table::Event) -> Event {
    let created_at = Timestamp::from_micros(row.created_us);
    Event { id: row.id, kind: row.kind, created_at, data: row.data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_exact_or_beginnings() {
        let types = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        assert!(is_wanted(&[], "sandbox.created"));
        assert!(is_wanted(&types(&["sandbox.*"]), "sandbox.created"));
        assert!(is_wanted(&types(&["x", "sandbox.created"]), "sandbox.created"));
        assert!(!is_wanted(&types(&["sandbox"]), "sandbox.created"));
        assert!(!is_wanted(&types(&["sandbox.create"]), "sandbox.created"));
    }
}
