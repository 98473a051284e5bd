//! The egress audit: taking in what egress processes ship, and answering queries over it.
//!
//! Rows live apart from the main store: beside SQLite in one file per day (`audit/YYYYMMDD.db`, retention drops
//! files), beside PostgreSQL in a table of its own. The day is that of the event id, so intent and completion meet
//! whenever they come. Tenant and external ids are the scheduler's own, never the upload's.

mod days;
mod ingest;

use std::path::PathBuf;

pub use ingest::Taken;

use crate::store::egress_event::{self, EgressEvent, Filter};
use crate::store::{self, Settings, Store};
use days::{Day, Days};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the audit store failed")]
    Store(#[from] store::Error),
    #[error("{step} {}", path.display())]
    File { step: &'static str, path: PathBuf, source: std::io::Error },
    #[error("opening a day's audit was cut short")]
    Cancelled,
}

/// Most rows of one answer.
pub const LIMIT_MAX: u32 = 1000;

/// A cheap handle on the egress audit.
#[derive(Debug, Clone)]
pub struct Audit {
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Days(Days),
    Table(Store),
}

impl Audit {
    /// Beside a SQLite store: one file per day in `directory`.
    pub fn in_directory(directory: PathBuf) -> Result<Audit, Error> {
        Ok(Audit { place: Place::Days(Days::open(directory)?) })
    }

    /// Beside a PostgreSQL store: a table in the same database. Blocks.
    pub fn in_database(url: String, connections: usize) -> Result<Audit, Error> {
        let store = Store::open_audit(Settings::Postgres { url, connections })?;
        Ok(Audit { place: Place::Table(store) })
    }

    /// Rows in the order of their times. A filter without a tenant matches nothing.
    pub async fn list(&self, filter: Filter) -> Result<Vec<EgressEvent>, Error> {
        let filter = Filter { limit: filter.limit.min(LIMIT_MAX), ..filter };
        match &self.place {
            Place::Table(store) => Ok(store.read(move |tx| egress_event::list(tx, &filter)).await?),
            Place::Days(days) => list_days(days, filter).await,
        }
    }

    pub async fn find(&self, tenant: &str, event_id: &str) -> Result<Option<EgressEvent>, Error> {
        let Some(day) = Day::of_event(event_id) else { return Ok(None) };
        let Some(store) = self.find_day(day).await? else { return Ok(None) };
        let (tenant, event_id) = (tenant.to_owned(), event_id.to_owned());
        Ok(store.read(move |tx| egress_event::find(tx, &tenant, &event_id)).await?)
    }

    /// Drops whole days (or rows) older than `before_us`.
    pub async fn remove_before(&self, before_us: i64) -> Result<u64, Error> {
        match &self.place {
            Place::Table(store) => {
                Ok(store.write(move |tx| egress_event::remove_before(tx, before_us)).await?)
            }
            Place::Days(days) => days.remove_before(Day::of_time(before_us)),
        }
    }

    async fn find_day(&self, day: Day) -> Result<Option<Store>, Error> {
        match &self.place {
            Place::Table(store) => Ok(Some(store.clone())),
            Place::Days(days) => days.find(day).await,
        }
    }

    async fn ensure_day(&self, day: Day) -> Result<Store, Error> {
        match &self.place {
            Place::Table(store) => Ok(store.clone()),
            Place::Days(days) => days.ensure(day).await,
        }
    }
}

/// Goes through the days in the order asked for until there are enough rows.
async fn list_days(days: &Days, filter: Filter) -> Result<Vec<EgressEvent>, Error> {
    // The day is that of the event id, which an egress process makes a moment before or after the event's time.
    const EDGE_US: i64 = 3_600_000_000;
    let after_us = filter.after.as_ref().map(|(time_us, _)| *time_us);
    let (low, high) = match filter.newest_first {
        true => (filter.since_us, after_us.or(filter.until_us)),
        false => (after_us.or(filter.since_us), filter.until_us),
    };
    let first = low.map_or(Day::MIN, |us| Day::of_time(us.saturating_sub(EDGE_US)));
    let last = high.map_or(Day::MAX, |us| Day::of_time(us.saturating_add(EDGE_US)));
    let mut candidates: Vec<Day> =
        days.list()?.into_iter().filter(|day| (first..=last).contains(day)).collect();
    if filter.newest_first {
        candidates.reverse();
    }
    let mut rows: Vec<EgressEvent> = Vec::new();
    for day in candidates {
        let Some(store) = days.find(day).await? else { continue };
        let wanted = filter.limit.saturating_sub(u32::try_from(rows.len()).unwrap_or(u32::MAX));
        if wanted == 0 {
            break;
        }
        let filter = Filter { limit: wanted, ..filter.clone() };
        rows.extend(store.read(move |tx| egress_event::list(tx, &filter)).await?);
    }
    Ok(rows)
}
