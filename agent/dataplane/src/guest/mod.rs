//! The host side of every guest's RPC, and the only code that dials guests.
//!
//! Owns the attached executions, their dial sockets and tokens. Previews and the gateway borrow a guest from here.
//! Must not reach anything but guests, and believes nothing a guest says.

mod channel;
pub mod dial;
mod forward;
mod gateway;
mod link;
mod relay;
mod serve;
mod socket_pool;

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use roost_domain::id::{ExecutionId, SandboxId};
use roost_proto::dataplane::{self, from_dataplane};
use tokio::sync::Semaphore;

pub use dial::{Dialler, Error as DialError, GuestStream, Traffic, WhenRefused};
pub use forward::ForwardStream;
pub use gateway::{GatewayService, Scope};
pub use link::Link;
pub use serve::serve_stream;
pub use socket_pool::SOCKETS_MAX;

use crate::control::{Attachment, Code, Notices, Refusal, process_run};
use socket_pool::SocketPool;

// Connections of previews to one guest at once.
const PREVIEW_CONNECTIONS_MAX: usize = 96;
// How often byte counters that moved are told to the agent.
const TRAFFIC_INTERVAL: Duration = Duration::from_secs(5);

/// Every execution attached to this process.
#[derive(Debug)]
pub struct Guests {
    notices: Notices,
    attached: RwLock<Attached>,
}

#[derive(Debug, Default)]
struct Attached {
    by_execution: HashMap<ExecutionId, Arc<Guest>>,
    by_sandbox: HashMap<SandboxId, BTreeSet<ExecutionId>>,
}

/// One attached execution.
#[derive(Debug)]
pub struct Guest {
    pub attachment: ArcSwap<Attachment>,
    pub link: Arc<Link>,
    pub dialler: Dialler,
    /// Places for connections to the guest's own servers, fewer than it has sockets: the gateway must get through.
    pub previews: Arc<Semaphore>,
}

impl Guests {
    pub fn new(notices: Notices) -> Arc<Self> {
        Arc::new(Self { notices, attached: RwLock::default() })
    }

    pub fn find(&self, execution: ExecutionId) -> Option<Arc<Guest>> {
        self.read().by_execution.get(&execution).cloned()
    }

    /// The sandbox's execution; the youngest where an old one is not detached yet.
    pub fn find_by_sandbox(&self, sandbox: SandboxId) -> Option<Arc<Guest>> {
        let attached = self.read();
        let execution = attached.by_sandbox.get(&sandbox)?.last()?;
        attached.by_execution.get(execution).cloned()
    }

    pub fn held(&self) -> Vec<(ExecutionId, u64)> {
        let attached = self.read();
        let held = attached.by_execution.iter();
        held.map(|(execution, guest)| (*execution, guest.attachment.load().generation)).collect()
    }

    /// Takes an execution over. Connections and counters survive a later attach of the same execution.
    pub fn attach(&self, attachment: Attachment, sockets: Vec<OwnedFd>) -> Result<(), Refusal> {
        let mut attached = self.write();
        let Some(guest) = attached.by_execution.get(&attachment.execution).cloned() else {
            if sockets.is_empty() {
                return Err(Refusal::invalid("an attach comes with dial sockets"));
            }
            let guest = Guest::new(attachment, self.notices.clone());
            add_sockets(&guest, sockets)?;
            attached.insert(guest);
            return Ok(());
        };
        let held = guest.attachment.load_full();
        if attachment.generation < held.generation {
            let message = format!("{} is attached with generation {}", held.execution, held.generation);
            return Err(Refusal::new(Code::StaleGeneration, message));
        }
        if attachment.generation == held.generation {
            return Ok(());
        }
        // What it has already serves as well as new ones: too many is no failure here.
        match guest.dialler.pool.add(sockets) {
            Ok(()) | Err(socket_pool::Error::TooMany) => {}
            Err(error) => return Err(Refusal::invalid(error.to_string())),
        }
        if let Some(access) = &attachment.guest {
            guest.link.set_access(access);
        }
        attached.remove(&held);
        guest.attachment.store(Arc::new(attachment));
        attached.insert(guest);
        Ok(())
    }

    /// Lets an execution go: its connections end, its sockets close. Repeatable. All that it has used, if it was there.
    pub fn detach(&self, execution: ExecutionId) -> Option<dataplane::Traffic> {
        let mut attached = self.write();
        let guest = attached.by_execution.get(&execution).cloned()?;
        attached.remove(&guest.attachment.load());
        drop(attached);
        guest.dialler.pool.close();
        Some(traffic_of(&guest))
    }

    pub fn add_sockets(&self, execution: ExecutionId, sockets: Vec<OwnedFd>) -> Result<(), Refusal> {
        let guest = self.find(execution).ok_or_else(|| Refusal::unknown(execution))?;
        add_sockets(&guest, sockets)
    }

    /// Tells the agent the byte counters that moved, for ever.
    pub async fn report_traffic(&self) {
        let mut told: HashMap<ExecutionId, (u64, u64)> = HashMap::new();
        loop {
            tokio::time::sleep(TRAFFIC_INTERVAL).await;
            let guests: Vec<_> = self.read().by_execution.values().cloned().collect();
            let mut now = HashMap::with_capacity(guests.len());
            for guest in guests {
                let execution = guest.attachment.load().execution;
                let counters = guest.traffic();
                if told.get(&execution) != Some(&counters) && counters != (0, 0) {
                    self.notices.offer(from_dataplane::Message::Traffic(traffic_of(&guest)));
                }
                now.insert(execution, counters);
            }
            told = now;
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Attached> {
        self.attached.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Attached> {
        self.attached.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attached {
    fn insert(&mut self, guest: Arc<Guest>) {
        let attachment = guest.attachment.load_full();
        if let Some(sandbox) = attachment.sandbox {
            self.by_sandbox.entry(sandbox).or_default().insert(attachment.execution);
        }
        self.by_execution.insert(attachment.execution, guest);
    }

    fn remove(&mut self, attachment: &Attachment) {
        self.by_execution.remove(&attachment.execution);
        let Some(sandbox) = attachment.sandbox else { return };
        if let Some(executions) = self.by_sandbox.get_mut(&sandbox) {
            executions.remove(&attachment.execution);
            if executions.is_empty() {
                self.by_sandbox.remove(&sandbox);
            }
        }
    }
}

impl Guest {
    fn new(attachment: Attachment, notices: Notices) -> Arc<Self> {
        let dialler =
            Dialler { pool: SocketPool::new(attachment.execution, notices), traffic: Arc::default() };
        let previews = Arc::new(Semaphore::new(PREVIEW_CONNECTIONS_MAX));
        let link = Arc::new(Link::new(attachment.execution, dialler.clone()));
        if let Some(access) = &attachment.guest {
            link.set_access(access);
        }
        Arc::new(Self { attachment: ArcSwap::from_pointee(attachment), link, dialler, previews })
    }

    fn traffic(&self) -> (u64, u64) {
        let traffic = &self.dialler.traffic;
        (traffic.to_guest.load(Ordering::Relaxed), traffic.from_guest.load(Ordering::Relaxed))
    }
}

fn traffic_of(guest: &Guest) -> dataplane::Traffic {
    let (to_guest_bytes, from_guest_bytes) = guest.traffic();
    let execution = guest.attachment.load().execution.to_string();
    dataplane::Traffic { execution, to_guest_bytes, from_guest_bytes, run: process_run() }
}

fn add_sockets(guest: &Guest, sockets: Vec<OwnedFd>) -> Result<(), Refusal> {
    guest.dialler.pool.add(sockets).map_err(|error| match error {
        socket_pool::Error::TooMany => Refusal::new(Code::Limit, error.to_string()),
        other => Refusal::invalid(other.to_string()),
    })
}
