//! Connections to a guest: short overlapping attempts, so that a guest which is just coming up is found at once.
//!
//! A SYN sent before the guest listens is lost and the kernel repeats it a second later; so a fresh attempt starts
//! every 50 ms, each on its own socket, while a few older ones stay open for a guest that answers slowly. The pace
//! slows down the longer it takes. Counts the bytes of every connection. Knows no protocol.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use super::socket_pool::{self, Borrowed, Loan, SocketPool};

/// Where every guest is.
const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
// Attempts open at once.
const ATTEMPTS_MAX: usize = 4;
const PACE_MIN: Duration = Duration::from_millis(50);
const PACE_MAX: Duration = Duration::from_millis(500);
// A connection is given this long, and this many bytes, to end orderly before it is cut.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no dial socket")]
    Socket(#[from] socket_pool::Error),
    #[error("nothing listens on port {port} of the guest")]
    Refused { port: u16 },
    #[error("no answer from port {port} of the guest")]
    Timeout { port: u16 },
    #[error("connect to port {port} of the guest")]
    Connect { port: u16, source: io::Error },
}

/// What a refused attempt means to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenRefused {
    /// The server is expected to appear: go on until the deadline.
    Retry,
    /// Nobody listens: say so.
    Fail,
}

/// Bytes to and from one guest, over all its connections since it was attached.
#[derive(Debug, Default)]
pub struct Traffic {
    pub to_guest: AtomicU64,
    pub from_guest: AtomicU64,
}

/// What it takes to reach one guest.
#[derive(Debug, Clone)]
pub struct Dialler {
    pub pool: Arc<SocketPool>,
    pub traffic: Arc<Traffic>,
}

impl Dialler {
    /// Connects to a port of the guest, in overlapping attempts until the deadline. Waits for the first socket;
    /// further attempts are made while more are free.
    pub async fn dial(
        &self,
        port: u16,
        deadline: Instant,
        refused: WhenRefused,
    ) -> Result<GuestStream, Error> {
        let borrowing = tokio::time::timeout_at(deadline, self.pool.borrow());
        let mut socket = Some(borrowing.await.map_err(|_| socket_pool::Error::Exhausted)??);
        let started = Instant::now();
        let mut attempts = FuturesUnordered::new();
        let mut last = Error::Timeout { port };
        loop {
            let pace = choose_pace(started.elapsed());
            if let Some(socket) = socket.take() {
                attempts.push(self.attempt(socket, port, pace * ATTEMPTS_MAX as u32));
            }
            let next = tokio::time::sleep_until(deadline.min(Instant::now() + pace));
            tokio::pin!(next);
            loop {
                tokio::select! {
                    biased;
                    Some(result) = attempts.next() => match result {
                        Ok(stream) => return Ok(stream),
                        Err(error @ Error::Refused { .. }) if refused == WhenRefused::Fail => return Err(error),
                        Err(error) => last = error,
                    },
                    () = &mut next => break,
                }
            }
            if Instant::now() >= deadline {
                return Err(last);
            }
            if attempts.len() < ATTEMPTS_MAX {
                socket = self.pool.find_free();
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that dials guests")]
    async fn attempt(&self, socket: Borrowed, port: u16, patience: Duration) -> Result<GuestStream, Error> {
        let (socket, loan) = socket;
        let address = SocketAddr::from((GUEST_ADDRESS, port));
        let connecting = TcpSocket::from_std_stream(socket).connect(address);
        match tokio::time::timeout(patience, connecting).await {
            Ok(Ok(stream)) => Ok(GuestStream { open: Some((stream, loan)), traffic: self.traffic.clone() }),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Err(Error::Refused { port })
            }
            Ok(Err(source)) => Err(Error::Connect { port, source }),
            Err(_) => Err(Error::Timeout { port }),
        }
    }
}

/// 50 ms for the first second, then slower and slower.
fn choose_pace(elapsed: Duration) -> Duration {
    (elapsed / 20).clamp(PACE_MIN, PACE_MAX)
}

/// A connection to a guest. Dropping it ends the connection orderly, with a bound, and frees the socket.
#[derive(Debug)]
pub struct GuestStream {
    // None only while dropping.
    open: Option<(TcpStream, Loan)>,
    traffic: Arc<Traffic>,
}

impl GuestStream {
    fn stream(self: Pin<&mut Self>) -> io::Result<Pin<&mut TcpStream>> {
        match &mut self.get_mut().open {
            Some((stream, _)) => Ok(Pin::new(stream)),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = self.as_mut().stream()?.poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        self.traffic.from_guest.fetch_add(read as u64, Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = self.as_mut().stream()?.poll_write(context, data);
        if let Poll::Ready(Ok(written)) = &polled {
            self.traffic.to_guest.fetch_add(*written as u64, Ordering::Relaxed);
        }
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = self.as_mut().stream()?.poll_write_vectored(context, slices);
        if let Poll::Ready(Ok(written)) = &polled {
            self.traffic.to_guest.fetch_add(*written as u64, Ordering::Relaxed);
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }
}

impl Drop for GuestStream {
    fn drop(&mut self) {
        let Some((stream, loan)) = self.open.take() else {
            return;
        };
        // Outside the runtime, at exit, the socket is simply cut.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(linger(stream, loan));
        }
    }
}

/// Lets what was written arrive: disconnecting a socket throws away what the guest has not acknowledged.
async fn linger(mut stream: TcpStream, loan: Loan) {
    let drained = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut (&mut stream).take(LINGER_BYTES_MAX), &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(LINGER_TIMEOUT, drained).await;
    drop(stream);
    drop(loan);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_50_ms_for_a_second_and_never_slower_than_500() {
        for (elapsed_ms, pace_ms) in [(0, 50), (1000, 50), (2000, 100), (10_000, 500), (600_000, 500)] {
            let pace = choose_pace(Duration::from_millis(elapsed_ms));
            assert_eq!(pace, Duration::from_millis(pace_ms), "{elapsed_ms}");
        }
    }
}
