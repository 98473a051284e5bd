//! Tables `quota` and `quota_use`: limits per subject and what is in use, changed only by conditional writes.
//!
//! A subject without a `quota` row has no limit; its use is counted all the same, so that a limit set later is right.

use roost_domain::sabotage::Defence;

use super::record::{self, record};
use super::sandbox::Sandbox;
use super::{Error, Tx, params};

record! {
    pub struct Quota in "quota" {
        tenant_id: String,
        /// `tenant`, `workspace`, `project`, `external_workspace` or `external_user`.
        subject: String,
        subject_id: String,
        max_sandboxes: Option<i64>,
        max_concurrent: Option<i64>,
        max_vcpus: Option<i64>,
        max_memory_mib: Option<i64>,
        max_disk_mib: Option<i64>,
        max_credit_cents: Option<i64>,
        updated_us: i64,
    }
}

record! {
    pub struct QuotaUse in "quota_use" {
        tenant_id: String,
        subject: String,
        subject_id: String,
        /// Not destroyed.
        sandboxes: i64,
        /// Wanted running; vcpus and memory are theirs.
        concurrent: i64,
        vcpus: i64,
        memory_mib: i64,
        disk_mib: i64,
    }
}

/// One subject a sandbox counts against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub tenant_id: String,
    pub subject: &'static str,
    pub subject_id: String,
}

/// What an operation adds; negative amounts give back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    pub sandboxes: i64,
    pub concurrent: i64,
    pub vcpus: i64,
    pub memory_mib: i64,
    pub disk_mib: i64,
}

impl Amount {
    /// What a sandbox counts for as long as it exists.
    pub fn resting(sandbox: &Sandbox) -> Amount {
        Amount { sandboxes: 1, disk_mib: signed(sandbox.disk_mib), ..Amount::default() }
    }

    /// What it counts for on top of that because it is wanted running.
    pub fn running(sandbox: &Sandbox) -> Amount {
        Amount {
            concurrent: 1,
            vcpus: signed(sandbox.vcpus),
            memory_mib: signed(sandbox.memory_mib),
            ..Amount::default()
        }
    }
}

impl std::ops::Neg for Amount {
    type Output = Amount;

    fn neg(self) -> Amount {
        Amount {
            sandboxes: -self.sandboxes,
            concurrent: -self.concurrent,
            vcpus: -self.vcpus,
            memory_mib: -self.memory_mib,
            disk_mib: -self.disk_mib,
        }
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Everybody a sandbox counts against.
pub fn subjects(sandbox: &Sandbox) -> Vec<Subject> {
    let subject = |subject, subject_id: &str| Subject {
        tenant_id: sandbox.tenant_id.clone(),
        subject,
        subject_id: subject_id.to_owned(),
    };
    let mut subjects = vec![
        subject("tenant", &sandbox.tenant_id),
        subject("workspace", &sandbox.workspace_id),
        subject("project", &sandbox.project_id),
    ];
    subjects.extend(sandbox.external_workspace_id.as_deref().map(|id| subject("external_workspace", id)));
    subjects.extend(sandbox.external_user_id.as_deref().map(|id| subject("external_user", id)));
    subjects
}

/// Counts what has already happened, whatever the limits say: a host's own transition is a fact.
pub fn count(tx: &mut Tx<'_>, sandbox: &Sandbox, amount: Amount) -> Result<(), Error> {
    let sql =
        "UPDATE quota_use SET sandboxes = sandboxes + ?4, concurrent = concurrent + ?5, vcpus = vcpus + ?6,
        memory_mib = memory_mib + ?7, disk_mib = disk_mib + ?8
        WHERE tenant_id = ?1 AND subject = ?2 AND subject_id = ?3";
    for subject in subjects(sandbox) {
        let added = params![
            &subject.tenant_id,
            subject.subject,
            &subject.subject_id,
            amount.sandboxes,
            amount.concurrent,
            amount.vcpus,
            amount.memory_mib,
            amount.disk_mib
        ];
        tx.execute(sql, added)?;
    }
    Ok(())
}

/// Adds for one subject if every limit that grows still holds: the decision is this statement. False = refused.
pub fn reserve(tx: &mut Tx<'_>, subject: &Subject, amount: Amount) -> Result<bool, Error> {
    if Defence::Quota.is_off() {
        return Ok(true);
    }
    let zero = "INSERT INTO quota_use (tenant_id, subject, subject_id, sandboxes, concurrent, vcpus, memory_mib, disk_mib)
        VALUES (?1, ?2, ?3, 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING";
    let (tenant, kind, id) = (&subject.tenant_id, subject.subject, &subject.subject_id);
    tx.execute(zero, params![tenant, kind, id])?;
    let within = |max: &str, used: &str, place: &str| {
        format!("(CAST(?{place} AS BIGINT) <= 0 OR NOT EXISTS (SELECT 1 FROM quota q WHERE q.tenant_id = ?1 AND q.subject = ?2
            AND q.subject_id = ?3 AND q.{max} IS NOT NULL AND quota_use.{used} + CAST(?{place} AS BIGINT) > q.{max}))")
    };
    let limits = [
        within("max_sandboxes", "sandboxes", "4"),
        within("max_concurrent", "concurrent", "5"),
        within("max_vcpus", "vcpus", "6"),
        within("max_memory_mib", "memory_mib", "7"),
        within("max_disk_mib", "disk_mib", "8"),
    ];
    let sql = format!(
        "UPDATE quota_use SET sandboxes = sandboxes + ?4, concurrent = concurrent + ?5, vcpus = vcpus + ?6,
            memory_mib = memory_mib + ?7, disk_mib = disk_mib + ?8
         WHERE tenant_id = ?1 AND subject = ?2 AND subject_id = ?3 AND {}",
        limits.join(" AND ")
    );
    let added = params![
        tenant,
        kind,
        id,
        amount.sandboxes,
        amount.concurrent,
        amount.vcpus,
        amount.memory_mib,
        amount.disk_mib
    ];
    record::changed(tx, &sql, added)
}

pub fn find(tx: &mut Tx<'_>, subject: &Subject) -> Result<Option<Quota>, Error> {
    let tail = "WHERE tenant_id = ?1 AND subject = ?2 AND subject_id = ?3";
    record::find(tx, tail, params![&subject.tenant_id, subject.subject, &subject.subject_id])
}

pub fn find_use(tx: &mut Tx<'_>, subject: &Subject) -> Result<Option<QuotaUse>, Error> {
    let tail = "WHERE tenant_id = ?1 AND subject = ?2 AND subject_id = ?3";
    record::find(tx, tail, params![&subject.tenant_id, subject.subject, &subject.subject_id])
}

pub fn set(tx: &mut Tx<'_>, quota: &Quota) -> Result<(), Error> {
    remove(tx, &quota.tenant_id, &quota.subject, &quota.subject_id)?;
    record::insert(tx, quota)
}

pub fn remove(tx: &mut Tx<'_>, tenant: &str, subject: &str, subject_id: &str) -> Result<bool, Error> {
    let sql = "DELETE FROM quota WHERE tenant_id = ?1 AND subject = ?2 AND subject_id = ?3";
    record::changed(tx, sql, params![tenant, subject, subject_id])
}
