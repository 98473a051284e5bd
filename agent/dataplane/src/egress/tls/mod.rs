//! The story of a TLS connection of a guest: whom it believes to talk to, and whether it is looked into.
//!
//! ```text
//! greeting ─▶ name = looked-up name? ─▶ bypass list ─▶ relay (tls)
//!                │ no                       │ no
//!                ▼                          ▼
//!          unrecognized_name          leaf ─▶ handshake ─▶ http │ inspected (another protocol)
//! ```
//! Nothing is dialled here: an inspected upstream is dialled at the first permitted request. Without a
//! certificate authority a tenant's connection is refused, never passed through; an operator's local
//! execution is relayed.

pub(crate) mod authority;
mod hello;
mod inspected;
mod leaf;
#[cfg(feature = "sabotage")]
mod unverified;
pub(crate) mod upstream;

use std::sync::Arc;
use std::time::Duration;

use roost_daemon::telemetry::chain;
use roost_domain::audit::{Scheme, reason};
use roost_domain::sabotage::Defence;
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsAcceptor;

use super::audit::Outcome;
use super::listener::Flow;
use super::policy::Decision;
use super::stream::GuestStream;
use super::{Host, relay};
pub(crate) use authority::Authority;
pub use authority::Error as AuthorityError;
use hello::read_hello;
pub(crate) use leaf::Leaves;
#[cfg(test)]
use leaf::leaf_params;
pub use upstream::{Error as UpstreamError, UpstreamRoots};
pub(crate) use upstream::{HandshakeError, Offer, Sessions, UpstreamTls};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A fatal alert before any handshake: record header, level, description.
const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 112];
const INTERNAL_ERROR: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 80];

pub(crate) async fn serve(mut flow: Flow, mut guest: GuestStream) {
    let hello = match tokio::time::timeout(HANDSHAKE_TIMEOUT, read_hello(&mut guest)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(error)) => {
            let outcome = Outcome::rejected(reason::MALFORMED).with_detail(chain(&error));
            flow.refuse(Scheme::Tls, outcome).await;
            return guest.reset();
        }
        Err(_) => {
            flow.refuse(Scheme::Tls, Outcome::rejected(reason::TIMEOUT)).await;
            return guest.reset();
        }
    };
    guest.unread(hello.bytes);
    if let Err(outcome) = choose_host(&mut flow, hello.server_name) {
        flow.refuse(Scheme::Tls, outcome).await;
        return end_with_alert(guest, UNRECOGNIZED_NAME).await;
    }
    if flow.execution.services.bypass.iter().any(|pattern| pattern.matches(&flow.host)) {
        return relay::serve(flow, guest, Scheme::Tls).await;
    }
    let config = match ensure_leaf(&flow) {
        Ok(Some(config)) => config,
        Ok(None) => return relay::serve(flow, guest, Scheme::Tls).await,
        Err(outcome) => {
            flow.refuse(Scheme::Tls, outcome).await;
            return end_with_alert(guest, INTERNAL_ERROR).await;
        }
    };
    let handshake = TlsAcceptor::from(config).accept(guest);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => inspected::serve(flow, stream).await,
        Ok(Err(error)) => flow.refuse(Scheme::Tls, Outcome::failed(reason::GUEST_TLS, &error)).await,
        Err(_) => flow.refuse(Scheme::Tls, Outcome::rejected(reason::TIMEOUT)).await,
    }
}

/// The host a connection is for, in `flow`: the looked-up name, which the greeting may only repeat. A guest
/// that dialled an address and names a host gets that name dialled, under its policy and without credentials.
fn choose_host(flow: &mut Flow, server_name: Option<Host>) -> Result<(), Outcome> {
    let Some(server_name) = server_name else { return Ok(()) };
    if server_name == flow.host {
        return Ok(());
    }
    if !flow.by_address && !Defence::GreetingAgreement.is_off() {
        let detail = format!("the connection is for {}, its TLS greeting for {server_name}", flow.host);
        return Err(Outcome::rejected(reason::SNI_MISMATCH).with_detail(detail));
    }
    match flow.execution.policy().decide(&server_name, flow.port) {
        Decision::Permit { rule_id } => {
            flow.rule_id = rule_id;
            flow.host = server_name;
            Ok(())
        }
        Decision::Refuse(refusal) => Err(refusal.outcome()),
    }
}

/// The leaf to show; none if the connection is an operator's own and cannot be inspected.
fn ensure_leaf(flow: &Flow) -> Result<Option<Arc<ServerConfig>>, Outcome> {
    let services = &flow.execution.services;
    let Some(signer) = services.authority.find_signer() else {
        if flow.execution.subject.local {
            return Ok(None);
        }
        let detail = "this host has no certificate to inspect TLS with";
        return Err(Outcome::rejected(reason::NO_AUTHORITY).with_detail(detail));
    };
    if let Some(config) = services.leaves.find(&flow.host, &signer) {
        return Ok(Some(config));
    }
    if !flow.execution.limits.take_leaf() {
        return Err(Outcome::rejected(reason::LIMIT).with_detail("too many new TLS hosts at once"));
    }
    match services.leaves.make(&flow.host, &signer) {
        Ok(config) => Ok(Some(config)),
        Err(error) => {
            tracing::error!(host = %flow.host, error = chain(&error), "making a certificate");
            Err(Outcome::failed(reason::NO_AUTHORITY, &error))
        }
    }
}

async fn end_with_alert(mut guest: GuestStream, alert: [u8; 7]) {
    // The guest may be gone; its row is written.
    let _ = guest.write_all(&alert).await;
    let _ = guest.shutdown().await;
}
