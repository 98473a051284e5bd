//! Tables `host` and `join_token`: the machines, what they offer, what is reserved on them, and who may join.
//!
//! ```text
//! active ⇄ cordoned      (a cordoned host takes no new sandboxes)
//!    └──→ removed        (its identities are refused)
//! ```

use roost_domain::sabotage::Defence;

use super::record::{self, record};
use super::{Error, Tx, params};

record! {
    pub struct Host in "host" {
        id: String,
        state: String,
        version: String,
        ensure_address: String,
        gateway_address: String,
        preview_address: String,
        memory_mib: u64,
        disk_mib: u64,
        vcpus: u64,
        templates: Vec<String>,
        vmm: String,
        memory_reserved_mib: u64,
        disk_reserved_mib: u64,
        joined_us: i64,
        seen_us: i64,
        /// The host's clock minus ours at its last Sync.
        clock_skew_us: i64,
    }
}

record! {
    pub struct JoinToken in "join_token" {
        id: String,
        sha256: Vec<u8>,
        actor: String,
        created_us: i64,
        expires_us: i64,
        used_us: Option<i64>,
        host_id: Option<String>,
    }
}

pub fn insert(tx: &mut Tx<'_>, host: &Host) -> Result<(), Error> {
    record::insert(tx, host)
}

pub fn find(tx: &mut Tx<'_>, id: &str) -> Result<Option<Host>, Error> {
    record::find(tx, "WHERE id = ?1", params![id])
}

pub fn list(tx: &mut Tx<'_>) -> Result<Vec<Host>, Error> {
    record::list(tx, "ORDER BY id", params![])
}

/// Hosts that may take a new sandbox: active and heard of since `seen_after_us`.
pub fn list_placeable(tx: &mut Tx<'_>, seen_after_us: i64) -> Result<Vec<Host>, Error> {
    record::list(tx, "WHERE state = 'active' AND seen_us >= ?1 ORDER BY id", params![seen_after_us])
}

/// What the host says of itself; reservations and state are ours and stay.
pub fn record_info(tx: &mut Tx<'_>, host: &Host) -> Result<(), Error> {
    let sql = "UPDATE host SET version = ?2, ensure_address = ?3, gateway_address = ?4, preview_address = ?5,
        memory_mib = ?6, disk_mib = ?7, vcpus = ?8, templates = ?9, vmm = ?10, seen_us = ?11, clock_skew_us = ?12
        WHERE id = ?1";
    let templates = super::Value::json(&host.templates)?;
    let params = params![
        &host.id,
        &host.version,
        &host.ensure_address,
        &host.gateway_address,
        &host.preview_address,
        host.memory_mib,
        host.disk_mib,
        host.vcpus,
        templates,
        &host.vmm,
        host.seen_us,
        host.clock_skew_us
    ];
    tx.execute(sql, params).map(|_| ())
}

pub fn set_state(tx: &mut Tx<'_>, id: &str, state: &str) -> Result<bool, Error> {
    record::changed(tx, "UPDATE host SET state = ?2 WHERE id = ?1", params![id, state])
}

/// Reserves only if both fit and the host is active: the decision is this statement.
pub fn reserve(tx: &mut Tx<'_>, id: &str, memory_mib: u64, disk_mib: u64) -> Result<bool, Error> {
    if Defence::HostRoom.is_off() {
        return Ok(true);
    }
    let sql = "UPDATE host SET memory_reserved_mib = memory_reserved_mib + ?2, disk_reserved_mib = disk_reserved_mib + ?3
        WHERE id = ?1 AND state = 'active'
        AND memory_reserved_mib + ?2 <= memory_mib AND disk_reserved_mib + ?3 <= disk_mib";
    record::changed(tx, sql, params![id, memory_mib, disk_mib])
}

/// Changes a reservation without asking whether it fits: for what has already happened on the host.
pub fn adjust_reservation(tx: &mut Tx<'_>, id: &str, memory_mib: i64, disk_mib: i64) -> Result<(), Error> {
    let sql = "UPDATE host SET memory_reserved_mib = memory_reserved_mib + ?2, disk_reserved_mib = disk_reserved_mib + ?3
        WHERE id = ?1";
    tx.execute(sql, params![id, memory_mib, disk_mib]).map(|_| ())
}

pub fn insert_join_token(tx: &mut Tx<'_>, token: &JoinToken) -> Result<(), Error> {
    record::insert(tx, token)
}

/// True if a host could join with this token now.
pub fn is_join_token_live(tx: &mut Tx<'_>, sha256: &[u8], now_us: i64) -> Result<bool, Error> {
    let sql = "SELECT id FROM join_token WHERE sha256 = ?1 AND used_us IS NULL AND expires_us > ?2";
    Ok(tx.find_one(sql, params![sha256, now_us])?.is_some())
}

/// Uses up a token for `host`; false if there is none such, or it is used or over.
pub fn take_join_token(tx: &mut Tx<'_>, sha256: &[u8], host: &str, now_us: i64) -> Result<bool, Error> {
    let sql = "UPDATE join_token SET used_us = ?3, host_id = ?2
        WHERE sha256 = ?1 AND used_us IS NULL AND expires_us > ?3";
    record::changed(tx, sql, params![sha256, host, now_us])
}
