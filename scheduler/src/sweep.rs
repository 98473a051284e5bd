//! Work that time alone brings: sandboxes whose lifetime is over, rows nobody needs any more.
//!
//! Every decision is a conditional write, so several schedulers may sweep at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use roost_daemon::health::Check;
use roost_daemon::shutdown::Shutdown;
use roost_domain::id::EventId;

use crate::app::App;
use crate::app::sandbox::run::{self, Decision};
use crate::audit::Audit;
use crate::config;
use crate::store::audit_log::{self, AuditRow};
use crate::store::sandbox::{self, Sandbox};
use crate::store::{Error, event, idempotency};

const PERIOD: Duration = Duration::from_secs(1);
/// Sandboxes ended in one turn; the rest follows in the next.
const OVERDUE_MAX: u32 = 200;
/// Turns between two removals of old rows: ten minutes.
const CLEAN_TURNS: u64 = 600;
const DAY_US: i64 = 86_400_000_000;

/// Sweeps until shutdown is requested. `store` tells whether the store answers.
pub(crate) async fn run(
    app: Arc<App>,
    audit: Audit,
    retention: config::Audit,
    store: Check,
    shutdown: Shutdown,
) {
    let mut turn = 0u64;
    loop {
        match end_overdue(&app).await {
            Ok(()) => store.pass(),
            Err(error) => {
                tracing::warn!(error = roost_daemon::telemetry::chain(&error), "cannot sweep");
                store.fail("the store does not answer");
            }
        }
        if turn.is_multiple_of(CLEAN_TURNS) {
            clean(&app, &audit, &retention).await;
        }
        turn += 1;
        tokio::select! {
            () = shutdown.requested() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Pauses or destroys what has run for as long as it was meant to.
pub async fn end_overdue(app: &App) -> Result<(), Error> {
    let now_us = app.now_us();
    let overdue = app.store.read(move |tx| sandbox::list_overdue(tx, now_us, OVERDUE_MAX)).await?;
    for row in overdue {
        let id = row.id.clone();
        let ended = app.store.decide(move |tx| {
            // Read again: it may have been extended, or ended, a moment ago.
            let Some(row) = sandbox::find_any(tx, &row.id)? else { return Ok(false) };
            let is_due = row.deadline_us.is_some_and(|deadline_us| deadline_us <= now_us);
            if !is_due || row.desired_run != "running" {
                return Ok(false);
            }
            let decision = if row.on_timeout == "destroy" { Decision::Destroy } else { Decision::Pause };
            run::apply(tx, &row, decision, now_us)?;
            audit_log::insert(tx, &timed_out(row, now_us))?;
            Ok::<_, crate::app::Error>(true)
        });
        match ended.await {
            Ok(true) => app.fleet.ensure_soon(&id),
            Ok(false) => {}
            Err(error) => {
                let error = roost_daemon::telemetry::chain(&error);
                tracing::warn!(sandbox = id, error, "a sandbox whose lifetime is over could not be ended");
            }
        }
    }
    Ok(())
}

/// The audit row of an end that nobody asked for but the sandbox's own settings.
fn timed_out(row: Sandbox, now_us: i64) -> AuditRow {
    let action = if row.on_timeout == "destroy" { "sandbox.destroyed" } else { "sandbox.paused" };
    AuditRow {
        id: roost_daemon::ids::fresh::<EventId>().to_string(),
        tenant_id: row.tenant_id,
        time_us: now_us,
        action: action.to_owned(),
        actor: "scheduler".to_owned(),
        resource_type: row.kind,
        resource_id: row.id,
        workspace_id: Some(row.workspace_id),
        project_id: Some(row.project_id),
        external_workspace_id: row.external_workspace_id,
        external_user_id: row.external_user_id,
        external_project_id: row.external_project_id,
        metadata: BTreeMap::from([("reason".to_owned(), "timeout".into())]),
        ip_address: None,
        request_id: None,
    }
}

/// Removes rows that are over. What fails is tried again at the next turn.
async fn clean(app: &App, audit: &Audit, retention: &config::Audit) {
    let now_us = app.now_us();
    let events_before_us = now_us - i64::from(retention.event_retention_days) * DAY_US;
    let rows = app.store.write(move |tx| {
        idempotency::remove_expired(tx, now_us)?;
        event::remove_before(tx, events_before_us)
    });
    if let Err(error) = rows.await {
        tracing::warn!(error = roost_daemon::telemetry::chain(&error), "old rows could not be removed");
    }
    let audit_before_us = now_us - i64::from(retention.egress_retention_days) * DAY_US;
    if let Err(error) = audit.remove_before(audit_before_us).await {
        tracing::warn!(error = roost_daemon::telemetry::chain(&error), "old audit rows could not be removed");
    }
}
