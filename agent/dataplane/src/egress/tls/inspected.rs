//! What is spoken inside an inspected TLS connection: HTTP, or a protocol that is relayed to the verified upstream.
//!
//! A client that chose HTTP by name (ALPN) speaks it. Any other is classified by its first words, as without TLS:
//! databases, brokers and mail over TLS are relayed, each side under its own TLS, and never carry credentials.
//! Silence is no way around inspection here either.

use std::time::Duration;

use bytes::BytesMut;
use hyper::Version;
use roost_domain::audit::Scheme;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

use super::{Offer, Sessions};
use crate::egress::audit::Outcome;
use crate::egress::classify::{Protocol, choose_patience, is_web_port, read_greeting};
use crate::egress::http;
use crate::egress::listener::Flow;
use crate::egress::relay::TunnelRow;
use crate::egress::stream::{Counted, GuestStream, Unread};
use crate::egress::upstream::{dial_flow, dial_outcome};

type Guest = server::TlsStream<GuestStream>;
type Upstream = client::TlsStream<TcpStream>;

pub(super) async fn serve(flow: Flow, mut guest: Guest) {
    match guest.get_ref().1.alpn_protocol() {
        Some(b"h2") => return http::serve_tls(flow, guest, Version::HTTP_2).await,
        Some(_) => return http::serve_tls(flow, guest, Version::HTTP_11).await,
        None => {}
    }
    let mut bytes = BytesMut::new();
    let patience = choose_patience(flow.port);
    // A guest that closes without a word has asked for nothing.
    let Ok(mut protocol) = read_greeting(&mut guest, patience, &mut bytes).await else { return };
    if protocol == Protocol::Silent && is_web_port(flow.port) {
        return;
    }
    let mut tunnel = None;
    if !is_http(protocol) {
        let Some((mut upstream, mut row)) = begin(&flow).await else { return };
        let mut first = Vec::new();
        if protocol == Protocol::Silent {
            tokio::select! {
                biased;
                spoken = read_greeting(&mut guest, Duration::MAX, &mut bytes) => match spoken {
                    Ok(spoken) => protocol = spoken,
                    Err(_) => return row.finish(None),
                },
                _ = upstream.read_buf(&mut first) => {}
            }
        }
        match is_http(protocol) {
            true => row.finish(Some("the guest spoke first; closed to inspect it".to_owned())),
            false => tunnel = Some((upstream, row, first)),
        }
    }
    let guest = Unread { unread: bytes.freeze(), inner: guest };
    match (tunnel, protocol) {
        (Some((upstream, row, first)), _) => relay(guest, upstream, row, &first).await,
        (None, Protocol::Http2) => http::serve_tls(flow, guest, Version::HTTP_2).await,
        (None, _) => http::serve_tls(flow, guest, Version::HTTP_11).await,
    }
}

fn is_http(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Http1 | Protocol::Http2)
}

/// Writes the intent, dials and verifies the upstream.
async fn begin(flow: &Flow) -> Option<(Upstream, TunnelRow)> {
    let execution = &flow.execution;
    let pending = match execution.audit().begin(&execution.subject, flow.call(Scheme::Tls)).await {
        Ok(pending) => pending,
        Err(error) => {
            execution.tell_unaudited(&error);
            return None;
        }
    };
    let rule_id = flow.rule_id.clone();
    let (stream, address) = match dial_flow(flow).await {
        Ok(dialled) => dialled,
        Err(error) => {
            pending.finish(Outcome { rule_id, ..dial_outcome(&error) });
            return None;
        }
    };
    let tls = &execution.services.upstream_tls;
    match tls.handshake(&flow.host, Offer::Nothing, &Sessions::new(), stream).await {
        Ok(upstream) => {
            let outcome = Outcome { rule_id, ..Outcome::tunnelled(address) };
            Some((upstream, TunnelRow::new(pending, outcome)))
        }
        Err(error) => {
            let outcome = Outcome::failed(error.reason(), &error);
            pending.finish(Outcome { rule_id, address: Some(address), ..outcome });
            None
        }
    }
}

/// Passes on what the upstream said first, then copies both ways until both are done or one fails.
async fn relay(guest: Unread<Guest>, mut upstream: Upstream, mut row: TunnelRow, first: &[u8]) {
    let mut guest = Counted { inner: guest, counters: row.counters() };
    let copied = async {
        guest.write_all(first).await?;
        guest.flush().await?;
        copy_bidirectional(&mut guest, &mut upstream).await
    };
    let failed = copied.await.err().map(|error| error.to_string());
    row.finish(failed);
}
