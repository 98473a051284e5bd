//! One SQLite file per day, opened when needed, a few kept open.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use roost_domain::id::EventId;

use super::Error;
use crate::store::{Settings, Store};

const DAY_US: i64 = 86_400_000_000;
/// Files kept open; each costs two threads.
const OPEN_MAX: usize = 8;

/// Days since 1970 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Day(i64);

impl Day {
    pub(super) const MIN: Day = Day(i64::MIN);
    pub(super) const MAX: Day = Day(i64::MAX);

    pub(super) fn of_time(us: i64) -> Day {
        Day(us.div_euclid(DAY_US))
    }

    /// The day an event id was made on.
    pub(super) fn of_event(event_id: &str) -> Option<Day> {
        let ms = EventId::parse(event_id).ok()?.ulid().timestamp_ms();
        i64::try_from(ms).ok()?.checked_mul(1000).map(Day::of_time)
    }

    /// How many days later than `other`.
    pub(super) fn since(self, other: Day) -> i64 {
        self.0.saturating_sub(other.0)
    }

    /// `YYYYMMDD`.
    fn name(self) -> Option<String> {
        let date = time::OffsetDateTime::from_unix_timestamp(self.0.checked_mul(86_400)?).ok()?.date();
        Some(format!("{:04}{:02}{:02}", date.year(), u8::from(date.month()), date.day()))
    }

    fn parse(name: &str) -> Option<Day> {
        if name.len() != 8 || !name.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let month = time::Month::try_from(name[4..6].parse::<u8>().ok()?).ok()?;
        let date =
            time::Date::from_calendar_date(name[..4].parse().ok()?, month, name[6..].parse().ok()?).ok()?;
        Some(Day(date.midnight().assume_utc().unix_timestamp().div_euclid(86_400)))
    }
}

/// A cheap handle on the directory.
#[derive(Debug, Clone)]
pub(super) struct Days {
    directory: Arc<PathBuf>,
    open: Arc<Mutex<Open>>,
}

/// Open stores, each with the turn it was last used in.
#[derive(Debug, Default)]
struct Open {
    turn: u64,
    stores: HashMap<Day, (u64, Store)>,
}

impl Open {
    fn find(&mut self, day: Day) -> Option<Store> {
        self.turn += 1;
        let (used, store) = self.stores.get_mut(&day)?;
        *used = self.turn;
        Some(store.clone())
    }

    /// Keeps the store that was there first; drops the one that was not used for longest.
    fn insert(&mut self, day: Day, store: Store) -> Store {
        self.turn += 1;
        let oldest = self.stores.iter().min_by_key(|(_, (used, _))| *used).map(|(day, _)| *day);
        if let (true, Some(oldest)) = (self.stores.len() >= OPEN_MAX, oldest) {
            self.stores.remove(&oldest);
        }
        self.stores.entry(day).or_insert((self.turn, store)).1.clone()
    }
}

impl Days {
    pub(super) fn open(directory: PathBuf) -> Result<Days, Error> {
        let made = std::fs::create_dir_all(&directory);
        made.map_err(|source| Error::File { step: "make the directory", path: directory.clone(), source })?;
        Ok(Days { directory: Arc::new(directory), open: Arc::default() })
    }

    /// Days that have a file, oldest first.
    pub(super) fn list(&self) -> Result<Vec<Day>, Error> {
        let failed = |source| Error::File { step: "list", path: self.directory.to_path_buf(), source };
        let mut days = Vec::new();
        for entry in std::fs::read_dir(self.directory.as_path()).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|ending| ending == "db") {
                days.extend(path.file_stem().and_then(|name| name.to_str()).and_then(Day::parse));
            }
        }
        days.sort_unstable();
        Ok(days)
    }

    /// The day's rows, if it has any.
    pub(super) async fn find(&self, day: Day) -> Result<Option<Store>, Error> {
        match self.path(day) {
            Some(path) if path.exists() => self.ensure(day).await.map(Some),
            _ => Ok(None),
        }
    }

    pub(super) async fn ensure(&self, day: Day) -> Result<Store, Error> {
        if let Some(store) = self.opened().find(day) {
            return Ok(store);
        }
        let path = self.path(day).ok_or(Error::Cancelled)?;
        // Opening blocks for as long as SQLite needs; two tasks that open the same day end with the same file.
        let opened = tokio::task::spawn_blocking(move || Store::open_audit(Settings::Sqlite { path })).await;
        let store = opened.map_err(|_| Error::Cancelled)??;
        Ok(self.opened().insert(day, store))
    }

    fn opened(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, day: Day) -> Option<PathBuf> {
        Some(self.directory.join(format!("{}.db", day.name()?)))
    }

    /// Removes the files of days before `day`; returns how many days.
    pub(super) fn remove_before(&self, day: Day) -> Result<u64, Error> {
        let mut removed = 0;
        for old in self.list()?.into_iter().filter(|old| *old < day) {
            self.opened().stores.remove(&old);
            let Some(path) = self.path(old) else { continue };
            remove(&path)?;
            for ending in ["db-wal", "db-shm"] {
                let _ = std::fs::remove_file(path.with_extension(ending));
            }
            removed += 1;
        }
        Ok(removed)
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    std::fs::remove_file(path).map_err(|source| Error::File { step: "remove", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_days_survive() {
        for (us, name) in
            [(0, "19700101"), (1_790_000_000_000_000, "20260921"), (1_709_164_800_000_000, "20240229")]
        {
            let day = Day::of_time(us);
            assert_eq!(day.name().as_deref(), Some(name));
            assert_eq!(Day::parse(name), Some(day));
        }
        for bad in ["", "2026", "20261301", "20260230", "2026092a", "202609211"] {
            assert_eq!(Day::parse(bad), None, "{bad}");
        }
    }
}
