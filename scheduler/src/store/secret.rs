//! Tables `data_key`, `secret`, `secret_version`, `binding` and `signing_key`: sealed bytes and what is known of them.
//!
//! Owns rows, never plaintext: sealing and opening are `crate::secret`'s. A deleted secret keeps its row (so that
//! caches learn of it), without any version.

use std::collections::BTreeMap;

use super::record::{self, Conditions, record};
use super::{Error, Tx, params};

record! {
    pub struct DataKey in "data_key" {
        tenant_id: String,
        /// `value` or `placeholder`.
        purpose: String,
        master_key_id: String,
        sealed: Vec<u8>,
        created_us: i64,
    }
}

record! {
    pub struct Secret in "secret" {
        id: String,
        tenant_id: String,
        name: String,
        /// `expose_as_env`, else `name`: what the resolver looks for.
        logical_key: String,
        kind: String,
        /// `user`, `external_user`, `external_workspace`, `workspace` or `tenant`.
        scope: String,
        /// The owner within the scope; empty for `tenant`.
        scope_key: String,
        expose_as_env: Option<String>,
        allowed_hosts: Vec<String>,
        /// Header names beyond the usual ones.
        slots: Vec<String>,
        /// Without hosts: swapped towards any host, because the tenant allowed that when it was set.
        swap_anywhere: bool,
        enabled: bool,
        masked: String,
        provider: Option<String>,
        metadata: BTreeMap<String, serde_json::Value>,
        version: u64,
        actor: String,
        created_us: i64,
        updated_us: i64,
        expires_us: Option<i64>,
        last_used_us: Option<i64>,
        deleted_us: Option<i64>,
    }
}

record! {
    pub struct SecretVersion in "secret_version" {
        secret_id: String,
        version: u64,
        sealed: Vec<u8>,
        hosts_sha256: Vec<u8>,
        created_us: i64,
    }
}

record! {
    pub struct Binding in "binding" {
        id: String,
        tenant_id: String,
        secret_id: String,
        sandbox_id: String,
        logical_key: String,
        expose_as_env: Option<String>,
        actor: String,
        created_us: i64,
    }
}

record! {
    pub struct SigningKey in "signing_key" {
        kid: String,
        master_key_id: String,
        sealed: Vec<u8>,
        public_key: Vec<u8>,
        created_us: i64,
        signs_until_us: i64,
        not_after_us: i64,
    }
}

/// Keeps the first: two schedulers that make a key at once use the same one.
pub fn insert_data_key(tx: &mut Tx<'_>, key: &DataKey) -> Result<bool, Error> {
    record::insert_if_absent(tx, key)
}

pub fn find_data_key(tx: &mut Tx<'_>, tenant: &str, purpose: &str) -> Result<Option<DataKey>, Error> {
    record::find(tx, "WHERE tenant_id = ?1 AND purpose = ?2", params![tenant, purpose])
}

/// What to list; every field that is set narrows.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub tenant_id: String,
    pub scope: Option<String>,
    pub scope_key: Option<String>,
    pub kind: Option<String>,
    pub provider: Option<String>,
    pub name: Option<String>,
    /// Bound to this sandbox.
    pub sandbox_id: Option<String>,
}

/// False if the scope already has a secret of this name or logical key.
pub fn insert(tx: &mut Tx<'_>, secret: &Secret) -> Result<bool, Error> {
    record::insert_if_absent(tx, secret)
}

pub fn find(tx: &mut Tx<'_>, tenant: &str, id: &str) -> Result<Option<Secret>, Error> {
    record::find(tx, "WHERE tenant_id = ?1 AND id = ?2 AND deleted_us IS NULL", params![tenant, id])
}

pub fn find_by_name(
    tx: &mut Tx<'_>,
    tenant: &str,
    scope: &str,
    scope_key: &str,
    name: &str,
) -> Result<Option<Secret>, Error> {
    let tail = "WHERE tenant_id = ?1 AND scope = ?2 AND scope_key = ?3 AND name = ?4 AND deleted_us IS NULL";
    record::find(tx, tail, params![tenant, scope, scope_key, name])
}

pub fn list(tx: &mut Tx<'_>, filter: &Filter) -> Result<Vec<Secret>, Error> {
    let mut where_ = Conditions::new("tenant_id", &filter.tenant_id);
    where_.push_clause("deleted_us IS NULL");
    where_.push_if("scope", "=", &filter.scope);
    where_.push_if("scope_key", "=", &filter.scope_key);
    where_.push_if("kind", "=", &filter.kind);
    where_.push_if("provider", "=", &filter.provider);
    where_.push_if("name", "=", &filter.name);
    if let Some(sandbox) = &filter.sandbox_id {
        let sandbox = where_.place(sandbox);
        where_.push_clause(format!("id IN (SELECT secret_id FROM binding WHERE sandbox_id = {sandbox})"));
    }
    let (where_, params) = where_.finish();
    record::list(tx, &format!("{where_} ORDER BY created_us, id"), &params)
}

/// Secrets a sandbox could get by scope: one (scope, key) pair for each step it has a key for.
pub fn list_in_scopes(tx: &mut Tx<'_>, tenant: &str, scopes: &[(&str, &str)]) -> Result<Vec<Secret>, Error> {
    let mut where_ = Conditions::new("tenant_id", tenant);
    where_.push_clause("deleted_us IS NULL");
    let mut any = Vec::new();
    for (scope, key) in scopes {
        let (scope, key) = (where_.place(*scope), where_.place(*key));
        any.push(format!("(scope = {scope} AND scope_key = {key})"));
    }
    where_.push_clause(format!("({})", any.join(" OR ")));
    let (where_, params) = where_.finish();
    record::list(tx, &where_, &params)
}

/// Remembers that placeholders for this key may be in guests; it is never forgotten.
pub fn insert_logical_key(tx: &mut Tx<'_>, tenant: &str, key: &str) -> Result<(), Error> {
    let sql = "INSERT INTO logical_key (tenant_id, logical_key) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    tx.execute(sql, params![tenant, key]).map(|_| ())
}

pub fn list_logical_keys(tx: &mut Tx<'_>, tenant: &str) -> Result<Vec<String>, Error> {
    let sql = "SELECT logical_key FROM logical_key WHERE tenant_id = ?1 ORDER BY logical_key";
    tx.query(sql, params![tenant])?.iter().map(|row| row.text("logical_key")).collect()
}

/// Secrets bound to a sandbox, with the key each is bound under.
pub fn list_bound(tx: &mut Tx<'_>, sandbox: &str) -> Result<Vec<(Binding, Secret)>, Error> {
    let bindings: Vec<Binding> = record::list(tx, "WHERE sandbox_id = ?1 ORDER BY id", params![sandbox])?;
    let mut bound = Vec::new();
    for binding in bindings {
        if let Some(secret) = find(tx, &binding.tenant_id, &binding.secret_id)? {
            bound.push((binding, secret));
        }
    }
    Ok(bound)
}

/// Stores a changed secret if nobody changed it since it was read: compare-and-set on `version` and `updated_us`.
pub fn update(
    tx: &mut Tx<'_>,
    secret: &Secret,
    read_version: u64,
    read_updated_us: i64,
) -> Result<bool, Error> {
    let sql =
        "UPDATE secret SET kind = ?4, expose_as_env = ?5, logical_key = ?6, allowed_hosts = ?7, slots = ?8,
        swap_anywhere = ?9, enabled = ?10, masked = ?11, provider = ?12, metadata = ?13, version = ?14,
        updated_us = ?15, expires_us = ?16
        WHERE id = ?1 AND version = ?2 AND updated_us = ?3 AND deleted_us IS NULL";
    let hosts = super::Value::json(&secret.allowed_hosts)?;
    let slots = super::Value::json(&secret.slots)?;
    let metadata = super::Value::json(&secret.metadata)?;
    let params = params![
        &secret.id,
        read_version,
        read_updated_us,
        &secret.kind,
        &secret.expose_as_env,
        &secret.logical_key,
        hosts,
        slots,
        secret.swap_anywhere,
        secret.enabled,
        &secret.masked,
        &secret.provider,
        metadata,
        secret.version,
        secret.updated_us,
        secret.expires_us
    ];
    record::changed(tx, sql, params)
}

/// Removes its bindings and every sealed value; the row stays as a tombstone.
pub fn remove(tx: &mut Tx<'_>, tenant: &str, id: &str, now_us: i64) -> Result<bool, Error> {
    let sql = "UPDATE secret SET deleted_us = ?3, updated_us = ?3 WHERE tenant_id = ?1 AND id = ?2
        AND deleted_us IS NULL";
    if !record::changed(tx, sql, params![tenant, id, now_us])? {
        return Ok(false);
    }
    tx.execute("DELETE FROM binding WHERE secret_id = ?1", params![id])?;
    tx.execute("DELETE FROM secret_version WHERE secret_id = ?1", params![id])?;
    Ok(true)
}

pub fn record_use(tx: &mut Tx<'_>, tenant: &str, id: &str, time_us: i64) -> Result<(), Error> {
    let sql = "UPDATE secret SET last_used_us = ?3 WHERE tenant_id = ?1 AND id = ?2
        AND (last_used_us IS NULL OR last_used_us < ?3)";
    tx.execute(sql, params![tenant, id, time_us]).map(|_| ())
}

/// Secrets changed or deleted at or after `since_us`.
pub fn list_changed(tx: &mut Tx<'_>, since_us: i64, limit: u32) -> Result<Vec<Secret>, Error> {
    record::list(tx, "WHERE updated_us >= ?1 ORDER BY updated_us, id LIMIT ?2", params![since_us, limit])
}

/// Stores a new sealed value and drops the ones before it: nobody may open those again.
pub fn replace_version(tx: &mut Tx<'_>, version: &SecretVersion) -> Result<(), Error> {
    tx.execute("DELETE FROM secret_version WHERE secret_id = ?1", params![&version.secret_id])?;
    record::insert(tx, version)
}

pub fn find_version(tx: &mut Tx<'_>, secret: &str, version: u64) -> Result<Option<SecretVersion>, Error> {
    record::find(tx, "WHERE secret_id = ?1 AND version = ?2", params![secret, version])
}

/// False if the sandbox already has a binding under that key.
pub fn insert_binding(tx: &mut Tx<'_>, binding: &Binding) -> Result<bool, Error> {
    record::insert_if_absent(tx, binding)
}

pub fn find_binding(tx: &mut Tx<'_>, tenant: &str, id: &str) -> Result<Option<Binding>, Error> {
    record::find(tx, "WHERE tenant_id = ?1 AND id = ?2", params![tenant, id])
}

pub fn find_binding_of(tx: &mut Tx<'_>, secret: &str, sandbox: &str) -> Result<Option<Binding>, Error> {
    record::find(tx, "WHERE secret_id = ?1 AND sandbox_id = ?2 ORDER BY id", params![secret, sandbox])
}

pub fn list_bindings(
    tx: &mut Tx<'_>,
    tenant: &str,
    secret: Option<&str>,
    sandbox: Option<&str>,
) -> Result<Vec<Binding>, Error> {
    let mut where_ = Conditions::new("tenant_id", tenant);
    where_.push_if("secret_id", "=", &secret);
    where_.push_if("sandbox_id", "=", &sandbox);
    let (where_, params) = where_.finish();
    record::list(tx, &format!("{where_} ORDER BY created_us, id"), &params)
}

/// Removes a binding and marks its secret changed, so that leases made through it end.
pub fn remove_binding(tx: &mut Tx<'_>, tenant: &str, id: &str, now_us: i64) -> Result<bool, Error> {
    let Some(binding) = find_binding(tx, tenant, id)? else {
        return Ok(false);
    };
    touch(tx, &binding.secret_id, now_us)?;
    record::changed(tx, "DELETE FROM binding WHERE tenant_id = ?1 AND id = ?2", params![tenant, id])
}

/// Marks a secret changed without changing it.
pub fn touch(tx: &mut Tx<'_>, id: &str, now_us: i64) -> Result<(), Error> {
    tx.execute("UPDATE secret SET updated_us = ?2 WHERE id = ?1", params![id, now_us]).map(|_| ())
}

pub fn insert_signing_key(tx: &mut Tx<'_>, key: &SigningKey) -> Result<bool, Error> {
    record::insert_if_absent(tx, key)
}

/// Keys that tokens may still be verified with, newest first.
pub fn list_signing_keys(tx: &mut Tx<'_>, now_us: i64) -> Result<Vec<SigningKey>, Error> {
    record::list(tx, "WHERE not_after_us > ?1 ORDER BY created_us DESC, kid", params![now_us])
}
