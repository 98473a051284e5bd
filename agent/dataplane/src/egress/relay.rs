//! Bytes that are not looked into: opaque TCP, and TLS of hosts on the bypass list. Policy and audit still
//! hold.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use roost_daemon::telemetry::chain;
use roost_domain::audit::{Action, Scheme};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;

use super::audit::{Outcome, Pending};
use super::classify::{Protocol, read_greeting};
use super::listener::Flow;
use super::stream::{Counters, GuestStream};
use super::upstream::{dial_flow, dial_outcome};

/// For each direction of a relayed connection.
const BUFFER_BYTES: usize = 32 * 1024;

/// A dialled upstream whose row is open. Dropping it completes the row with what was relayed so far.
#[derive(Debug)]
pub(crate) struct Relayed {
    upstream: TcpStream,
    row: TunnelRow,
}

/// The open row of a tunnel: completes with what was counted, when the tunnel ends or its execution does.
#[derive(Debug)]
pub(crate) struct TunnelRow {
    pending: Option<Pending>,
    /// The outcome but for the bytes.
    outcome: Option<Outcome>,
    counters: Arc<Counters>,
}

impl TunnelRow {
    pub(crate) fn new(pending: Pending, outcome: Outcome) -> Self {
        Self { pending: Some(pending), outcome: Some(outcome), counters: Arc::default() }
    }

    /// Both sides have agreed to a tunnel.
    pub(crate) fn opened(&mut self) {
        if let Some(outcome) = &mut self.outcome {
            outcome.action = Action::Tunnel;
        }
    }

    /// What the guest's end is counted with.
    pub(crate) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    pub(crate) fn finish(&mut self, detail: Option<String>) {
        if let (Some(pending), Some(mut outcome)) = (self.pending.take(), self.outcome.take()) {
            outcome.bytes_in = self.counters.written.load(Ordering::Relaxed);
            outcome.bytes_out = self.counters.read.load(Ordering::Relaxed);
            outcome.detail = detail;
            pending.finish(outcome);
        }
    }

    /// Completes with another outcome: the tunnel never began.
    pub(crate) fn fail(&mut self, reason: &'static str, error: &(dyn std::error::Error + 'static)) {
        self.outcome = None;
        if let Some(pending) = self.pending.take() {
            pending.finish(Outcome::failed(reason, error));
        }
    }
}

impl Drop for TunnelRow {
    fn drop(&mut self) {
        self.finish(Some("ended by detach".to_owned()));
    }
}

/// Who spoke first on a connection whose guest was silent.
pub(crate) enum FirstWord {
    Server(Box<Relayed>),
    /// What the guest said is to be served as what it is; the upstream connection is closed again.
    Guest(Protocol),
}

/// Relays between a guest and where it wants to go.
pub(crate) async fn serve(flow: Flow, guest: GuestStream, scheme: Scheme) {
    match begin(&flow, scheme).await {
        Some(relayed) => relayed.run(guest).await,
        None => guest.reset(),
    }
}

/// Dials for a silent guest and waits for whoever speaks first.
pub(crate) async fn first_word(
    flow: &Flow,
    guest: &mut GuestStream,
    bytes: &mut BytesMut,
) -> Option<FirstWord> {
    let mut relayed = begin(flow, Scheme::Tcp).await?;
    tokio::select! {
        biased;
        spoken = read_greeting(guest, std::time::Duration::MAX, bytes) => match spoken {
            Ok(Protocol::Opaque) => Some(FirstWord::Server(Box::new(relayed))),
            Ok(protocol) => {
                relayed.row.finish(Some("the guest spoke first; closed to inspect it".to_owned()));
                Some(FirstWord::Guest(protocol))
            }
            Err(_) => {
                relayed.row.finish(None);
                None
            }
        },
        _ = relayed.upstream.readable() => Some(FirstWord::Server(Box::new(relayed))),
    }
}

async fn begin(flow: &Flow, scheme: Scheme) -> Option<Relayed> {
    let execution = &flow.execution;
    let pending = match execution.audit().begin(&execution.subject, flow.call(scheme)).await {
        Ok(pending) => pending,
        Err(error) => {
            execution.tell_unaudited(&error);
            return None;
        }
    };
    match dial_flow(flow).await {
        Ok((upstream, address)) => {
            let outcome = Outcome { rule_id: flow.rule_id.clone(), ..Outcome::tunnelled(address) };
            Some(Relayed { upstream, row: TunnelRow::new(pending, outcome) })
        }
        Err(error) => {
            tracing::debug!(execution = %execution.id, host = %flow.host, error = chain(&error), "dial failed");
            pending.finish(Outcome { rule_id: flow.rule_id.clone(), ..dial_outcome(&error) });
            None
        }
    }
}

impl Relayed {
    /// Copies both ways until both are done or one fails.
    pub(crate) async fn run(mut self, mut guest: GuestStream) {
        guest.count_also(self.row.counters());
        let copied =
            copy_bidirectional_with_sizes(&mut guest, &mut self.upstream, BUFFER_BYTES, BUFFER_BYTES).await;
        self.row.finish(copied.err().map(|error| error.to_string()));
    }
}
