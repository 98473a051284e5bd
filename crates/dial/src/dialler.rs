//! Opens one TCP connection to one address that was checked.

use std::future::Future;
use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;

/// How a checked address is dialled.
pub trait Dial: Send + Sync {
    fn dial(&self, address: SocketAddr) -> impl Future<Output = io::Result<TcpStream>> + Send;
}

/// Plain TCP from this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpDialler;

impl Dial for TcpDialler {
    #[expect(clippy::disallowed_methods, reason = "this is the place that dials")]
    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(address).await
    }
}
