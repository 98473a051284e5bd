//! The control audit: making its rows, and reading both audits.

use std::collections::BTreeMap;

use roost_domain::id::EventId;
use serde::Serialize;
use serde_json::Value;

use super::label::Attribution;
use super::{Caller, Error};
use crate::store::audit_log::{self, AuditRow};
use crate::store::{self, Tx};

pub mod list;

/// A row in the making. Its id is fixed before the transaction, which may run more than once.
#[derive(Debug, Clone)]
pub struct Row(AuditRow);

/// A row without attribution; metadata gets what [`Row::with`] adds.
pub fn row(caller: &Caller, now_us: i64, action: &str, resource_type: &str, resource_id: &str) -> Row {
    Row(AuditRow {
        id: roost_daemon::ids::fresh::<EventId>().to_string(),
        tenant_id: caller.tenant_id.clone(),
        time_us: now_us,
        action: action.to_owned(),
        actor: caller.actor(),
        resource_type: resource_type.to_owned(),
        resource_id: resource_id.to_owned(),
        workspace_id: caller.workspace_id.clone(),
        project_id: None,
        external_workspace_id: None,
        external_user_id: None,
        external_project_id: None,
        metadata: BTreeMap::new(),
        ip_address: None,
        request_id: (!caller.request_id.is_empty()).then(|| caller.request_id.clone()),
    })
}

impl Row {
    #[must_use]
    pub fn with(mut self, key: &str, value: &(impl Serialize + ?Sized)) -> Self {
        let value = serde_json::to_value(value).unwrap_or(Value::Null);
        self.0.metadata.insert(key.to_owned(), value);
        self
    }

    /// Changes what was done, where only the transaction can tell.
    #[must_use]
    pub fn doing(mut self, action: &str) -> Self {
        action.clone_into(&mut self.0.action);
        self
    }

    #[must_use]
    pub fn of_external_user(mut self, id: &str) -> Self {
        self.0.external_user_id = Some(id.to_owned());
        self
    }

    #[must_use]
    pub fn of_external_workspace(mut self, id: &str) -> Self {
        self.0.external_workspace_id = Some(id.to_owned());
        self
    }

    /// Replaces the metadata by exactly this.
    #[must_use]
    pub fn with_metadata(mut self, metadata: BTreeMap<String, Value>) -> Self {
        self.0.metadata = metadata;
        self
    }

    /// Names the resource by its id where the request named it otherwise.
    #[must_use]
    pub fn on(mut self, resource_id: &str) -> Self {
        resource_id.clone_into(&mut self.0.resource_id);
        self
    }

    #[must_use]
    pub fn about(mut self, attribution: &Attribution) -> Self {
        self.0.workspace_id = Some(attribution.workspace_id.clone());
        self.0.project_id = Some(attribution.project_id.clone());
        self.0.external_workspace_id.clone_from(&attribution.external.workspace);
        self.0.external_user_id.clone_from(&attribution.external.user);
        self.0.external_project_id.clone_from(&attribution.external.project);
        self
    }

    pub fn insert(&self, tx: &mut Tx<'_>) -> Result<(), Error> {
        audit_log::insert(tx, &self.0).map_err(Error::from)
    }

    /// For transactions that cannot be refused.
    pub fn record(&self, tx: &mut Tx<'_>) -> Result<(), store::Error> {
        audit_log::insert(tx, &self.0)
    }
}
