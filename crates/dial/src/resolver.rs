//! Names to addresses. Answers are not trusted: the connector checks each one.

use std::future::Future;
use std::io;
use std::net::IpAddr;

use roost_domain::host_name::Host;

/// How names become addresses.
pub trait Resolve: Send + Sync {
    /// Every address of a name, in the order they should be tried.
    fn resolve(&self, host: &Host) -> impl Future<Output = io::Result<Vec<IpAddr>>> + Send;
}

/// The machine's resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    #[expect(clippy::disallowed_methods, reason = "this is the place that resolves")]
    async fn resolve(&self, host: &Host) -> io::Result<Vec<IpAddr>> {
        // Without a final dot, so that the operator's hosts file counts. What a search list may make of the name
        // passes the floor like any other answer.
        let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    }
}
