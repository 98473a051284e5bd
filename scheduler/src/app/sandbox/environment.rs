//! The placeholders that a command of a sandbox finds in its environment.

use std::collections::BTreeMap;

use super::Row;
use crate::app::{App, Error};

/// Variable names with placeholders, as they are at this moment: a secret set just now is among them.
pub async fn placeholders(app: &App, row: &Row) -> Result<BTreeMap<String, String>, Error> {
    Ok(app.vault.environment(row).await?)
}
