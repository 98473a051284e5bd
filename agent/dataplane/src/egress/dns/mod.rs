//! The resolver a guest sees: every server it asks is this one, over UDP and TCP.
//!
//! ```text
//! packet ─▶ rate (50/s) ─▶ answer ─▶ policy ─▶ map: append, then give the address
//!                                       └─▶ denied: does not exist, audited
//! ```
//! No query leaves the host for a guest's lookup: a name is resolved when a permitted connection to it is
//! dialled.

pub mod answer;
pub mod map;
pub(crate) mod socket;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use roost_daemon::telemetry::chain;
use roost_domain::audit::{Scheme, reason};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Host;
use super::audit::{Call, Outcome};
use super::execution::Execution;
use super::policy::{self, Decision};
use answer::{MAX_QUERY_BYTES, Names, Verdict, answer};
use socket::DnsSocket;

pub(crate) const PORT: u16 = 53;
/// Between two queries on one TCP connection.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// A socket that fails must not spin.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

/// Answers queries on the execution's UDP socket, for ever.
pub(crate) async fn serve_udp(execution: Arc<Execution>, socket: DnsSocket) {
    let mut buffer = [0; MAX_QUERY_BYTES];
    loop {
        let query = match socket.receive(&mut buffer).await {
            Ok(query) => query,
            Err(error) => {
                tracing::warn!(execution = %execution.id, error = chain(&error), "receiving a DNS query");
                tokio::time::sleep(RECEIVE_PAUSE).await;
                continue;
            }
        };
        if !execution.limits.take_dns_query() {
            continue;
        }
        if let Some(reply) = respond(&execution, &buffer[..query.bytes], query.asked).await
            && let Err(error) = socket.send(&reply, &query).await
        {
            tracing::debug!(execution = %execution.id, error = chain(&error), "answering a DNS query");
        }
    }
}

/// Answers queries on a connection to port 53 of any address, until the guest closes it or breaks the
/// framing.
pub(crate) async fn serve_tcp<S>(execution: &Arc<Execution>, mut stream: S, asked: Ipv4Addr)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = [0; MAX_QUERY_BYTES];
    loop {
        let Ok(Ok(length)) = tokio::time::timeout(TCP_IDLE, stream.read_u16()).await else {
            return;
        };
        let Some(query) = buffer.get_mut(..usize::from(length)) else {
            return;
        };
        let Ok(Ok(_)) = tokio::time::timeout(TCP_IDLE, stream.read_exact(query)).await else {
            return;
        };
        execution.limits.wait_for_dns_query().await;
        let Some(reply) = respond(execution, query, asked).await else {
            return;
        };
        let mut framed = Vec::with_capacity(reply.len() + 2);
        framed.extend_from_slice(&(reply.len() as u16).to_be_bytes());
        framed.extend_from_slice(&reply);
        let Ok(Ok(())) = tokio::time::timeout(TCP_IDLE, stream.write_all(&framed)).await else {
            return;
        };
    }
}

async fn respond(execution: &Arc<Execution>, query: &[u8], asked: Ipv4Addr) -> Option<Vec<u8>> {
    let mut names = ExecutionNames { execution, refused: None };
    let reply = answer(query, &mut names);
    if let Some((host, outcome)) = names.refused {
        tracing::debug!(execution = %execution.id, %host, %asked, "refused a lookup");
        let call = Call {
            scheme: Scheme::Dns,
            host: host.as_str(),
            port: PORT,
            method: None,
            path: None,
            secrets: Vec::new(),
        };
        if let Err(error) = execution.audit().reject(&execution.subject, call, outcome).await {
            execution.tell_unaudited(&error);
            return None;
        }
    }
    reply
}

/// The verdicts of one execution, remembering what has to be audited.
struct ExecutionNames<'a> {
    execution: &'a Execution,
    refused: Option<(Host, Outcome)>,
}

impl Names for ExecutionNames<'_> {
    fn decide(&mut self, name: &Host) -> Verdict {
        if name.as_str() == "localhost" || name.as_str().ends_with(".localhost") {
            return Verdict::Localhost;
        }
        let policy = self.execution.policy();
        // Short names of metadata services have one label only, and are refused, which leaves a row.
        if policy::never_exists(name) && !policy.is_metadata(name) {
            return Verdict::Absent;
        }
        match policy.decide_name(name) {
            Decision::Permit { .. } => Verdict::Permitted,
            Decision::Refuse(refusal) => {
                self.refused = Some((name.clone(), refusal.outcome()));
                Verdict::Absent
            }
        }
    }

    fn find_address(&mut self, name: &Host) -> Option<Ipv4Addr> {
        match self.execution.names.ensure_address(name) {
            Ok(address) => Some(address),
            Err(error) => {
                let outcome = Outcome::rejected(reason::LIMIT).with_detail(chain(&error));
                self.refused = Some((name.clone(), outcome));
                None
            }
        }
    }
}
