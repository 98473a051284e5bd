//! Upload: rows of a host's outbox, each applied at most once, acknowledged after the commit.
//!
//! A row that is not this host's to report is dropped and acknowledged: the host would only send it again. Whose a
//! row is follows from our own sandbox row, never from the upload.

use std::collections::BTreeMap;

use roost_domain::Ulid;
use roost_domain::id::{EventId, ExecutionId};
use roost_proto::host as proto;
use roost_proto::host::outbox_row::Row;
use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::{Fleet, observed, wire};
use crate::store::execution::Execution;
use crate::store::{Error, Tx, audit_log, execution, sandbox};
use crate::usage;

const ROWS_MAX: usize = 2000;

impl Fleet {
    /// Takes rows of a host whose certificate said that it is `host_id`.
    pub async fn upload(
        &self,
        host_id: &str,
        request: proto::UploadRequest,
    ) -> Result<proto::UploadReply, Status> {
        super::server::check_host(host_id, &request.host_id)?;
        if request.rows.len() > ROWS_MAX {
            return Err(Status::invalid_argument(format!("more than {ROWS_MAX} rows in one upload")));
        }
        let acked_seq = request.rows.iter().map(|row| row.seq).max().unwrap_or(0);
        let (id, now_us) = (host_id.to_owned(), self.now_us());
        let applied = self.shared.store.write(move |tx| {
            let mut adopted = observed::Adopted::default();
            let mut dropped = 0u32;
            for row in request.rows.iter().filter_map(|row| row.row.as_ref()) {
                let counted = match row {
                    Row::Status(status) => {
                        adopted.add(observed::adopt(tx, &id, status, now_us)?);
                        true
                    }
                    Row::Execution(row) => record_execution(tx, &id, row)?,
                    Row::Usage(delta) => usage::ingest(tx, &id, delta, now_us)?,
                    Row::Operator(action) => record_operator(tx, &id, action)?,
                };
                dropped += u32::from(!counted);
            }
            Ok((adopted, dropped))
        });
        let (adopted, dropped) = applied.await.map_err(|error| super::server::internal(&error))?;
        if dropped > 0 {
            tracing::warn!(
                host = host_id,
                dropped,
                "outbox rows that are not this host's to report were dropped"
            );
        }
        self.after_adoption(adopted);
        Ok(proto::UploadReply { acked_seq })
    }
}

/// False if the sandbox was never placed on this host under that epoch.
fn record_execution(tx: &mut Tx<'_>, host_id: &str, row: &proto::ExecutionRow) -> Result<bool, Error> {
    let Ok(id) = ExecutionId::parse(&row.execution) else { return Ok(false) };
    let Some(owner) = sandbox::find_any(tx, &row.sandbox)? else { return Ok(false) };
    if !sandbox::was_placed(tx, &owner.id, row.placement_epoch, host_id)? {
        return Ok(false);
    }
    let row = Execution {
        id: id.to_string(),
        sandbox_id: owner.id,
        tenant_id: owner.tenant_id,
        host_id: host_id.to_owned(),
        placement_epoch: i64::try_from(row.placement_epoch).unwrap_or(i64::MAX),
        started_us: row.started_us,
        ended_us: (row.ended_us > 0).then_some(row.ended_us),
        end_cause: wire::stored_text(&row.end_cause),
    };
    execution::record(tx, &row)?;
    Ok(true)
}

/// What the operator did at the host's own CLI is in the tenant's audit log too.
fn record_operator(tx: &mut Tx<'_>, host_id: &str, action: &proto::OperatorAction) -> Result<bool, Error> {
    let Some(owner) = sandbox::find_any(tx, &action.sandbox)? else { return Ok(false) };
    if owner.host_id.as_deref() != Some(host_id) {
        return Ok(false);
    }
    let metadata = BTreeMap::from([
        ("host_id".to_owned(), host_id.into()),
        ("detail".to_owned(), wire::stored_text(&action.detail).into()),
    ]);
    let row = audit_log::AuditRow {
        id: operator_event(host_id, action).to_string(),
        tenant_id: owner.tenant_id,
        time_us: action.time_us,
        action: format!("operator.{}", wire::stored_text(&action.action).trim_start_matches("operator.")),
        actor: format!("operator:{}", wire::stored_text(&action.actor)),
        resource_type: owner.kind,
        resource_id: owner.id,
        workspace_id: Some(owner.workspace_id),
        project_id: Some(owner.project_id),
        external_workspace_id: owner.external_workspace_id,
        external_user_id: owner.external_user_id,
        external_project_id: owner.external_project_id,
        metadata,
        ip_address: None,
        request_id: None,
    };
    audit_log::insert_if_absent(tx, &row)?;
    Ok(true)
}

/// The same id each time the same action is uploaded: its time, and a hash of the rest.
fn operator_event(host_id: &str, action: &proto::OperatorAction) -> EventId {
    let ms = u64::try_from(action.time_us / 1000).unwrap_or(0);
    let mut hash = Sha256::new();
    for part in
        [host_id, &action.sandbox, &action.action, &action.actor, &action.time_us.to_string(), &action.detail]
    {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut random = [0u8; 16];
    random.copy_from_slice(&hash.finalize()[..16]);
    EventId::from_ulid(Ulid::from_parts(ms, u128::from_be_bytes(random)))
}
