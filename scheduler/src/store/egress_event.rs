//! Table `egress_event` (schema `audit.sql`): one row per outbound call, begun by its intent, ended by its completion.
//!
//! Both are idempotent: a second intent or completion of the same event changes nothing.

use super::record::{self, Conditions, record};
use super::{Error, Tx, params};

record! {
    pub struct EgressEvent in "egress_event" {
        event_id: String,
        time_us: i64,
        tenant_id: String,
        workspace_id: String,
        project_id: String,
        external_workspace_id: Option<String>,
        external_user_id: Option<String>,
        external_project_id: Option<String>,
        sandbox_id: String,
        /// `sandbox` or `computer`.
        resource_type: String,
        execution_id: String,
        host_id: String,
        scheme: String,
        host: String,
        port: i64,
        method: Option<String>,
        path: Option<String>,
        /// A list of `roost_domain::audit::SecretUse`.
        secrets: serde_json::Value,
        /// None while the call is under way.
        completed_us: Option<i64>,
        action: Option<String>,
        rejected_by: Option<String>,
        policy_id: Option<String>,
        rule_id: Option<String>,
        status_code: Option<i64>,
        duration_us: Option<i64>,
        bytes_in: Option<i64>,
        bytes_out: Option<i64>,
        address: Option<String>,
        detail: Option<String>,
    }
}

/// How a call ended.
#[derive(Debug, Clone)]
pub struct End {
    pub event_id: String,
    /// The host that reports it: another one's events are not its to end.
    pub host_id: String,
    pub completed_us: i64,
    pub action: String,
    pub rejected_by: Option<String>,
    pub policy_id: Option<String>,
    pub rule_id: Option<String>,
    pub status_code: Option<i64>,
    pub duration_us: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub address: Option<String>,
    pub detail: Option<String>,
}

/// What to list; every field that is set narrows.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub tenant_id: String,
    pub workspace_id: Option<String>,
    pub project_id: Option<String>,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub sandbox_id: Option<String>,
    pub resource_type: Option<String>,
    pub host: Option<String>,
    pub action: Option<String>,
    pub secret_id: Option<String>,
    pub since_us: Option<i64>,
    pub until_us: Option<i64>,
    /// Rows after this one: its (time, event id).
    pub after: Option<(i64, String)>,
    pub newest_first: bool,
    pub limit: u32,
}

pub fn begin(tx: &mut Tx<'_>, event: &EgressEvent) -> Result<bool, Error> {
    record::insert_if_absent(tx, event)
}

pub fn end(tx: &mut Tx<'_>, end: &End) -> Result<bool, Error> {
    let sql = "UPDATE egress_event SET completed_us = ?3, action = ?4, rejected_by = ?5, policy_id = ?6, rule_id = ?7,
        status_code = ?8, duration_us = ?9, bytes_in = ?10, bytes_out = ?11, address = ?12, detail = ?13
        WHERE event_id = ?1 AND host_id = ?2 AND completed_us IS NULL";
    let params = params![
        &end.event_id,
        &end.host_id,
        end.completed_us,
        &end.action,
        &end.rejected_by,
        &end.policy_id,
        &end.rule_id,
        &end.status_code,
        end.duration_us,
        end.bytes_in,
        end.bytes_out,
        &end.address,
        &end.detail
    ];
    record::changed(tx, sql, params)
}

pub fn find(tx: &mut Tx<'_>, tenant: &str, event_id: &str) -> Result<Option<EgressEvent>, Error> {
    record::find(tx, "WHERE tenant_id = ?1 AND event_id = ?2", params![tenant, event_id])
}

pub fn list(tx: &mut Tx<'_>, filter: &Filter) -> Result<Vec<EgressEvent>, Error> {
    let mut where_ = Conditions::new("tenant_id", &filter.tenant_id);
    where_.push_if("workspace_id", "=", &filter.workspace_id);
    where_.push_if("project_id", "=", &filter.project_id);
    where_.push_if("external_workspace_id", "=", &filter.external_workspace_id);
    where_.push_if("external_user_id", "=", &filter.external_user_id);
    where_.push_if("external_project_id", "=", &filter.external_project_id);
    where_.push_if("sandbox_id", "=", &filter.sandbox_id);
    where_.push_if("resource_type", "=", &filter.resource_type);
    where_.push_if("host", "=", &filter.host);
    where_.push_if("action", "=", &filter.action);
    where_.push_if("time_us", ">=", &filter.since_us);
    where_.push_if("time_us", "<", &filter.until_us);
    if let Some(secret) = &filter.secret_id {
        let secret = serde_json::Value::from(secret.as_str());
        where_.push_json_member("secrets", &format!("\"secret_id\":{secret}"));
    }
    let (order, beyond) = if filter.newest_first { ("DESC", "<") } else { ("ASC", ">") };
    if let Some((time_us, id)) = &filter.after {
        let (time, id) = (where_.place(*time_us), where_.place(id));
        where_.push_clause(format!(
            "(time_us {beyond} {time} OR (time_us = {time} AND event_id {beyond} {id}))"
        ));
    }
    let limit = where_.place(filter.limit);
    let (where_, params) = where_.finish();
    record::list(tx, &format!("{where_} ORDER BY time_us {order}, event_id {order} LIMIT {limit}"), &params)
}

/// Removes what is older; returns how many.
pub fn remove_before(tx: &mut Tx<'_>, before_us: i64) -> Result<u64, Error> {
    tx.execute("DELETE FROM egress_event WHERE time_us < ?1", params![before_us])
}
