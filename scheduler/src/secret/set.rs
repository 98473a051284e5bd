//! Storing a value: new, or in place of the one of the same scope and name.

use std::collections::BTreeMap;

use roost_domain::id::SecretId;
use roost_domain::presets;
use roost_domain::resolver::EndUserCredentials;

use super::bind::{self, NewBinding};
use super::key::{Key, Purpose, place};
use super::{Error, Plaintext, UNBOUND_SETTING, Vault, check, find_switch};
use crate::store::secret::{Binding, Secret, SecretVersion};
use crate::store::{Tx, secret, setting};

/// Whose a secret is, with its owner's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    User(String),
    ExternalUser(String),
    ExternalWorkspace(String),
    Workspace(String),
    Tenant,
}

impl Scope {
    pub fn word(&self) -> &'static str {
        match self {
            Scope::User(_) => "user",
            Scope::ExternalUser(_) => "external_user",
            Scope::ExternalWorkspace(_) => "external_workspace",
            Scope::Workspace(_) => "workspace",
            Scope::Tenant => "tenant",
        }
    }

    /// The owner within the scope; empty for the tenant itself.
    pub fn key(&self) -> &str {
        match self {
            Scope::User(key)
            | Scope::ExternalUser(key)
            | Scope::ExternalWorkspace(key)
            | Scope::Workspace(key) => key,
            Scope::Tenant => "",
        }
    }
}

/// What is to be stored.
#[derive(Debug, Clone)]
pub struct NewSecret {
    pub tenant_id: String,
    pub name: String,
    pub value: Plaintext,
    pub scope: Scope,
    pub expose_as_env: Option<String>,
    pub kind: String,
    /// None: as stored before, else from the catalogue of well-known names, else none at all.
    pub allowed_hosts: Option<Vec<String>>,
    pub slots: Option<Vec<String>>,
    pub provider: Option<String>,
    pub expires_us: Option<i64>,
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// Also binds it to this sandbox.
    pub sandbox_id: Option<String>,
    pub actor: String,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Stored {
    pub secret: Secret,
    /// False: an earlier value of the same scope and name was replaced.
    pub created: bool,
    pub binding: Option<Binding>,
}

impl Vault {
    /// Stores a value, in the caller's transaction (so that its audit row is in the same one).
    pub fn set(&self, tx: &mut Tx<'_>, new: &NewSecret) -> Result<Stored, Error> {
        let now_us = self.now_us();
        check::name(&new.name)?;
        check::value(&new.value)?;
        if let Some(env) = &new.expose_as_env {
            check::env(env)?;
        }
        check_scope(tx, new)?;
        let (scope, key) = (new.scope.word(), new.scope.key());
        let before = secret::find_by_name(tx, &new.tenant_id, scope, key, &new.name)?;
        let row = self.compose(tx, new, before.as_ref(), now_us)?;
        let created = before.is_none();
        let is_stored = match &before {
            None => secret::insert(tx, &row)?,
            Some(old) => {
                if old.logical_key != row.logical_key && is_taken(tx, &row)? {
                    return Err(Error::EnvTaken { logical_key: row.logical_key });
                }
                if !secret::update(tx, &row, old.version, old.updated_us)? {
                    return Err(Error::Conflict);
                }
                true
            }
        };
        if !is_stored {
            return Err(Error::EnvTaken { logical_key: row.logical_key });
        }
        self.seal(tx, &row, &new.value, now_us)?;
        secret::insert_logical_key(tx, &row.tenant_id, &row.logical_key)?;
        let binding = match &new.sandbox_id {
            None => None,
            Some(sandbox_id) => Some(self.bind_new(tx, new, &row, sandbox_id)?),
        };
        Ok(Stored { secret: row, created, binding })
    }

    fn bind_new(
        &self,
        tx: &mut Tx<'_>,
        new: &NewSecret,
        row: &Secret,
        sandbox_id: &str,
    ) -> Result<Binding, Error> {
        let binding = NewBinding {
            tenant_id: new.tenant_id.clone(),
            secret_id: row.id.clone(),
            sandbox_id: sandbox_id.to_owned(),
            expose_as_env: new.expose_as_env.clone(),
            value: Some(new.value.clone()),
            actor: new.actor.clone(),
        };
        match secret::find_binding_of(tx, &row.id, sandbox_id)? {
            Some(binding) if binding.expose_as_env == new.expose_as_env => Ok(binding),
            _ => bind::bind(self, tx, &binding),
        }
    }

    /// The row as it will be. The value is in the same call, so hosts and slots may be whatever is asked for.
    fn compose(
        &self,
        tx: &mut Tx<'_>,
        new: &NewSecret,
        before: Option<&Secret>,
        now_us: i64,
    ) -> Result<Secret, Error> {
        let logical_key = new.expose_as_env.clone().unwrap_or_else(|| new.name.clone());
        let preset = presets::find(&logical_key);
        let given = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        let allowed_hosts = match (&new.allowed_hosts, before) {
            (Some(hosts), _) => check::hosts(hosts)?,
            (None, Some(old)) if !old.allowed_hosts.is_empty() => old.allowed_hosts.clone(),
            (None, _) => check::hosts(&preset.map(|preset| given(preset.hosts)).unwrap_or_default())?,
        };
        let slots = match (&new.slots, before) {
            (Some(slots), _) => check::slots(slots)?,
            (None, Some(old)) => old.slots.clone(),
            (None, None) => check::slots(&preset.map(|preset| given(preset.slots)).unwrap_or_default())?,
        };
        let unbound = setting::find(tx, &new.tenant_id, UNBOUND_SETTING)?;
        let swap_anywhere =
            allowed_hosts.is_empty() && unbound.as_ref().and_then(|v| v.as_str()) == Some("allow");
        Ok(Secret {
            id: before
                .map_or_else(|| roost_daemon::ids::fresh::<SecretId>().to_string(), |old| old.id.clone()),
            tenant_id: new.tenant_id.clone(),
            name: new.name.clone(),
            logical_key,
            kind: new.kind.clone(),
            scope: new.scope.word().to_owned(),
            scope_key: new.scope.key().to_owned(),
            expose_as_env: new.expose_as_env.clone(),
            allowed_hosts,
            slots,
            swap_anywhere,
            enabled: true,
            masked: check::mask(&new.value),
            provider: new.provider.clone(),
            metadata: new.metadata.clone(),
            version: before.map_or(1, |old| old.version + 1),
            actor: before.map_or_else(|| new.actor.clone(), |old| old.actor.clone()),
            created_us: before.map_or(now_us, |old| old.created_us),
            updated_us: now_us.max(before.map_or(0, |old| old.updated_us + 1)),
            expires_us: new.expires_us,
            last_used_us: before.and_then(|old| old.last_used_us),
            deleted_us: None,
        })
    }

    /// Seals a value as the row's present version and drops every older one.
    pub(super) fn seal(
        &self,
        tx: &mut Tx<'_>,
        row: &Secret,
        value: &Plaintext,
        now_us: i64,
    ) -> Result<(), Error> {
        let key = self.shared.master.ensure_data_key(tx, &row.tenant_id, Purpose::Value, now_us)?;
        let version = SecretVersion {
            secret_id: row.id.clone(),
            version: row.version,
            sealed: key.seal(&value_place(row), value.expose())?,
            hosts_sha256: hosts_hash(row),
            created_us: now_us,
        };
        secret::replace_version(tx, &version)?;
        Ok(())
    }

    /// Opens the present value. Private to the vault: what it returns goes into a lease or a comparison.
    pub(super) fn open(&self, tx: &mut Tx<'_>, row: &Secret) -> Result<Plaintext, Error> {
        let missing = Error::Crypto { what: "a value" };
        let key: Option<Key> = self.shared.master.find_data_key(tx, &row.tenant_id, Purpose::Value)?;
        let version = secret::find_version(tx, &row.id, row.version)?;
        match (key, version) {
            (Some(key), Some(version)) => key.open(&value_place(row), &version.sealed),
            _ => Err(missing),
        }
    }
}

fn check_scope(tx: &mut Tx<'_>, new: &NewSecret) -> Result<(), Error> {
    let (scope, field) = match &new.scope {
        Scope::User(_) => ("user", "owner_user_id"),
        Scope::ExternalUser(_) => ("external_user", "external_user_id"),
        Scope::ExternalWorkspace(_) => ("external_workspace", "external_workspace_id"),
        Scope::Workspace(_) => ("workspace", "workspace_id"),
        Scope::Tenant => return Ok(()),
    };
    if new.scope.key().is_empty() {
        return Err(Error::ScopeFieldMissing { scope, field });
    }
    let is_end_user = matches!(new.scope, Scope::ExternalUser(_));
    if is_end_user && find_switch(tx, &new.tenant_id)? != EndUserCredentials::Allowed {
        return Err(Error::EndUserCredentialsDisabled);
    }
    Ok(())
}

fn is_taken(tx: &mut Tx<'_>, row: &Secret) -> Result<bool, Error> {
    let scopes = [(row.scope.as_str(), row.scope_key.as_str())];
    let there = secret::list_in_scopes(tx, &row.tenant_id, &scopes)?;
    Ok(there.iter().any(|other| other.id != row.id && other.logical_key == row.logical_key))
}

/// Ties sealed bytes to tenant, owner, secret, version and the hosts that may receive them.
fn value_place(row: &Secret) -> Vec<u8> {
    let hosts = hex::encode(hosts_hash(row));
    place(&["value", &row.tenant_id, &row.scope, &row.scope_key, &row.id, &row.version.to_string(), &hosts])
}

fn hosts_hash(row: &Secret) -> Vec<u8> {
    use sha2::{Digest as _, Sha256};
    let hosts: Vec<&str> = row.allowed_hosts.iter().map(String::as_str).collect();
    let anywhere = if row.swap_anywhere { "anywhere" } else { "" };
    let mut message = place(&hosts);
    message.extend(place(&[anywhere]));
    Sha256::digest(message).to_vec()
}
