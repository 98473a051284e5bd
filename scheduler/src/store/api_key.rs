//! Table `api_key`: credentials of a tenant's backend, as hashes.

use roost_domain::sabotage::Defence;

use super::record::{self, record};
use super::{Error, Tx, params};

record! {
    pub struct ApiKey in "api_key" {
        id: String,
        tenant_id: String,
        /// Set for a key that is confined to one workspace.
        workspace_id: Option<String>,
        name: String,
        /// The first 12 characters: what audit rows and lists show.
        prefix: String,
        sha256: Vec<u8>,
        scopes: Vec<String>,
        rate_limit_rpm: Option<i64>,
        actor: String,
        created_us: i64,
        expires_us: Option<i64>,
        revoked_us: Option<i64>,
        last_used_us: Option<i64>,
    }
}

pub fn insert(tx: &mut Tx<'_>, key: &ApiKey) -> Result<(), Error> {
    record::insert(tx, key)
}

/// The key with this hash if it may be used now: neither revoked nor expired, its tenant active.
pub fn find_live(tx: &mut Tx<'_>, sha256: &[u8], now_us: i64) -> Result<Option<ApiKey>, Error> {
    if Defence::KeyRevocation.is_off() {
        return find_by_sha256(tx, sha256);
    }
    let tail = "WHERE sha256 = ?1 AND revoked_us IS NULL AND (expires_us IS NULL OR expires_us > ?2)
        AND tenant_id IN (SELECT id FROM tenant WHERE state = 'active')";
    record::find(tx, tail, params![sha256, now_us])
}

/// The key with this hash whatever became of it, to say why it is refused.
pub fn find_by_sha256(tx: &mut Tx<'_>, sha256: &[u8]) -> Result<Option<ApiKey>, Error> {
    record::find(tx, "WHERE sha256 = ?1", params![sha256])
}

pub fn find(tx: &mut Tx<'_>, tenant: &str, id: &str) -> Result<Option<ApiKey>, Error> {
    record::find(tx, "WHERE tenant_id = ?1 AND id = ?2", params![tenant, id])
}

pub fn list(tx: &mut Tx<'_>, tenant: &str) -> Result<Vec<ApiKey>, Error> {
    record::list(tx, "WHERE tenant_id = ?1 ORDER BY id", params![tenant])
}

/// Changes what may change of a key that is not revoked; true if it did.
pub fn update(tx: &mut Tx<'_>, key: &ApiKey) -> Result<bool, Error> {
    let sql = "UPDATE api_key SET name = ?3, scopes = ?4
        WHERE tenant_id = ?1 AND id = ?2 AND revoked_us IS NULL";
    let scopes = super::Value::json(&key.scopes)?;
    record::changed(tx, sql, params![&key.tenant_id, &key.id, &key.name, scopes])
}

/// True if it was this call that revoked it.
pub fn revoke(tx: &mut Tx<'_>, tenant: &str, id: &str, now_us: i64) -> Result<bool, Error> {
    let sql = "UPDATE api_key SET revoked_us = ?3 WHERE tenant_id = ?1 AND id = ?2 AND revoked_us IS NULL";
    record::changed(tx, sql, params![tenant, id, now_us])
}

/// Notes a use. Call it seldom (once a minute per key): it is a write.
pub fn record_use(tx: &mut Tx<'_>, id: &str, now_us: i64) -> Result<(), Error> {
    tx.execute("UPDATE api_key SET last_used_us = ?2 WHERE id = ?1", params![id, now_us]).map(|_| ())
}
