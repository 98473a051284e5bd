//! The story of one TCP connection of a guest, from accept to the protocol that serves it.
//!
//! ```text
//! accept ─▶ where to? ─▶ policy ─▶ what is spoken? ─▶ tls │ http │ relay
//!             │ unknown     │ denied
//!             ▼             ▼
//!           reset, audited
//! ```
//! The identity is the listener's execution. The address the guest dialled is the local address of the
//! socket; a synthetic one gives back its name, and the name is what is dialled.

use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use roost_daemon::telemetry::chain;
use roost_domain::audit::{Scheme, reason};
use roost_domain::sabotage::Defence;
use tokio::net::{TcpListener, TcpStream};

use super::audit::{Call, Outcome};
use super::classify::{Protocol, choose_patience, is_web_port, read_greeting};
use super::dns::{self, map::is_synthetic};
use super::execution::Execution;
use super::policy::{Decision, literal};
use super::relay::{self, FirstWord};
use super::stream::GuestStream;
use super::{Host, http, tls};

/// A failing accept (no descriptors left) must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A usual TLS greeting or request head in one read.
const GREETING_BYTES: usize = 2048;

/// A permitted connection: who, and where to.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    pub(crate) execution: Arc<Execution>,
    /// The name that is dialled, or the literal address.
    pub(crate) host: Host,
    pub(crate) port: u16,
    /// The guest chose the address itself: it gets no credentials, whatever name it then says.
    pub(crate) by_address: bool,
    /// The rule that permitted the connection.
    pub(crate) rule_id: Option<String>,
}

impl Flow {
    /// The call this connection makes, for the audit trail.
    pub(crate) fn call(&self, scheme: Scheme) -> Call<'_> {
        let (host, port) = (self.host.as_str(), self.port);
        Call { scheme, host, port, method: None, path: None, secrets: Vec::new() }
    }

    /// Refuses the connection, with its row.
    pub(crate) async fn refuse(&self, scheme: Scheme, outcome: Outcome) {
        let audit = self.execution.audit();
        if let Err(error) = audit.reject(&self.execution.subject, self.call(scheme), outcome).await {
            self.execution.tell_unaudited(&error);
        }
    }
}

/// Accepts for ever. A guest at its limit waits in the backlog of its own listener.
pub(crate) async fn serve(execution: Arc<Execution>, listener: TcpListener) {
    loop {
        let Ok(permit) = Arc::clone(&execution.limits.connections).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let owner = Arc::clone(&execution);
                execution.spawn(async move {
                    serve_connection(owner, stream).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(execution = %execution.id, error = chain(&error), "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(execution: Arc<Execution>, stream: TcpStream) {
    let Ok(SocketAddr::V4(dialled)) = stream.local_addr() else { return };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(execution = %execution.id, error = chain(&error), "a connection ended at once");
        return;
    }
    let mut guest = GuestStream::new(stream, Arc::clone(&execution.traffic));
    if dialled.port() == dns::PORT {
        return dns::serve_tcp(&execution, guest, *dialled.ip()).await;
    }
    let Some(flow) = permit(execution, dialled).await else { return guest.reset() };
    let patience = choose_patience(flow.port);
    let mut bytes = bytes::BytesMut::with_capacity(GREETING_BYTES);
    // A guest that closes without a word has asked for nothing.
    let Ok(mut protocol) = read_greeting(&mut guest, patience, &mut bytes).await else { return };
    if protocol == Protocol::Silent {
        if is_web_port(flow.port) {
            return;
        }
        match relay::first_word(&flow, &mut guest, &mut bytes).await {
            Some(FirstWord::Server(relayed)) => {
                guest.unread(bytes.freeze());
                return relayed.run(guest).await;
            }
            Some(FirstWord::Guest(spoken)) => protocol = spoken,
            None => return guest.reset(),
        }
    }
    guest.unread(bytes.freeze());
    match protocol {
        Protocol::Tls => tls::serve(flow, guest).await,
        Protocol::Http1 => http::serve_plain(flow, guest, hyper::Version::HTTP_11).await,
        Protocol::Http2 => http::serve_plain(flow, guest, hyper::Version::HTTP_2).await,
        Protocol::Opaque | Protocol::Silent => relay::serve(flow, guest, Scheme::Tcp).await,
    }
}

/// Where the connection goes, if it may; what it may not is recorded here.
async fn permit(execution: Arc<Execution>, dialled: SocketAddrV4) -> Option<Flow> {
    let name = execution.names.find_name(*dialled.ip());
    let mut flow = Flow {
        by_address: name.is_none(),
        host: name.unwrap_or_else(|| literal(*dialled.ip())),
        port: dialled.port(),
        rule_id: None,
        execution,
    };
    if flow.by_address && is_synthetic(*dialled.ip()) && !Defence::UnknownAddress.is_off() {
        let detail = "no name was ever looked up that has this address";
        flow.refuse(Scheme::Tcp, Outcome::rejected(reason::UNKNOWN_ADDRESS).with_detail(detail)).await;
        return None;
    }
    match flow.execution.policy().decide(&flow.host, flow.port) {
        Decision::Permit { rule_id } => flow.rule_id = rule_id,
        Decision::Refuse(refusal) => {
            flow.refuse(Scheme::Tcp, refusal.outcome()).await;
            return None;
        }
    }
    Some(flow)
}
