//! Usage: taking in what hosts measured, and reports over it that include what runs right now.
//!
//! ```text
//! delta ──insert or ignore──▶ usage_delta ──in the same transaction──▶ usage_rollup (sandbox, hour)
//! report = whole hours from the roll-up + deltas of the hours it only touches + an estimate of what is still open
//! ```
//! The estimate: for each running sandbox the time from the end of its last delta (or from its start) to now, at most
//! [`OPEN_US_MAX`], with what is allocated to it. Measured columns have no estimate. A report says until when it is
//! exact. Whose a delta is comes from the scheduler's own rows, never from the upload.

mod report;

use roost_domain::id::ExecutionId;
use roost_domain::sabotage::Defence;
use roost_proto::host as proto;

pub use report::{Group, Grouping, Report, report};

use crate::store::usage::{self as table, Delta};
use crate::store::{Error, Tx, execution, sandbox};

/// A delta ends after a minute; one far longer was not measured by us.
const DELTA_US_MAX: i64 = 2 * roost_domain::usage::HOUR_US;
/// How far ahead of ours a host's clock may be.
const AHEAD_US_MAX: i64 = 300_000_000;
/// A sandbox not heard of for longer is not billed by estimate.
pub const OPEN_US_MAX: i64 = 180_000_000;

/// Takes in one delta, inside the caller's transaction; false if it is not that host's to report, or impossible.
/// One that is known already is taken as reported and changes nothing.
pub fn ingest(tx: &mut Tx<'_>, host_id: &str, delta: &proto::UsageDelta, now_us: i64) -> Result<bool, Error> {
    let Ok(execution_id) = ExecutionId::parse(&delta.execution) else { return Ok(false) };
    let Some(execution) = execution::find(tx, &execution_id.to_string())? else { return Ok(false) };
    let is_its_own = execution.host_id == host_id && execution.sandbox_id == delta.sandbox
        || Defence::HostOwnUsage.is_off();
    let is_possible = delta.from_us <= delta.to_us
        && delta.to_us - delta.from_us <= DELTA_US_MAX
        && delta.to_us <= now_us.saturating_add(AHEAD_US_MAX);
    if !is_its_own || !is_possible {
        return Ok(false);
    }
    // A host that was given up and did not notice: the time after belongs to the next one.
    let end_us = sandbox::find_placement_end(tx, &execution.sandbox_id, execution.placement_epoch)?;
    if end_us.is_some_and(|end_us| delta.to_us > end_us) {
        return Ok(false);
    }
    let Some(owner) = sandbox::find_any(tx, &execution.sandbox_id)? else { return Ok(false) };
    let row = Delta {
        execution_id: execution.id,
        seq: delta.seq,
        sandbox_id: owner.id.clone(),
        tenant_id: owner.tenant_id.clone(),
        from_us: delta.from_us,
        to_us: delta.to_us,
        wall_us: delta.wall_us,
        vcpu_alloc_us: delta.vcpu_alloc_us,
        mem_alloc_mib_us: delta.mem_alloc_mib_us,
        cpu_used_us: delta.cpu_used_us,
        mem_used_mib_us: delta.mem_used_mib_us,
        disk_mib_us: delta.disk_mib_us,
        snapshot_mib_us: delta.snapshot_mib_us,
        net_egress_bytes: delta.net_egress_bytes,
        net_ingress_bytes: delta.net_ingress_bytes,
    };
    table::ingest(tx, &row, &owner)?;
    Ok(true)
}
