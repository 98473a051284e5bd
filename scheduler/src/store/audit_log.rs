//! Table `audit_log`: what was done through the control plane, written in the transaction of what it records.

use std::collections::BTreeMap;

use super::record::{self, Conditions, record};
use super::{Error, Tx};

record! {
    pub struct AuditRow in "audit_log" {
        id: String,
        tenant_id: String,
        time_us: i64,
        action: String,
        /// Like `api_key:msk_live_abcd`, never a whole key.
        actor: String,
        resource_type: String,
        resource_id: String,
        workspace_id: Option<String>,
        project_id: Option<String>,
        external_workspace_id: Option<String>,
        external_user_id: Option<String>,
        external_project_id: Option<String>,
        metadata: BTreeMap<String, serde_json::Value>,
        ip_address: Option<String>,
        request_id: Option<String>,
    }
}

/// What to list; every field that is set narrows.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub tenant_id: String,
    pub workspace_id: Option<String>,
    pub action: Option<String>,
    pub actor: Option<String>,
    pub resource_type: Option<String>,
    pub resource_id: Option<String>,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub since_us: Option<i64>,
    pub until_us: Option<i64>,
    /// Rows after this one: its (time, id).
    pub after: Option<(i64, String)>,
    pub newest_first: bool,
    pub limit: u32,
}

pub fn insert(tx: &mut Tx<'_>, row: &AuditRow) -> Result<(), Error> {
    record::insert(tx, row)
}

/// For rows that may come twice under the same id.
pub fn insert_if_absent(tx: &mut Tx<'_>, row: &AuditRow) -> Result<bool, Error> {
    record::insert_if_absent(tx, row)
}

pub fn list(tx: &mut Tx<'_>, filter: &Filter) -> Result<Vec<AuditRow>, Error> {
    let mut where_ = Conditions::new("tenant_id", &filter.tenant_id);
    where_.push_if("workspace_id", "=", &filter.workspace_id);
    where_.push_if("action", "=", &filter.action);
    where_.push_if("actor", "=", &filter.actor);
    where_.push_if("resource_type", "=", &filter.resource_type);
    where_.push_if("resource_id", "=", &filter.resource_id);
    where_.push_if("external_workspace_id", "=", &filter.external_workspace_id);
    where_.push_if("external_user_id", "=", &filter.external_user_id);
    where_.push_if("external_project_id", "=", &filter.external_project_id);
    where_.push_if("time_us", ">=", &filter.since_us);
    where_.push_if("time_us", "<", &filter.until_us);
    let (order, beyond) = if filter.newest_first { ("DESC", "<") } else { ("ASC", ">") };
    if let Some((time_us, id)) = &filter.after {
        let (time, id) = (where_.place(*time_us), where_.place(id));
        where_.push_clause(format!("(time_us {beyond} {time} OR (time_us = {time} AND id {beyond} {id}))"));
    }
    let limit = where_.place(filter.limit);
    let (where_, params) = where_.finish();
    record::list(tx, &format!("{where_} ORDER BY time_us {order}, id {order} LIMIT {limit}"), &params)
}
