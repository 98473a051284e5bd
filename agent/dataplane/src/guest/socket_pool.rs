//! The sockets through which one guest is reached: made by the agent in the guest's namespace, lent out here.
//!
//! Owns every descriptor: a borrower works on a duplicate, the pool keeps the original, so that it can cut a
//! connection off and use the socket again (`connect(AF_UNSPEC)`). When few are left it asks the agent for more, up
//! to a cap; over the cap borrowers wait, bounded. Dials nothing itself.
//!
//! ```text
//! free --borrow--> lent --returned, disconnected--> free
//! close(): lent connections are cut, all sockets closed
//! ```

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use roost_domain::id::ExecutionId;
use roost_proto::dataplane::{NeedSockets, from_dataplane};
use rustix::net::Shutdown;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::control::Notices;

/// The most sockets one execution gets.
pub const SOCKETS_MAX: usize = 128;
// With this few free ones the agent is asked for more.
const LOW_WATER: usize = 2;
// How many are asked for at a time.
const REQUEST_COUNT: usize = 16;
// An answer that did not come is asked for again after this time.
const REQUEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a borrower waits for a free socket.
const BORROW_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no socket became free in {} s", BORROW_TIMEOUT.as_secs())]
    Exhausted,
    #[error("the execution is detached")]
    Closed,
    #[error("more than {SOCKETS_MAX} sockets for one execution")]
    TooMany,
    #[error("cannot duplicate a dial socket")]
    Duplicate(#[source] io::Error),
    #[error("cannot prepare a dial socket")]
    Prepare(#[source] io::Error),
}

/// A duplicate to work on, and the loan it stands for.
pub(super) type Borrowed = (std::net::TcpStream, Loan);

/// All dial sockets of one execution.
#[derive(Debug)]
pub struct SocketPool {
    execution: ExecutionId,
    notices: Notices,
    free_count: Semaphore,
    sockets: Mutex<Sockets>,
}

#[derive(Debug, Default)]
struct Sockets {
    free: Vec<OwnedFd>,
    lent: HashMap<u64, OwnedFd>,
    last_loan: u64,
    asked_at: Option<Instant>,
    closed: bool,
}

/// A socket on loan. Dropping it disconnects the socket at once, whatever its state, and gives it back.
#[derive(Debug)]
pub struct Loan {
    pool: Arc<SocketPool>,
    id: u64,
}

impl SocketPool {
    pub fn new(execution: ExecutionId, notices: Notices) -> Arc<Self> {
        Arc::new(Self { execution, notices, free_count: Semaphore::new(0), sockets: Mutex::default() })
    }

    /// Takes over unconnected sockets that the agent made in the guest's namespace.
    pub fn add(&self, sockets: Vec<OwnedFd>) -> Result<(), Error> {
        let count = sockets.len();
        for socket in &sockets {
            let socket = socket2::SockRef::from(socket);
            socket.set_nonblocking(true).map_err(Error::Prepare)?;
            socket.set_tcp_nodelay(true).map_err(Error::Prepare)?;
        }
        let mut held = self.lock();
        if held.closed {
            return Err(Error::Closed);
        }
        if held.free.len() + held.lent.len() + count > SOCKETS_MAX {
            return Err(Error::TooMany);
        }
        held.free.extend(sockets);
        held.asked_at = None;
        drop(held);
        self.free_count.add_permits(count);
        Ok(())
    }

    /// A duplicate to work on and the loan to give back; waits for a free socket, bounded.
    pub async fn borrow(self: &Arc<Self>) -> Result<Borrowed, Error> {
        self.ask_when_low();
        let permit = tokio::time::timeout(BORROW_TIMEOUT, self.free_count.acquire())
            .await
            .map_err(|_| Error::Exhausted)?
            .map_err(|_| Error::Closed)?;
        self.lend(permit)
    }

    /// Like [`SocketPool::borrow`], for who can do without: `None` when no socket is free.
    pub fn find_free(self: &Arc<Self>) -> Option<Borrowed> {
        self.ask_when_low();
        let permit = self.free_count.try_acquire().ok()?;
        self.lend(permit).ok()
    }

    /// Whether the next borrower would have to wait.
    pub fn is_scarce(&self) -> bool {
        self.free_count.available_permits() == 0
    }

    fn lend(self: &Arc<Self>, permit: SemaphorePermit<'_>) -> Result<Borrowed, Error> {
        let mut held = self.lock();
        let socket = held.free.pop().ok_or(Error::Closed)?;
        let duplicate = match socket.try_clone() {
            Ok(duplicate) => duplicate,
            Err(error) => {
                held.free.push(socket);
                return Err(Error::Duplicate(error));
            }
        };
        permit.forget();
        held.last_loan += 1;
        let id = held.last_loan;
        held.lent.insert(id, socket);
        drop(held);
        Ok((duplicate.into(), Loan { pool: self.clone(), id }))
    }

    /// Cuts every connection off and closes all sockets. Borrowers see the end of their connection.
    pub fn close(&self) {
        self.free_count.close();
        let mut held = self.lock();
        held.closed = true;
        held.free.clear();
        for socket in held.lent.values() {
            // Fails only on one that is not connected, where there is nothing to cut.
            let _ = rustix::net::shutdown(socket, Shutdown::Both);
        }
    }

    fn give_back(&self, id: u64) {
        let mut held = self.lock();
        let Some(socket) = held.lent.remove(&id) else {
            return;
        };
        if held.closed {
            return;
        }
        if let Err(error) = rustix::net::connect_unspec(&socket) {
            // One socket less; the agent is asked for more when that matters.
            tracing::warn!(execution = %self.execution, %error, "dropped a dial socket that did not disconnect");
            return;
        }
        held.free.push(socket);
        drop(held);
        self.free_count.add_permits(1);
    }

    fn ask_when_low(&self) {
        let mut held = self.lock();
        let total = held.free.len() + held.lent.len();
        let is_asked = held.asked_at.is_some_and(|at| at.elapsed() < REQUEST_PAUSE);
        let count = REQUEST_COUNT.min(SOCKETS_MAX - total.min(SOCKETS_MAX));
        if held.free.len() > LOW_WATER || is_asked || count == 0 {
            return;
        }
        held.asked_at = Some(Instant::now());
        drop(held);
        self.notices.offer(from_dataplane::Message::NeedSockets(NeedSockets {
            execution: self.execution.to_string(),
            count: count as u32,
        }));
    }

    fn lock(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.pool.give_back(self.id);
    }
}
