//! Shipping of audit segments: a piece is acknowledged when it is stored, and may come again.

use roost_proto::host as proto;
use tonic::Status;

use super::{Fleet, server};

impl Fleet {
    pub(super) async fn ship(
        &self,
        host_id: &str,
        request: proto::ShipRequest,
    ) -> Result<proto::ShipReply, Status> {
        let length = u64::try_from(request.records.len()).unwrap_or(u64::MAX);
        if !request.records.is_empty() && !request.records.ends_with(b"\n") {
            return Err(Status::invalid_argument("a piece of a segment ends within a record"));
        }
        let (audit, store) = (&self.shared.audit, &self.shared.store);
        let taken = audit.ingest(store, host_id, &request.records, self.now_us()).await;
        let taken = taken.map_err(|error| server::internal(&error))?;
        if taken.dropped > 0 {
            let (records, dropped) = (taken.records, taken.dropped);
            tracing::warn!(host = host_id, segment = ?request.segment, records, dropped, "audit records were dropped");
        }
        Ok(proto::ShipReply { acked_offset: request.offset.saturating_add(length) })
    }
}
