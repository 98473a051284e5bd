//! The only way out: dials a permitted host through the checked connector.
//!
//! The connector resolves, refuses every address of the floor, and dials the address it checked. Must be
//! called after policy and after the intent is written.

use std::net::SocketAddr;
use std::time::Duration;

use roost_domain::audit::reason;
use tokio::net::TcpStream;

use super::audit::Outcome;
use super::listener::Flow;
use super::{Host, Services};

/// Between two probes of an idle upstream connection.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Resolves, checks and dials; a trait only so that tests can answer for names.
#[async_trait::async_trait]
pub trait Connect: Send + Sync + std::fmt::Debug {
    async fn connect(&self, host: &Host, port: u16) -> Result<(TcpStream, SocketAddr), roost_dial::Error>;
}

#[async_trait::async_trait]
impl<R, D> Connect for roost_dial::Connector<R, D>
where
    R: roost_dial::Resolve + std::fmt::Debug,
    D: roost_dial::Dial + std::fmt::Debug,
{
    async fn connect(&self, host: &Host, port: u16) -> Result<(TcpStream, SocketAddr), roost_dial::Error> {
        Self::connect(self, host, port).await
    }
}

/// Makes the connector for a deny floor; again whenever the floor changes.
pub type MakeConnector = fn(roost_dial::Settings) -> std::sync::Arc<dyn Connect>;

/// The connector that asks the machine's resolver.
pub fn system_connector(settings: roost_dial::Settings) -> std::sync::Arc<dyn Connect> {
    std::sync::Arc::new(roost_dial::Connector::new(settings))
}

pub(crate) async fn dial(
    services: &Services,
    host: &Host,
    port: u16,
) -> Result<(TcpStream, SocketAddr), roost_dial::Error> {
    let (stream, address) = services.connector().connect(host, port).await?;
    // Only fails on a connection that is dead already, which its first read reports better.
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    Ok((stream, address))
}

/// Dials where a connection wants to go.
pub(crate) async fn dial_flow(flow: &Flow) -> Result<(TcpStream, SocketAddr), roost_dial::Error> {
    dial(&flow.execution.services, &flow.host, flow.port).await
}

/// How a failed dial ends the call.
pub(crate) fn dial_outcome(error: &roost_dial::Error) -> Outcome {
    let reason = dial_reason(error);
    if error.is_refusal() {
        Outcome::rejected(reason).with_detail(roost_daemon::telemetry::chain(error))
    } else {
        Outcome::failed(reason, error)
    }
}

pub(crate) fn dial_reason(error: &roost_dial::Error) -> &'static str {
    use roost_dial::Error;
    match error {
        Error::Name { .. } | Error::Address { .. } | Error::Peer { .. } => reason::DENIED_ADDRESS,
        Error::Resolve { .. } | Error::NoAddress { .. } => reason::RESOLVE,
        Error::Dial { .. } => reason::CONNECT,
        Error::Timeout { .. } => reason::TIMEOUT,
    }
}
