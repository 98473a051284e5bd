//! A value made from files that somebody else puts in place: made once they are there, made anew when they changed.
//!
//! Owns when the files are looked at. What they become, and what is wrong with them, is the caller's to say; a value
//! that cannot be made leaves the former one in use.
//!
//! ```text
//! none --files complete--> value --files changed--> newer value (or, if they do not fit, the former)
//! ```

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

/// How often the files are looked at once there is a value.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(2);
/// How often before that: somebody may be waiting.
const ARRIVAL_INTERVAL: Duration = Duration::from_millis(100);

type Error = Box<dyn std::error::Error + Send + Sync>;

/// When a file last changed, and its size.
type Stamp = (SystemTime, u64);

pub(crate) struct FromFiles<T> {
    /// For the log.
    what: &'static str,
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, Error> + Send + Sync>,
    current: ArcSwapOption<T>,
    /// What the files were when they were last read, whatever came of it.
    read: Mutex<Option<Vec<Stamp>>>,
    changed: watch::Sender<u64>,
}

impl<T> std::fmt::Debug for FromFiles<T> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("FromFiles")
            .field("what", &self.what)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl<T> FromFiles<T> {
    /// Looks at the files for the first time.
    pub(crate) fn new<E: Into<Error>>(
        what: &'static str,
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Self {
        let this = Self {
            what,
            files,
            make: Box::new(move || make().map_err(Into::into)),
            current: ArcSwapOption::empty(),
            read: Mutex::default(),
            changed: watch::channel(0).0,
        };
        this.look();
        this
    }

    /// The newest value. Whoever asks while there is none has the files looked at, and so never comes too early.
    pub(crate) fn find(&self) -> Option<Arc<T>> {
        self.current.load_full().or_else(|| {
            self.look();
            self.current.load_full()
        })
    }

    /// Changes with every new value.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Looks at the files for ever.
    pub(crate) async fn keep_current(&self) {
        loop {
            let interval = if self.current.load().is_some() { RENEWAL_INTERVAL } else { ARRIVAL_INTERVAL };
            tokio::time::sleep(interval).await;
            self.look();
        }
    }

    fn look(&self) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps: Option<Vec<_>> = self.files.iter().map(stamp).collect();
        if stamps.is_none() || stamps == *read {
            return;
        }
        match (self.make)() {
            Ok(value) => {
                self.current.store(Some(Arc::new(value)));
                self.changed.send_modify(|version| *version += 1);
                tracing::info!("loaded {}", self.what);
            }
            // Half written, perhaps: one file is replaced after the other.
            Err(error) => {
                let error = roost_daemon::telemetry::chain(error.as_ref());
                tracing::warn!(error, "cannot load {}", self.what);
            }
        }
        *read = stamps;
    }
}

fn stamp(file: &PathBuf) -> Option<Stamp> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(directory: &tempfile::TempDir) -> FromFiles<String> {
        let file = directory.path().join("one");
        let files = vec![file.clone(), directory.path().join("two")];
        FromFiles::new("a text", files, move || match std::fs::read_to_string(&file) {
            Ok(text) if text == "bad" => Err(std::io::Error::other("bad")),
            other => other,
        })
    }

    #[test]
    fn the_first_to_ask_finds_what_is_there_and_what_does_not_fit_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        let value = text(&directory);
        write("one", "first");
        assert_eq!(value.find(), None, "one of two files");
        write("two", "");
        assert_eq!(value.find().as_deref().map(String::as_str), Some("first"), "no look was due");
        write("one", "bad");
        value.look();
        assert_eq!(value.find().unwrap().as_str(), "first");
        write("one", "second");
        value.look();
        assert_eq!((value.find().unwrap().as_str(), *value.changes().borrow()), ("second", 2));
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_told_to_those_who_wait() {
        let directory = tempfile::tempdir().unwrap();
        let value = Arc::new(text(&directory));
        let mut changes = value.changes();
        let watching = Arc::clone(&value);
        tokio::spawn(async move { watching.keep_current().await });
        std::fs::write(directory.path().join("two"), "").unwrap();
        std::fs::write(directory.path().join("one"), "here").unwrap();
        changes.changed().await.unwrap();
        assert_eq!(value.find().unwrap().as_str(), "here");
    }
}
