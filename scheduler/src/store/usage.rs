//! Tables `usage_delta` and `usage_rollup`: what was used, exactly once, and its hourly sums per sandbox.
//!
//! A delta is immutable and known by (execution, seq). The roll-up changes in the same transaction as the insert and
//! only if the insert happened, so resending changes nothing and both always add up to the same.

use roost_domain::sabotage::Defence;

use super::record::{self, Conditions, record};
use super::sandbox::Sandbox;
use super::{Error, Row, Tx, params};

record! {
    pub struct Delta in "usage_delta" {
        execution_id: String,
        seq: u64,
        sandbox_id: String,
        tenant_id: String,
        from_us: i64,
        to_us: i64,
        wall_us: u64,
        vcpu_alloc_us: u64,
        mem_alloc_mib_us: u64,
        cpu_used_us: u64,
        mem_used_mib_us: u64,
        disk_mib_us: u64,
        snapshot_mib_us: u64,
        net_egress_bytes: u64,
        net_ingress_bytes: u64,
    }
}

/// The measured columns, in the order of [`Amounts`].
pub const COLUMNS: [&str; 9] = [
    "wall_us",
    "vcpu_alloc_us",
    "mem_alloc_mib_us",
    "cpu_used_us",
    "mem_used_mib_us",
    "disk_mib_us",
    "snapshot_mib_us",
    "net_egress_bytes",
    "net_ingress_bytes",
];

/// Sums of the measured columns. 128 bits: a month of a large tenant in MiB·µs does not fit 64.
pub type Amounts = [i128; COLUMNS.len()];

const HOUR_US: i64 = 3_600_000_000;

impl Delta {
    fn amounts(&self) -> [u64; COLUMNS.len()] {
        [
            self.wall_us,
            self.vcpu_alloc_us,
            self.mem_alloc_mib_us,
            self.cpu_used_us,
            self.mem_used_mib_us,
            self.disk_mib_us,
            self.snapshot_mib_us,
            self.net_egress_bytes,
            self.net_ingress_bytes,
        ]
    }
}

/// Inserts the delta and adds it to its hour; false if it was known. The sandbox's row says whose it is.
pub fn ingest(tx: &mut Tx<'_>, delta: &Delta, sandbox: &Sandbox) -> Result<bool, Error> {
    if !record::insert_if_absent(tx, delta)? && !Defence::UsageOnce.is_off() {
        return Ok(false);
    }
    let hour_us = delta.from_us.div_euclid(HOUR_US) * HOUR_US;
    let zero = "INSERT INTO usage_rollup (hour_us, sandbox_id, tenant_id, workspace_id, project_id,
        external_workspace_id, external_user_id, external_project_id, kind, wall_us, vcpu_alloc_us, mem_alloc_mib_us,
        cpu_used_us, mem_used_mib_us, disk_mib_us, snapshot_mib_us, net_egress_bytes, net_ingress_bytes)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0, 0, 0, 0, 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING";
    let owner = params![
        hour_us,
        &sandbox.id,
        &sandbox.tenant_id,
        &sandbox.workspace_id,
        &sandbox.project_id,
        &sandbox.external_workspace_id,
        &sandbox.external_user_id,
        &sandbox.external_project_id,
        &sandbox.kind
    ];
    tx.execute(zero, owner)?;
    let sets: Vec<String> =
        COLUMNS.iter().enumerate().map(|(at, column)| format!("{column} = {column} + ?{}", at + 3)).collect();
    let sql = format!("UPDATE usage_rollup SET {} WHERE sandbox_id = ?1 AND hour_us = ?2", sets.join(", "));
    let mut params = vec![(&sandbox.id).into(), hour_us.into()];
    params.extend(delta.amounts().map(super::Value::from));
    tx.execute(&sql, &params)?;
    Ok(true)
}

/// What a report is about; every field that is set narrows.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub tenant_id: String,
    pub workspace_id: Option<String>,
    pub project_id: Option<String>,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub sandbox_id: Option<String>,
    pub from_us: i64,
    pub to_us: i64,
}

impl Filter {
    fn narrow(&self, where_: &mut Conditions, prefix: &str) {
        let column = |name: &str| format!("{prefix}{name}");
        where_.push_if(&column("workspace_id"), "=", &self.workspace_id);
        where_.push_if(&column("project_id"), "=", &self.project_id);
        where_.push_if(&column("external_workspace_id"), "=", &self.external_workspace_id);
        where_.push_if(&column("external_user_id"), "=", &self.external_user_id);
        where_.push_if(&column("external_project_id"), "=", &self.external_project_id);
        where_.push_if(&column("sandbox_id"), "=", &self.sandbox_id);
    }
}

/// The sums of one sandbox within a period.
#[derive(Debug, Clone)]
pub struct SandboxSum {
    pub sandbox_id: String,
    pub workspace_id: String,
    pub project_id: String,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub kind: String,
    pub amounts: Amounts,
}

/// Whole hours from the roll-up, per sandbox. `from_us` and `to_us` must be full hours.
pub fn sum_hours(tx: &mut Tx<'_>, filter: &Filter) -> Result<Vec<SandboxSum>, Error> {
    let mut where_ = Conditions::new("u.tenant_id", &filter.tenant_id);
    where_.push("u.hour_us", ">=", filter.from_us);
    where_.push("u.hour_us", "<", filter.to_us);
    filter.narrow(&mut where_, "u.");
    sum(tx, "usage_rollup u", "u", where_)
}

/// Deltas that begin within the period, per sandbox: for the hours a period only touches.
pub fn sum_deltas(tx: &mut Tx<'_>, filter: &Filter) -> Result<Vec<SandboxSum>, Error> {
    let mut where_ = Conditions::new("u.tenant_id", &filter.tenant_id);
    where_.push("u.from_us", ">=", filter.from_us);
    where_.push("u.from_us", "<", filter.to_us);
    where_.push_if("u.sandbox_id", "=", &filter.sandbox_id);
    let owner = Filter { sandbox_id: None, ..filter.clone() };
    owner.narrow(&mut where_, "s.");
    sum(tx, "usage_delta u JOIN sandbox s ON s.id = u.sandbox_id", "s", where_)
}

fn sum(tx: &mut Tx<'_>, from: &str, owner: &str, where_: Conditions) -> Result<Vec<SandboxSum>, Error> {
    const MILLION: &str = "1000000";
    // Millions and the rest are summed apart: neither overflows, and together they are exact.
    let sums: Vec<String> = COLUMNS
        .iter()
        .flat_map(|column| {
            [
                format!("CAST(SUM(u.{column} / {MILLION}) AS BIGINT) AS {column}_m"),
                format!("CAST(SUM(u.{column} % {MILLION}) AS BIGINT) AS {column}_r"),
            ]
        })
        .collect();
    let owners = [
        "workspace_id",
        "project_id",
        "external_workspace_id",
        "external_user_id",
        "external_project_id",
        "kind",
    ];
    let owners: Vec<String> = owners.iter().map(|column| format!("{owner}.{column}")).collect();
    let (where_, params) = where_.finish();
    let owners = owners.join(", ");
    let sql = format!(
        "SELECT u.sandbox_id, {owners}, {} FROM {from} {where_} GROUP BY u.sandbox_id, {owners} ORDER BY u.sandbox_id",
        sums.join(", ")
    );
    tx.query(&sql, &params)?.iter().map(sandbox_sum).collect()
}

fn sandbox_sum(row: &Row) -> Result<SandboxSum, Error> {
    let mut amounts: Amounts = [0; COLUMNS.len()];
    for (amount, column) in amounts.iter_mut().zip(COLUMNS) {
        let millions = row.int(&format!("{column}_m"))?;
        let rest = row.int(&format!("{column}_r"))?;
        *amount = i128::from(millions) * 1_000_000 + i128::from(rest);
    }
    Ok(SandboxSum {
        sandbox_id: row.text("sandbox_id")?,
        workspace_id: row.text("workspace_id")?,
        project_id: row.text("project_id")?,
        external_workspace_id: row.find_text("external_workspace_id")?,
        external_user_id: row.find_text("external_user_id")?,
        external_project_id: row.find_text("external_project_id")?,
        kind: row.text("kind")?,
        amounts,
    })
}

/// The end of the last delta of a sandbox's current execution, if there is one.
pub fn find_last_end(tx: &mut Tx<'_>, execution: &str) -> Result<Option<i64>, Error> {
    let sql = "SELECT MAX(to_us) AS to_us FROM usage_delta WHERE execution_id = ?1";
    tx.query_one("usage", sql, params![execution])?.find_int("to_us")
}

/// Running sandboxes that a report must estimate the open interval of.
pub fn list_running(tx: &mut Tx<'_>, filter: &Filter) -> Result<Vec<Sandbox>, Error> {
    let mut where_ = Conditions::new("tenant_id", &filter.tenant_id);
    where_.push_clause("state = 'running' AND execution_id IS NOT NULL");
    let owner = Filter { sandbox_id: None, ..filter.clone() };
    owner.narrow(&mut where_, "");
    where_.push_if("id", "=", &filter.sandbox_id);
    let (where_, params) = where_.finish();
    record::list(tx, &where_, &params)
}

/// Raw deltas in the order of (from, execution, seq), after one of them, for reconciliation.
pub fn list_deltas(
    tx: &mut Tx<'_>,
    tenant: &str,
    after: (i64, &str, u64),
    until_us: i64,
    limit: u32,
) -> Result<Vec<Delta>, Error> {
    let tail =
        "WHERE tenant_id = ?1 AND from_us < ?5 AND (from_us > ?2 OR (from_us = ?2 AND execution_id > ?3)
        OR (from_us = ?2 AND execution_id = ?3 AND seq > ?4)) ORDER BY from_us, execution_id, seq LIMIT ?6";
    record::list(tx, tail, params![tenant, after.0, after.1, after.2, until_us, limit])
}
