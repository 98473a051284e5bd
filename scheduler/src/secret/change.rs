//! Changing a stored secret: rotate, disable, narrow; and removing it.

use std::collections::BTreeMap;

use roost_domain::sabotage::Defence;

use super::{Error, Plaintext, Vault, check};
use crate::store::secret::Secret;
use crate::store::{Tx, secret};

/// What to change; what is `None` stays.
#[derive(Debug, Clone, Default)]
pub struct Change {
    pub value: Option<Plaintext>,
    pub enabled: Option<bool>,
    pub allowed_hosts: Option<Vec<String>>,
    pub slots: Option<Vec<String>>,
    pub expires_us: Option<Option<i64>>,
    pub metadata: Option<BTreeMap<String, serde_json::Value>>,
}

impl Vault {
    /// Changes a secret in the caller's transaction. Its placeholder stays the same. Hosts and slots may shrink
    /// freely; to grow they need the value in the same call.
    pub fn change(&self, tx: &mut Tx<'_>, tenant: &str, id: &str, change: &Change) -> Result<Secret, Error> {
        let before = secret::find(tx, tenant, id)?.ok_or(Error::NoSecret)?;
        let now_us = self.now_us();
        let mut row = before.clone();
        if let Some(value) = &change.value {
            check::value(value)?;
            row.masked = check::mask(value);
        }
        if let Some(hosts) = &change.allowed_hosts {
            row.allowed_hosts = check::hosts(hosts)?;
            let may_grow = change.value.is_some() || Defence::WideningValue.is_off();
            if !may_grow && !check::is_narrower(&row.allowed_hosts, &before.allowed_hosts) {
                return Err(Error::ValueRequired { what: "allowed_hosts" });
            }
            // Whoever names hosts, or takes the last one away, no longer means every host.
            row.swap_anywhere = false;
        }
        if let Some(slots) = &change.slots {
            row.slots = check::slots(slots)?;
            let grows = row.slots.iter().any(|slot| !before.slots.contains(slot));
            if grows && change.value.is_none() {
                return Err(Error::ValueRequired { what: "slots" });
            }
        }
        row.enabled = change.enabled.unwrap_or(row.enabled);
        row.expires_us = change.expires_us.unwrap_or(row.expires_us);
        if let Some(metadata) = &change.metadata {
            row.metadata.clone_from(metadata);
        }
        row.updated_us = now_us.max(before.updated_us + 1);
        self.store_change(tx, &before, &mut row, change.value.as_ref(), now_us)?;
        Ok(row)
    }

    /// The hosts are part of what seals a value, so a change of either seals it anew.
    fn store_change(
        &self,
        tx: &mut Tx<'_>,
        before: &Secret,
        row: &mut Secret,
        value: Option<&Plaintext>,
        now_us: i64,
    ) -> Result<(), Error> {
        let hosts_changed =
            (&row.allowed_hosts, row.swap_anywhere) != (&before.allowed_hosts, before.swap_anywhere);
        let value = match value {
            Some(value) => Some(value.clone()),
            None if hosts_changed => Some(self.open(tx, before)?),
            None => None,
        };
        if value.is_some() {
            row.version += 1;
        }
        if !secret::update(tx, row, before.version, before.updated_us)? {
            return Err(Error::Conflict);
        }
        match value {
            Some(value) => self.seal(tx, row, &value, now_us),
            None => Ok(()),
        }
    }

    /// Removes a secret, its bindings and its value, in the caller's transaction.
    pub fn remove(&self, tx: &mut Tx<'_>, tenant: &str, id: &str) -> Result<(), Error> {
        let row = secret::find(tx, tenant, id)?.ok_or(Error::NoSecret)?;
        let now_us = self.now_us().max(row.updated_us + 1);
        if secret::remove(tx, tenant, id, now_us)? { Ok(()) } else { Err(Error::NoSecret) }
    }
}
