//! What tenants hear about a sandbox when its host reports a new state.

use roost_domain::id::EventId;
use roost_domain::lifecycle::State;
use serde_json::json;

use crate::store::sandbox::Sandbox;
use crate::store::{Error, Tx, event};

/// The event of arriving in a state; the states on the way are not announced.
fn kind(before: &str, state: State) -> Option<&'static str> {
    match state {
        State::Running if matches!(before, "resuming" | "paused" | "stopped") => Some("sandbox.resumed"),
        State::Running => Some("sandbox.running"),
        State::Paused => Some("sandbox.paused"),
        State::Stopped => Some("sandbox.stopped"),
        State::Destroyed => Some("sandbox.destroyed"),
        State::Failed => Some("sandbox.error"),
        State::Creating | State::Pausing | State::Resuming | State::Stopping | State::Destroying => None,
    }
}

/// Records the event, in the transaction of the change. `before` is the row as it was, `reason` why it changed.
pub(super) fn record(
    tx: &mut Tx<'_>,
    before: &Sandbox,
    state: State,
    reason: &str,
    actor: &str,
    now_us: i64,
) -> Result<(), Error> {
    let Some(kind) = kind(&before.state, state) else { return Ok(()) };
    let data = json!({
        "id": before.id,
        "state": state.public_text(),
        "reason": (!reason.is_empty()).then_some(reason),
        "actor": actor,
        "name": before.name,
        "slug": before.slug,
        "workspace_id": before.workspace_id,
        "project_id": before.project_id,
        "external_workspace_id": before.external_workspace_id,
        "external_user_id": before.external_user_id,
        "external_project_id": before.external_project_id,
        "metadata": before.metadata,
    });
    let row = event::Event {
        id: roost_daemon::ids::fresh::<EventId>().to_string(),
        tenant_id: before.tenant_id.clone(),
        kind: kind.to_owned(),
        sandbox_id: Some(before.id.clone()),
        data,
        created_us: now_us,
    };
    event::insert(tx, &row)
}
