//! Waiting until a sandbox is where it was sent, or the patience ends.

use std::time::Duration;

use tokio::time::Instant;

use super::{Row, is_transitional, state};
use crate::app::{App, Error};
use crate::store::sandbox as table;

/// How long a change that was announced nowhere may go unseen.
const POLL: Duration = Duration::from_millis(250);
/// What `?wait=true` means.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(30);
const MAX_PATIENCE: Duration = Duration::from_secs(120);

/// The row once nothing is under way any more, or as it is when the patience ends.
pub async fn until_settled(app: &App, row: Row, patience: Duration) -> Result<Row, Error> {
    let deadline = Instant::now() + patience;
    let mut changes = app.fleet.changes();
    let mut row = row;
    while is_transitional(state(&row)) {
        let now = Instant::now();
        if now >= deadline {
            break;
        }
        let pause = POLL.min(deadline - now);
        // Either outcome means: look again.
        let _ = tokio::time::timeout(pause, changes.changed()).await;
        let id = row.id.clone();
        row = app.store.read(move |tx| table::find_any(tx, &id)).await?.ok_or_else(Error::no_sandbox)?;
    }
    Ok(row)
}

/// The query parameter `wait`: seconds, or `true`.
pub fn parse_patience(text: Option<&str>) -> Result<Option<Duration>, Error> {
    match text {
        None | Some("" | "false" | "0") => Ok(None),
        Some("true") => Ok(Some(DEFAULT_PATIENCE)),
        Some(text) => match text.parse::<u64>() {
            Ok(seconds) => Ok(Some(Duration::from_secs(seconds).min(MAX_PATIENCE))),
            Err(_) => Err(Error::invalid("wait", "a number of seconds, or true")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_bounded() {
        let seconds = |text| parse_patience(text).map(|patience| patience.map(|patience| patience.as_secs()));
        assert_eq!(seconds(None).unwrap(), None);
        assert_eq!(seconds(Some("0")).unwrap(), None);
        assert_eq!(seconds(Some("45")).unwrap(), Some(45));
        assert_eq!(seconds(Some("true")).unwrap(), Some(30));
        assert_eq!(seconds(Some("9999")).unwrap(), Some(120));
        assert!(seconds(Some("soon")).is_err());
        assert!(seconds(Some("-1")).is_err());
    }
}
