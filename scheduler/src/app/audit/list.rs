//! Reading the two audits.

use roost_api::audit::{AuditRow, EgressRow, ListAuditLog, ListEgressAudit};
use roost_api::{List, Timestamp};
use roost_domain::duration::{Since, parse_moment_us};
use serde_json::{Value, json};

use crate::app::sandbox::list::{read_cursor, write_cursor};
use crate::app::{App, Caller, Error, Scope};
use crate::audit::LIMIT_MAX;
use crate::store::{audit_log, egress_event};

const DEFAULT_LIMIT: u32 = 100;

/// Outbound requests, oldest first, so that following them is reading on.
pub async fn egress(app: &App, caller: &Caller, query: ListEgressAudit) -> Result<List<EgressRow>, Error> {
    caller.require(Scope::AuditRead)?;
    let (since_us, until_us) = span(query.since.as_deref(), query.until.as_deref(), app.now_us())?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, LIMIT_MAX - 1);
    let filter = egress_event::Filter {
        tenant_id: caller.tenant_id.clone(),
        workspace_id: caller.workspace_id.clone(),
        external_workspace_id: query.external_workspace_id,
        external_user_id: query.external_user_id,
        external_project_id: query.external_project_id,
        sandbox_id: query.resource_id,
        resource_type: query.resource_type,
        host: query.host,
        action: query.action,
        secret_id: query.secret_id,
        since_us,
        until_us,
        after: query.cursor.as_deref().map(read_cursor).transpose()?,
        newest_first: false,
        limit: limit + 1,
        ..egress_event::Filter::default()
    };
    let mut rows =
        app.audit.list(filter).await.map_err(|source| Error::internal("read the egress audit", source))?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows.last().filter(|_| more).map(|row| write_cursor(row.time_us, &row.event_id));
    Ok(List::paged(rows.into_iter().map(egress_record).collect(), limit, next_cursor))
}

pub async fn egress_row(app: &App, caller: &Caller, id: &str) -> Result<EgressRow, Error> {
    caller.require(Scope::AuditRead)?;
    let found = app
        .audit
        .find(&caller.tenant_id, id)
        .await
        .map_err(|source| Error::internal("read the egress audit", source))?;
    let visible = found.filter(|row| caller.sees_workspace(&row.workspace_id));
    visible.map(egress_record).ok_or(Error::NotFound { what: "audit row" })
}

/// What was done through the API, newest first.
pub async fn control(app: &App, caller: &Caller, query: ListAuditLog) -> Result<List<AuditRow>, Error> {
    caller.require(Scope::AuditRead)?;
    let (since_us, until_us) = span(query.since.as_deref(), query.until.as_deref(), app.now_us())?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, LIMIT_MAX - 1);
    let filter = audit_log::Filter {
        tenant_id: caller.tenant_id.clone(),
        workspace_id: caller.workspace_id.clone(),
        action: query.action,
        actor: query.actor,
        resource_type: query.resource_type,
        resource_id: query.resource_id,
        external_workspace_id: query.external_workspace_id,
        external_user_id: query.external_user_id,
        since_us,
        until_us,
        after: query.after.as_deref().map(read_cursor).transpose()?,
        newest_first: true,
        limit: limit + 1,
        ..audit_log::Filter::default()
    };
    let mut rows = app.store.read(move |tx| audit_log::list(tx, &filter)).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows.last().filter(|_| more).map(|row| write_cursor(row.time_us, &row.id));
    Ok(List::paged(rows.into_iter().map(control_record).collect(), limit, next_cursor))
}

fn span(since: Option<&str>, until: Option<&str>, now_us: i64) -> Result<(Option<i64>, Option<i64>), Error> {
    let since =
        since.map(|text| Since::parse(text).map_err(|problem| Error::invalid("since", problem.to_string())));
    let until = until
        .map(|text| parse_moment_us(text).map_err(|problem| Error::invalid("until", problem.to_string())));
    Ok((since.transpose()?.map(|since| since.start_us(now_us)), until.transpose()?))
}

fn control_record(row: audit_log::AuditRow) -> AuditRow {
    let at = Timestamp::from_micros(row.time_us);
    AuditRow {
        id: row.id,
        kind: row.action.clone(),
        action: row.action,
        actor_id: row.actor.clone(),
        actor: row.actor,
        resource_id: (!row.resource_id.is_empty()).then_some(row.resource_id),
        resource_type: Some(row.resource_type),
        metadata: json!(row.metadata),
        ts: at,
        created_at: at,
    }
}

fn egress_record(row: egress_event::EgressEvent) -> EgressRow {
    let unsigned = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok());
    // A call that nobody ended yet is under way, or its host has not said how it ended.
    let action = row.action.unwrap_or_else(|| "pending".to_owned());
    EgressRow {
        id: row.event_id,
        inserted_at: Timestamp::from_micros(row.time_us),
        tenant_id: row.tenant_id,
        workspace_id: row.workspace_id,
        project_id: row.project_id,
        external_workspace_id: row.external_workspace_id,
        external_user_id: row.external_user_id,
        external_project_id: row.external_project_id,
        actor_id: row.sandbox_id.clone(),
        resource_id: row.sandbox_id,
        resource_type: row.resource_type,
        effect: if action == "reject" { "deny" } else { "allow" }.to_owned(),
        action,
        scheme: Some(row.scheme),
        host: Some(row.host),
        port: u32::try_from(row.port).ok(),
        method: row.method,
        path: row.path,
        status_code: row.status_code.and_then(|code| u32::try_from(code).ok()),
        duration_ms: unsigned(row.duration_us).map(|us| us / 1000),
        bytes_in: unsigned(row.bytes_in),
        bytes_out: unsigned(row.bytes_out),
        policy_id: row.policy_id,
        rule_id: row.rule_id,
        rejected_by: row.rejected_by,
        secret_resolution: resolution(&row.secrets),
        request_transforms: json!({ "secrets": row.secrets }),
        metadata: json!({ "execution_id": row.execution_id, "address": row.address, "detail": row.detail }),
    }
}

/// One word for the whole call: which scope its first credential came from, or that there was none.
fn resolution(secrets: &Value) -> String {
    let uses = secrets.as_array().map(Vec::as_slice).unwrap_or_default();
    let words = uses.iter().filter_map(|used| used.get("resolved_by").and_then(Value::as_str));
    words.into_iter().find(|word| *word != "none").unwrap_or("none").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_says_which_credential_a_call_got() {
        assert_eq!(resolution(&json!([])), "none");
        assert_eq!(resolution(&json!([{ "env": "A", "resolved_by": "none" }])), "none");
        let both =
            json!([{ "env": "A", "resolved_by": "none" }, { "env": "B", "resolved_by": "external_user" }]);
        assert_eq!(resolution(&both), "external_user");
    }

    #[test]
    fn since_is_a_duration_or_a_time() {
        let now_us = 1_795_521_600_000_000;
        assert_eq!(span(Some("7d"), None, now_us).unwrap().0, Some(now_us - 7 * 86_400_000_000));
        assert!(
            span(Some("2026-11-01T00:00:00Z"), Some("2026-11-02T00:00:00Z"), now_us).unwrap().1.is_some()
        );
        assert!(span(Some("lately"), None, now_us).is_err());
        assert!(span(None, Some("7d"), now_us).is_err());
    }
}
