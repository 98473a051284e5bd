//! A WebSocket after both sides have agreed on it: bytes, both ways, until one side ends.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use roost_domain::audit::reason;
use tokio::io::copy_bidirectional;

use crate::egress::relay::TunnelRow;
use crate::egress::stream::Counted;

/// Both halves of an upgrade that was granted, and its row.
pub(super) struct Granted {
    pub(super) guest: OnUpgrade,
    pub(super) upstream: OnUpgrade,
    pub(super) row: TunnelRow,
}

pub(super) async fn relay(granted: Granted) {
    let Granted { guest, upstream, mut row } = granted;
    match tokio::try_join!(guest, upstream) {
        Ok((guest, upstream)) => {
            let mut guest = Counted { inner: TokioIo::new(guest), counters: row.counters() };
            let copied = copy_bidirectional(&mut guest, &mut TokioIo::new(upstream)).await;
            row.finish(copied.err().map(|error| error.to_string()));
        }
        Err(error) => row.fail(reason::UPSTREAM_PROTOCOL, &error),
    }
}
