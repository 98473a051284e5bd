//! One attached execution: its sockets' tasks, its names, its limits, and how all of it ends at once.
//!
//! ```text
//! attach ──▶ serving (listener task, DNS task, one task per connection) ──detach──▶ cancelled ──▶ all sockets closed
//! ```
//! Everything that is done for a guest runs in a task of its execution, so nothing of it outlives the detach.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use roost_daemon::telemetry::chain;
use roost_domain::id::ExecutionId;
use roost_domain::sabotage::Defence;
use roost_proto::dataplane::Origin;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Services;
use super::audit::{self, Audit, Subject};
use super::credentials::lease::LeaseCache;
use super::dns::map::DnsMap;
use super::dns::socket::DnsSocket;
use super::http::client::Clients;
use super::limits::ExecutionLimits;
use super::policy::Policy;
use super::stream::Counters;
use super::{dns, listener};
use crate::control::Attachment;

/// How long a detach waits for tasks that were told to end.
const DETACH_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("egress takes a listener, a DNS socket and dns.map, not {0} descriptors")]
    Descriptors(usize),
    #[error("the execution's listener")]
    Listener(#[source] io::Error),
    #[error("the execution's DNS socket")]
    DnsSocket(#[source] io::Error),
    #[error("the execution's names")]
    Names(#[from] dns::map::Error),
    #[error("keeping the execution's descriptors")]
    Keep(#[source] io::Error),
}

/// The descriptors of an attach, kept so that a later attach may change the identity behind them.
#[derive(Debug)]
pub(crate) struct Sockets {
    listener: OwnedFd,
    dns: OwnedFd,
    map: OwnedFd,
}

impl Sockets {
    pub(crate) fn try_clone(&self) -> Result<Self, Error> {
        let clone = |descriptor: &OwnedFd| descriptor.try_clone().map_err(Error::Keep);
        Ok(Self { listener: clone(&self.listener)?, dns: clone(&self.dns)?, map: clone(&self.map)? })
    }
}

impl TryFrom<Vec<OwnedFd>> for Sockets {
    type Error = Error;

    fn try_from(descriptors: Vec<OwnedFd>) -> Result<Self, Error> {
        let [listener, dns, map] = <[OwnedFd; 3]>::try_from(descriptors)
            .map_err(|descriptors| Error::Descriptors(descriptors.len()))?;
        Ok(Self { listener, dns, map })
    }
}

/// What every task of an execution shares.
#[derive(Debug)]
pub(crate) struct Execution {
    pub(crate) id: ExecutionId,
    pub(crate) generation: u64,
    pub(crate) subject: Arc<Subject>,
    pub(crate) names: DnsMap,
    pub(crate) limits: ExecutionLimits,
    /// As the guest's TCP sees it: read is from the guest, written to it.
    pub(crate) traffic: Arc<Counters>,
    pub(crate) services: Arc<Services>,
    pub(crate) clients: Clients,
    pub(crate) leases: LeaseCache,
    sockets: Sockets,
    tasks: TaskExecutor,
}

/// Starts tasks that end when their execution is detached; hyper's connections run in it, too.
#[derive(Debug, Clone)]
pub(crate) struct TaskExecutor {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl TaskExecutor {
    pub(crate) fn of(execution: &Execution) -> Self {
        execution.tasks.clone()
    }

    fn spawn<F>(&self, task: F)
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let stop = self.stop.clone();
        self.tasks.spawn(async move { drop(stop.run_until_cancelled_owned(task).await) });
    }
}

impl<F> hyper::rt::Executor<F> for TaskExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}

impl Execution {
    /// Takes over the sockets and begins to serve them.
    pub(crate) fn start(
        services: Arc<Services>,
        attachment: &Attachment,
        sockets: Sockets,
        traffic: Arc<Counters>,
    ) -> Result<Arc<Self>, Error> {
        let own = sockets.try_clone()?;
        let listener = std::net::TcpListener::from(sockets.listener);
        listener.set_nonblocking(true).map_err(Error::Listener)?;
        let listener = TcpListener::from_std(listener).map_err(Error::Listener)?;
        let dns_socket = DnsSocket::new(sockets.dns).map_err(Error::DnsSocket)?;
        let owner = if Defence::SocketIdentity.is_off() {
            ExecutionId::from_ulid(roost_domain::Ulid::nil())
        } else {
            attachment.execution
        };
        let subject = Subject {
            execution: owner.to_string(),
            sandbox: attachment.sandbox.map(|sandbox| sandbox.to_string()).unwrap_or_default(),
            local: attachment.origin == Origin::Local,
            detached: AtomicBool::new(false),
        };
        let executor = TaskExecutor { tasks: TaskTracker::new(), stop: CancellationToken::new() };
        let execution = Arc::new(Self {
            clients: Clients::new(Arc::clone(&services), executor.clone()),
            leases: LeaseCache::default(),
            id: attachment.execution,
            generation: attachment.generation,
            subject: Arc::new(subject),
            names: DnsMap::load(File::from(sockets.map))?,
            limits: ExecutionLimits::new(),
            traffic,
            services,
            sockets: own,
            tasks: executor,
        });
        execution.spawn(dns::serve_udp(Arc::clone(&execution), dns_socket));
        execution.spawn(listener::serve(Arc::clone(&execution), listener));
        Ok(execution)
    }

    /// Runs a task that ends when the execution is detached.
    pub(crate) fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task);
    }

    /// Ends every task and closes every socket of the execution.
    pub(crate) async fn stop(&self) {
        self.subject.detached.store(true, Ordering::Relaxed);
        let TaskExecutor { tasks, stop } = &self.tasks;
        stop.cancel();
        tasks.close();
        if tokio::time::timeout(DETACH_TIMEOUT, tasks.wait()).await.is_err() {
            tracing::error!(execution = %self.id, tasks = tasks.len(), "tasks outlive their execution");
        }
    }

    /// The descriptors, for an attach that changes only the identity behind them.
    pub(crate) fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    pub(crate) fn policy(&self) -> Arc<Policy> {
        self.services.policy.load_full()
    }

    pub(crate) fn audit(&self) -> &Audit {
        &self.services.audit
    }

    /// Tells the operator that a call was refused because its row cannot be kept: now and then, since the guest
    /// decides how often it happens.
    pub(crate) fn tell_unaudited(&self, error: &audit::Error) {
        let Some(calls) = self.limits.count_unaudited() else { return };
        let (execution, sandbox, error) = (&self.id, &self.subject.sandbox, chain(error));
        tracing::error!(%execution, %sandbox, calls, error, "refused calls that cannot be audited");
    }

    /// The same of calls whose credentials cannot be asked for.
    pub(crate) fn tell_unresolved(&self, error: &(dyn std::error::Error + 'static)) {
        let Some(calls) = self.limits.count_unresolved() else { return };
        let (execution, sandbox, error) = (&self.id, &self.subject.sandbox, chain(error));
        tracing::warn!(%execution, %sandbox, calls, error, "refused calls whose credentials cannot be asked for");
    }
}
