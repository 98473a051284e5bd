//! The environment of a sandbox: variable names with placeholders, as they are at the moment of an exec.

use std::collections::BTreeMap;

use super::key::{Key, Purpose};
use super::resolve::Known;
use super::{Error, Vault};
use crate::store::sandbox::Sandbox;

impl Vault {
    /// Variables for the keys that resolve now; a disabled or removed secret's variable is gone.
    pub async fn environment(&self, asked: &Sandbox) -> Result<BTreeMap<String, String>, Error> {
        let (vault, row, now_us) = (self.clone(), asked.clone(), self.now_us());
        let known = self.shared.store.examine(move |tx| {
            let explained = Known::read(tx, &row)?.explain(now_us);
            let key = vault.shared.master.find_data_key(tx, &row.tenant_id, Purpose::Placeholder)?;
            Ok::<_, Error>((explained, key))
        });
        let (explained, key) = known.await?;
        let resolving = explained.into_iter().filter(|explained| explained.found.is_some());
        let names: Vec<(String, String)> =
            resolving.filter_map(|explained| Some((explained.env?, explained.logical_key))).collect();
        let key = match key {
            Some(key) => key,
            None if names.is_empty() => return Ok(BTreeMap::new()),
            None => self.ensure_placeholder_key(&asked.tenant_id).await?,
        };
        let placeholder = |(env, logical): (String, String)| (env, self.placeholder(&key, asked, &logical));
        Ok(names.into_iter().map(placeholder).collect())
    }

    async fn ensure_placeholder_key(&self, tenant: &str) -> Result<Key, Error> {
        let (vault, tenant, now_us) = (self.clone(), tenant.to_owned(), self.now_us());
        let made = self
            .shared
            .store
            .decide(move |tx| vault.shared.master.ensure_data_key(tx, &tenant, Purpose::Placeholder, now_us));
        made.await
    }
}
