//! Tables `preview` and `share_token`: published ports and the browser tokens that open them.

use super::record::{self, record};
use super::{Error, Tx, params};

record! {
    pub struct Preview in "preview" {
        id: String,
        tenant_id: String,
        sandbox_id: String,
        port: i64,
        /// The 8 characters of `<key>.preview.<domain>`.
        key: String,
        name: String,
        /// `private` or `public`.
        visibility: String,
        /// Tokens minted under an older one are dead.
        share_generation: i64,
        actor: String,
        created_us: i64,
        updated_us: i64,
        deleted_us: Option<i64>,
    }
}

record! {
    /// A browser token as the scheduler keeps it: everything but the token.
    pub struct ShareToken in "share_token" {
        tid: String,
        tenant_id: String,
        /// `share`, `preview_token`, `link`, `terminal`, `upload` or `user`.
        kind: String,
        sandbox_id: Option<String>,
        preview_id: Option<String>,
        external_user_id: Option<String>,
        prefix: String,
        sha256: Vec<u8>,
        scopes: Vec<String>,
        label: String,
        share_generation: i64,
        actor: String,
        created_us: i64,
        expires_us: Option<i64>,
        revoked_us: Option<i64>,
    }
}

/// False if the sandbox already has a preview of that port (or the key is taken).
pub fn insert(tx: &mut Tx<'_>, preview: &Preview) -> Result<bool, Error> {
    record::insert_if_absent(tx, preview)
}

pub fn find(tx: &mut Tx<'_>, tenant: &str, id: &str) -> Result<Option<Preview>, Error> {
    record::find(tx, "WHERE tenant_id = ?1 AND id = ?2 AND deleted_us IS NULL", params![tenant, id])
}

pub fn find_by_port(tx: &mut Tx<'_>, sandbox: &str, port: u16) -> Result<Option<Preview>, Error> {
    record::find(tx, "WHERE sandbox_id = ?1 AND port = ?2 AND deleted_us IS NULL", params![sandbox, port])
}

pub fn find_by_key(tx: &mut Tx<'_>, key: &str) -> Result<Option<Preview>, Error> {
    record::find(tx, "WHERE key = ?1 AND deleted_us IS NULL", params![key])
}

pub fn list(tx: &mut Tx<'_>, sandbox: &str) -> Result<Vec<Preview>, Error> {
    record::list(tx, "WHERE sandbox_id = ?1 AND deleted_us IS NULL ORDER BY created_us, id", params![sandbox])
}

pub fn set_visibility(tx: &mut Tx<'_>, id: &str, visibility: &str, now_us: i64) -> Result<bool, Error> {
    let sql = "UPDATE preview SET visibility = ?2, updated_us = ?3 WHERE id = ?1 AND deleted_us IS NULL";
    record::changed(tx, sql, params![id, visibility, now_us])
}

pub fn set_name(tx: &mut Tx<'_>, id: &str, name: &str, now_us: i64) -> Result<bool, Error> {
    let sql = "UPDATE preview SET name = ?2, updated_us = ?3 WHERE id = ?1 AND deleted_us IS NULL";
    record::changed(tx, sql, params![id, name, now_us])
}

/// Kills every outstanding token of the preview.
pub fn revoke_shares(tx: &mut Tx<'_>, id: &str, now_us: i64) -> Result<bool, Error> {
    let sql = "UPDATE preview SET share_generation = share_generation + 1, updated_us = ?2
        WHERE id = ?1 AND deleted_us IS NULL";
    let tokens = "UPDATE share_token SET revoked_us = ?2 WHERE preview_id = ?1 AND revoked_us IS NULL";
    tx.execute(tokens, params![id, now_us])?;
    record::changed(tx, sql, params![id, now_us])
}

/// Keeps the row, so that routes learn of its end and its key is never given again.
pub fn remove(tx: &mut Tx<'_>, id: &str, now_us: i64) -> Result<bool, Error> {
    revoke_shares(tx, id, now_us)?;
    let sql = "UPDATE preview SET deleted_us = ?2, updated_us = ?2 WHERE id = ?1 AND deleted_us IS NULL";
    record::changed(tx, sql, params![id, now_us])
}

/// Removes all previews of a sandbox that is being destroyed.
pub fn remove_all(tx: &mut Tx<'_>, sandbox: &str, now_us: i64) -> Result<(), Error> {
    for preview in list(tx, sandbox)? {
        remove(tx, &preview.id, now_us)?;
    }
    Ok(())
}

/// Ids of previews changed or removed at or after `since_us`, with their sandboxes and the time of the change.
pub fn list_updated(tx: &mut Tx<'_>, since_us: i64, limit: u32) -> Result<Vec<(String, String, i64)>, Error> {
    let sql =
        "SELECT id, sandbox_id, updated_us FROM preview WHERE updated_us >= ?1 ORDER BY updated_us LIMIT ?2";
    let rows = tx.query(sql, params![since_us, limit])?;
    rows.iter().map(|row| Ok((row.text("id")?, row.text("sandbox_id")?, row.int("updated_us")?))).collect()
}

pub fn insert_token(tx: &mut Tx<'_>, token: &ShareToken) -> Result<(), Error> {
    record::insert(tx, token)
}

pub fn find_token(tx: &mut Tx<'_>, tenant: &str, tid: &str) -> Result<Option<ShareToken>, Error> {
    record::find(tx, "WHERE tenant_id = ?1 AND tid = ?2", params![tenant, tid])
}

/// Tokens of a preview that still open it.
pub fn list_live_tokens(tx: &mut Tx<'_>, preview: &str, now_us: i64) -> Result<Vec<ShareToken>, Error> {
    let tail = "WHERE preview_id = ?1 AND revoked_us IS NULL AND (expires_us IS NULL OR expires_us > ?2)
        ORDER BY created_us, tid";
    record::list(tx, tail, params![preview, now_us])
}

/// Tokens of one kind of a sandbox, dead ones included.
pub fn list_tokens(tx: &mut Tx<'_>, sandbox: &str, kind: &str) -> Result<Vec<ShareToken>, Error> {
    record::list(tx, "WHERE sandbox_id = ?1 AND kind = ?2 ORDER BY created_us, tid", params![sandbox, kind])
}

pub fn revoke_token(tx: &mut Tx<'_>, tenant: &str, tid: &str, now_us: i64) -> Result<bool, Error> {
    let sql =
        "UPDATE share_token SET revoked_us = ?3 WHERE tenant_id = ?1 AND tid = ?2 AND revoked_us IS NULL";
    record::changed(tx, sql, params![tenant, tid, now_us])
}
