//! A WebSocket after both sides have agreed on it: bytes, both ways, until one side ends.

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use roost_daemon::telemetry::chain;
use roost_domain::audit::{Action, reason};
use tokio::io::copy_bidirectional;

use crate::egress::audit::{Outcome, Pending};

/// Both halves of an upgrade that was granted, and its row.
pub(super) struct Granted {
    pub(super) guest: OnUpgrade,
    pub(super) upstream: OnUpgrade,
    pub(super) pending: Pending,
    pub(super) outcome: Outcome,
}

pub(super) async fn relay(granted: Granted) {
    let Granted { guest, upstream, pending, mut outcome } = granted;
    match tokio::try_join!(guest, upstream) {
        Ok((guest, upstream)) => {
            outcome.action = Action::Tunnel;
            copy(guest, upstream, &mut outcome).await;
        }
        Err(error) => {
            outcome.action = Action::Error;
            outcome.rejected_by = Some(reason::UPSTREAM_PROTOCOL);
            outcome.detail = Some(chain(&error));
        }
    }
    pending.finish(outcome);
}

async fn copy(guest: Upgraded, upstream: Upgraded, outcome: &mut Outcome) {
    let (mut guest, mut upstream) = (TokioIo::new(guest), TokioIo::new(upstream));
    match copy_bidirectional(&mut guest, &mut upstream).await {
        Ok((out, back)) => {
            outcome.bytes_out = out;
            outcome.bytes_in = back;
        }
        Err(error) => outcome.detail = Some(error.to_string()),
    }
}
