//! Sync: ids and versions of both sides every 30 s; what the host lacks or has older comes back whole.

use std::collections::HashMap;

use roost_proto::host as proto;
use tonic::Status;

use super::{Fleet, observed, wire};
use crate::store::sandbox::Sandbox;
use crate::store::{host, sandbox};

/// More sandboxes than one host can hold.
const STATUSES_MAX: usize = 20_000;

impl Fleet {
    /// Answers a host whose certificate said that it is `host_id`.
    pub async fn sync(&self, host_id: &str, request: proto::SyncRequest) -> Result<proto::SyncReply, Status> {
        super::server::check_host(host_id, &request.host_id)?;
        if request.sandboxes.len() > STATUSES_MAX {
            return Err(Status::invalid_argument("more sandboxes than a host can hold"));
        }
        let now_us = self.now_us();
        let id = host_id.to_owned();
        let done = self.shared.store.write(move |tx| {
            if let Some(info) = &request.info {
                let skew = request.time_us.saturating_sub(now_us);
                host::record_info(tx, &host::Host { clock_skew_us: skew, ..wire::host(&id, info, now_us) })?;
            }
            let mut adopted = observed::Adopted::default();
            for status in &request.sandboxes {
                adopted.add(observed::adopt(tx, &id, status, now_us)?);
            }
            let placed = sandbox::list_placed(tx, &id)?;
            Ok((adopted, compare(&placed, &request.sandboxes)))
        });
        let (adopted, (ensure, unknown_sandboxes)) =
            done.await.map_err(|error| super::server::internal(&error))?;
        // Offers of what was adopted are in the reply already.
        self.after_adoption(observed::Adopted { offers: vec![], ..adopted });
        Ok(proto::SyncReply {
            ensure,
            unknown_sandboxes,
            time_us: now_us,
            egress_roots_pem: self.shared.pki.egress_roots_pem().into(),
        })
    }
}

/// What the host must be told, and what it holds that is not placed there. Pure.
fn compare(
    placed: &[Sandbox],
    reported: &[proto::SandboxStatus],
) -> (Vec<proto::EnsureRequest>, Vec<String>) {
    let known: HashMap<&str, &proto::SandboxStatus> =
        reported.iter().map(|status| (status.sandbox.as_str(), status)).collect();
    let is_behind = |row: &&Sandbox| match known.get(row.id.as_str()) {
        // Never told of it: there is nothing to destroy there either, but the host must say so.
        None => true,
        Some(status) => (status.placement_epoch, status.generation) != (row.placement_epoch, row.generation),
    };
    let ensure = placed.iter().filter(is_behind).map(wire::ensure_request).collect();
    let placed: std::collections::HashSet<&str> = placed.iter().map(|row| row.id.as_str()).collect();
    let gone = |status: &&proto::SandboxStatus| {
        !placed.contains(status.sandbox.as_str()) && status.state() != proto::State::Destroyed
    };
    let unknown = reported.iter().filter(gone).map(|status| wire::stored_text(&status.sandbox)).collect();
    (ensure, unknown)
}
