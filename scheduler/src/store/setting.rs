//! Table `setting`: named JSON values of a tenant (and of the platform, whose tenant id is empty).

use super::record::{self, record};
use super::{Error, Tx, params};

/// The tenant id of settings that belong to the platform.
pub const PLATFORM: &str = "";

record! {
    pub struct Setting in "setting" {
        tenant_id: String,
        name: String,
        value: serde_json::Value,
        actor: String,
        updated_us: i64,
    }
}

pub fn set(tx: &mut Tx<'_>, setting: &Setting) -> Result<(), Error> {
    if !record::insert_if_absent(tx, setting)? {
        let sql =
            "UPDATE setting SET value = ?3, actor = ?4, updated_us = ?5 WHERE tenant_id = ?1 AND name = ?2";
        let value = super::Value::json(&setting.value)?;
        tx.execute(
            sql,
            params![&setting.tenant_id, &setting.name, value, &setting.actor, setting.updated_us],
        )?;
    }
    Ok(())
}

pub fn find(tx: &mut Tx<'_>, tenant: &str, name: &str) -> Result<Option<serde_json::Value>, Error> {
    let row: Option<Setting> = record::find(tx, "WHERE tenant_id = ?1 AND name = ?2", params![tenant, name])?;
    Ok(row.map(|row| row.value))
}

pub fn list(tx: &mut Tx<'_>, tenant: &str) -> Result<Vec<Setting>, Error> {
    record::list(tx, "WHERE tenant_id = ?1 ORDER BY name", params![tenant])
}

pub fn remove(tx: &mut Tx<'_>, tenant: &str, name: &str) -> Result<bool, Error> {
    record::changed(tx, "DELETE FROM setting WHERE tenant_id = ?1 AND name = ?2", params![tenant, name])
}

/// Tenants whose settings changed at or after `since_us`.
pub fn list_changed(tx: &mut Tx<'_>, since_us: i64) -> Result<Vec<Setting>, Error> {
    record::list(tx, "WHERE updated_us >= ?1 ORDER BY updated_us", params![since_us])
}
