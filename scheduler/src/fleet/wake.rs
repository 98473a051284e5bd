//! Waking a paused sandbox because a visitor whom edge has admitted waits for it.
//!
//! A resume like any other (quota, room on the host, audit), but for sandboxes that may resume by themselves only.
//! What cannot be woken stays as it is: the visitor sees a page that says so.

use std::collections::BTreeMap;

use roost_daemon::ids::fresh;
use roost_domain::id::EventId;

use super::Fleet;
use crate::store::quota::{self, Amount};
use crate::store::sandbox::{self, Changes, Sandbox};
use crate::store::{Error, Tx, audit_log, host};

/// What the audit log calls whoever came.
const ACTOR: &str = "preview_visitor";

/// Why nothing was changed.
enum Refused {
    NotPaused,
    Quota,
    Capacity,
    Store(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused::Store(error)
    }
}

impl Fleet {
    /// Wants a paused sandbox running again. Repeatable; many visitors at once make one resume.
    pub(super) async fn wake(&self, sandbox_id: &str) -> Result<(), Error> {
        let (id, now_us) = (sandbox_id.to_owned(), self.now_us());
        match self.shared.store.decide(move |tx| wake(tx, &id, now_us)).await {
            Ok(()) => self.ensure_soon(sandbox_id),
            Err(Refused::NotPaused) => {}
            Err(Refused::Quota) => {
                tracing::info!(sandbox = sandbox_id, "a visitor did not wake it: over quota")
            }
            Err(Refused::Capacity) => {
                tracing::info!(sandbox = sandbox_id, "a visitor did not wake it: no room")
            }
            Err(Refused::Store(error)) => return Err(error),
        }
        Ok(())
    }
}

fn wake(tx: &mut Tx<'_>, id: &str, now_us: i64) -> Result<(), Refused> {
    let row = sandbox::find_any(tx, id)?.ok_or(Refused::NotPaused)?;
    if row.desired_run != "paused" || !row.auto_resume {
        return Err(Refused::NotPaused);
    }
    for subject in quota::subjects(&row) {
        if !quota::reserve(tx, &subject, Amount::running(&row))? {
            return Err(Refused::Quota);
        }
    }
    let missing_mib = row.memory_mib.saturating_sub(row.memory_reserved_mib);
    if let (Some(host_id), true) = (&row.host_id, missing_mib > 0) {
        if !host::reserve(tx, host_id, missing_mib, 0)? {
            return Err(Refused::Capacity);
        }
        sandbox::set_reservation(tx, id, row.memory_mib, row.disk_reserved_mib)?;
    }
    let deadline_us = row.timeout_s.map(|seconds| now_us.saturating_add(seconds.saturating_mul(1_000_000)));
    let changes = Changes { deadline_us: Some(deadline_us), ..Changes::default() };
    sandbox::update(tx, &row.tenant_id, id, &changes, now_us)?;
    sandbox::set_desired(tx, id, "running", now_us)?;
    audit_log::insert(tx, &woken(row, now_us))?;
    Ok(())
}

fn woken(row: Sandbox, now_us: i64) -> audit_log::AuditRow {
    audit_log::AuditRow {
        id: fresh::<EventId>().to_string(),
        tenant_id: row.tenant_id,
        time_us: now_us,
        action: "sandbox.resumed".to_owned(),
        actor: ACTOR.to_owned(),
        resource_type: row.kind,
        resource_id: row.id,
        workspace_id: Some(row.workspace_id),
        project_id: Some(row.project_id),
        external_workspace_id: row.external_workspace_id,
        external_user_id: row.external_user_id,
        external_project_id: row.external_project_id,
        metadata: BTreeMap::from([("reason".to_owned(), "auto_resume".into())]),
        ip_address: None,
        request_id: None,
    }
}
