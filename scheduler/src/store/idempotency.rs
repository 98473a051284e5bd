//! Table `idempotency`: answers of mutations by the caller's key, and who is at work on one right now.
//!
//! ```text
//! (none) ──claim──→ running ──complete──→ done ──24 h──→ (none)
//!                    │  ↑└──abandon, or its owner's time is over──→ claimable again
//!                    └──┴─ renew
//! ```

use roost_domain::sabotage::Defence;

use super::record::{self, record};
use super::{Error, Tx, params};

record! {
    pub struct Idempotency in "idempotency" {
        tenant_id: String,
        key: String,
        request_sha256: Vec<u8>,
        /// Who runs the call: an id made for this attempt.
        owner: String,
        /// Until when the owner is believed to be alive.
        owner_until_us: i64,
        /// Set with the answer.
        status: Option<i64>,
        body: Option<Vec<u8>>,
        created_us: i64,
        expires_us: i64,
    }
}

/// True if the caller now owns the key: there was no row, or one that is over, or one whose owner vanished while
/// running the same request. Asking again as the same owner is true again.
pub fn claim(tx: &mut Tx<'_>, row: &Idempotency, now_us: i64) -> Result<bool, Error> {
    let over = "DELETE FROM idempotency WHERE tenant_id = ?1 AND key = ?2 AND expires_us <= ?3";
    tx.execute(over, params![&row.tenant_id, &row.key, now_us])?;
    if record::insert_if_absent(tx, row)? || Defence::Idempotency.is_off() {
        return Ok(true);
    }
    let take_over = "UPDATE idempotency SET owner = ?4, owner_until_us = ?5
        WHERE tenant_id = ?1 AND key = ?2 AND request_sha256 = ?3 AND status IS NULL
            AND (owner_until_us <= ?6 OR owner = ?4)";
    let params =
        params![&row.tenant_id, &row.key, &row.request_sha256, &row.owner, row.owner_until_us, now_us];
    record::changed(tx, take_over, params)
}

pub fn find(tx: &mut Tx<'_>, tenant: &str, key: &str) -> Result<Option<Idempotency>, Error> {
    record::find(tx, "WHERE tenant_id = ?1 AND key = ?2", params![tenant, key])
}

/// Believes the owner alive until then; false if `owner` no longer owns the key, or has ended the attempt. One that was
/// given back stays so: a renewal that is late must not claim it again for nobody.
pub fn renew(tx: &mut Tx<'_>, tenant: &str, key: &str, owner: &str, until_us: i64) -> Result<bool, Error> {
    let sql = "UPDATE idempotency SET owner_until_us = ?4
        WHERE tenant_id = ?1 AND key = ?2 AND owner = ?3 AND status IS NULL AND owner_until_us > 0";
    record::changed(tx, sql, params![tenant, key, owner, until_us])
}

/// Stores the answer for the claim of this row, whoever owns it now: an owner that lost it did the same work, and what
/// it says first is what the others have to say. False if the claim has an answer, or is over.
pub fn complete(tx: &mut Tx<'_>, claim: &Idempotency, status: u16, body: &[u8]) -> Result<bool, Error> {
    let sql = "UPDATE idempotency SET status = ?5, body = ?6
        WHERE tenant_id = ?1 AND key = ?2 AND request_sha256 = ?3 AND created_us = ?4 AND status IS NULL";
    let Idempotency { tenant_id, key, request_sha256, created_us, .. } = claim;
    record::changed(tx, sql, params![tenant_id, key, request_sha256, *created_us, status, body])
}

/// Gives the key back without an answer (429 and 5xx are never stored). The row stays: its beginning says which
/// effect belongs to the key, and a failure does not tell whether that happened. False if `owner` no longer owns it.
pub fn abandon(tx: &mut Tx<'_>, tenant: &str, key: &str, owner: &str) -> Result<bool, Error> {
    let sql = "UPDATE idempotency SET owner_until_us = 0
        WHERE tenant_id = ?1 AND key = ?2 AND owner = ?3 AND status IS NULL";
    record::changed(tx, sql, params![tenant, key, owner])
}

/// Removes what is over; returns how many.
pub fn remove_expired(tx: &mut Tx<'_>, now_us: i64) -> Result<u64, Error> {
    tx.execute("DELETE FROM idempotency WHERE expires_us <= ?1", params![now_us])
}
