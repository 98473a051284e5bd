//! Limits of what one subject may have at once. The decision itself is made where a sandbox is admitted.

use roost_api::quota::{Quota, QuotaUse, SetQuota};

use super::label::check_external_id;
use super::{App, Caller, Error, Scope, audit};
use crate::store::quota::{self as table, Subject};
use crate::store::{Tx, tenant};

const MIB_PER_GB: u64 = 1024;

/// Who is limited, as a path names it.
#[derive(Debug, Clone)]
pub enum Who {
    ExternalUser(String),
    ExternalWorkspace(String),
    Workspace(String),
    Project(String),
    Tenant,
}

impl Who {
    /// The subject, which must be the caller's own. Labels need not exist: nobody registers them.
    fn subject(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Subject, Error> {
        let tenant_id = caller.tenant_id.clone();
        let (subject, subject_id) = match self {
            Who::ExternalUser(id) => ("external_user", label("external_user_id", id)?),
            Who::ExternalWorkspace(id) => ("external_workspace", label("external_workspace_id", id)?),
            Who::Workspace(id) => {
                let found = tenant::find_workspace(tx, &tenant_id, id)?;
                ("workspace", found.ok_or(Error::NotFound { what: "workspace" })?.id)
            }
            Who::Project(id) => {
                let found = tenant::find_project(tx, &tenant_id, id)?;
                ("project", found.ok_or(Error::NotFound { what: "project" })?.id)
            }
            Who::Tenant => ("tenant", tenant_id.clone()),
        };
        Ok(Subject { tenant_id, subject, subject_id })
    }
}

fn label(field: &'static str, id: &str) -> Result<String, Error> {
    check_external_id(field, Some(id))?.ok_or_else(|| Error::invalid(field, "is blank"))
}

/// Quotas bind a whole tenant's customers, so a workspace's key neither sees nor sets them.
fn require(caller: &Caller, scope: Scope) -> Result<(), Error> {
    caller.require(scope)?;
    if caller.workspace_id.is_some() { Err(Error::WorkspaceForbidden) } else { Ok(()) }
}

/// The limits of a subject and what it has in use; no limits where none were set.
pub async fn get(app: &App, caller: &Caller, who: Who) -> Result<Quota, Error> {
    require(caller, Scope::SettingsRead)?;
    let caller = caller.clone();
    let read = app.store.examine(move |tx| {
        let subject = who.subject(tx, &caller)?;
        record(tx, subject)
    });
    read.await
}

/// Changes the limits that are given. What is in use already stays; nothing more is admitted above them.
pub async fn set(app: &App, caller: &Caller, who: Who, request: SetQuota) -> Result<Quota, Error> {
    require(caller, Scope::SettingsWrite)?;
    let now_us = app.now_us();
    let audited = audit::row(caller, now_us, "quota.set", "quota", "");
    let caller = caller.clone();
    let written = app.store.decide(move |tx| {
        let subject = who.subject(tx, &caller)?;
        let mut row = table::find(tx, &subject)?.unwrap_or_else(|| unlimited(&subject));
        let storage_mib = request.max_storage_gb.map(|gb| gb.saturating_mul(MIB_PER_GB));
        for (limit, given) in [
            (&mut row.max_sandboxes, request.max_sandboxes),
            (&mut row.max_concurrent, request.max_concurrent),
            (&mut row.max_vcpus, request.max_vcpus),
            (&mut row.max_memory_mib, request.max_memory_mb),
            (&mut row.max_disk_mib, storage_mib),
            (&mut row.max_credit_cents, request.max_credit_cents),
        ] {
            *limit = given.map(|value| i64::try_from(value).unwrap_or(i64::MAX)).or(*limit);
        }
        row.updated_us = now_us;
        table::set(tx, &row)?;
        describe(audited.clone(), &subject).with("limits", &request).insert(tx)?;
        record(tx, subject)
    });
    written.await
}

/// Takes the limits away. Repeatable.
pub async fn remove(app: &App, caller: &Caller, who: Who) -> Result<(), Error> {
    require(caller, Scope::SettingsWrite)?;
    let audited = audit::row(caller, app.now_us(), "quota.removed", "quota", "");
    let caller = caller.clone();
    let removed = app.store.decide(move |tx| {
        let subject = who.subject(tx, &caller)?;
        if table::remove(tx, &subject.tenant_id, subject.subject, &subject.subject_id)? {
            describe(audited.clone(), &subject).insert(tx)?;
        }
        Ok(())
    });
    removed.await
}

fn unlimited(subject: &Subject) -> table::Quota {
    table::Quota {
        tenant_id: subject.tenant_id.clone(),
        subject: subject.subject.to_owned(),
        subject_id: subject.subject_id.clone(),
        max_sandboxes: None,
        max_concurrent: None,
        max_vcpus: None,
        max_memory_mib: None,
        max_disk_mib: None,
        max_credit_cents: None,
        updated_us: 0,
    }
}

fn describe(row: audit::Row, subject: &Subject) -> audit::Row {
    let row = row.on(&subject.subject_id).with("subject", subject.subject);
    match subject.subject {
        "external_user" => row.of_external_user(&subject.subject_id),
        "external_workspace" => row.of_external_workspace(&subject.subject_id),
        _ => row,
    }
}

fn record(tx: &mut Tx<'_>, subject: Subject) -> Result<Quota, Error> {
    let limits = table::find(tx, &subject)?;
    let used = table::find_use(tx, &subject)?;
    let whole = |value: i64| u64::try_from(value).unwrap_or(0);
    let limit = |of: fn(&table::Quota) -> Option<i64>| limits.as_ref().and_then(of).map(whole);
    Ok(Quota {
        external_user_id: (subject.subject == "external_user").then(|| subject.subject_id.clone()),
        subject: subject.subject.to_owned(),
        subject_id: subject.subject_id,
        max_sandboxes: limit(|row| row.max_sandboxes),
        max_concurrent: limit(|row| row.max_concurrent),
        max_vcpus: limit(|row| row.max_vcpus),
        max_memory_mb: limit(|row| row.max_memory_mib),
        max_storage_gb: limit(|row| row.max_disk_mib).map(|mib| mib / MIB_PER_GB),
        max_credit_cents: limit(|row| row.max_credit_cents),
        usage: used.map_or_else(QuotaUse::default, |used| QuotaUse {
            sandboxes: whole(used.sandboxes),
            concurrent: whole(used.concurrent),
            vcpus: whole(used.vcpus),
            memory_mb: whole(used.memory_mib),
            storage_gb: whole(used.disk_mib) as f64 / MIB_PER_GB as f64,
        }),
    })
}
