//! What the steps of a sandbox may do to the host, as one trait.
//!
//! Exists so that the actor, the planner and the step-fault tests run against the same code with a host that
//! forgets, fails and is cut off on request. Every method is repeatable: a second call finds the work done.

use async_trait::async_trait;
use roost_domain::usage::Reading;

use super::plan::Observed;
use super::record::{Execution, Sandbox};
use crate::host::process::VmmProcess;

/// Why a step failed, and what may be done about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Worth another try: a busy file system, a data-plane process that restarts.
    #[error("{what}")]
    Transient { what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    /// Trying again would fail the same way.
    #[error("{what}")]
    Permanent { what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    /// The memory snapshot does not fit; the disk still can be booted.
    #[error("the memory snapshot cannot be restored")]
    SnapshotRefused { source: Box<dyn std::error::Error + Send + Sync> },
}

impl Error {
    pub fn transient<E>(what: &'static str) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::Transient { what, source: source.into() }
    }

    pub fn permanent<E>(what: &'static str) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::Permanent { what, source: source.into() }
    }
}

/// The host, as steps see it.
#[async_trait]
pub trait World: Send + Sync + 'static {
    fn now_us(&self) -> i64;
    fn boot_id(&self) -> String;
    /// Digest of the image that the template names now.
    async fn find_image(&self, template: &str) -> Result<String, Error>;
    async fn observe(&self, sandbox: &Sandbox) -> Result<Observed, Error>;
    /// Returns when the execution's VMM is gone or its guest shut down; at once if there is none.
    async fn vmm_exited(&self, sandbox: &Sandbox, execution: &Execution);
    async fn ensure_disk(&self, sandbox: &Sandbox) -> Result<(), Error>;
    async fn ensure_network(&self, execution: &Execution) -> Result<(), Error>;
    /// Creates the VMM with its guest stopped, restored if the execution says so.
    async fn launch(&self, sandbox: &Sandbox, execution: &Execution) -> Result<VmmProcess, Error>;
    /// Hands both data-plane processes what they lack; returns when both acknowledged.
    async fn attach(&self, sandbox: &Sandbox, execution: &Execution) -> Result<(), Error>;
    /// Lets the guest run and has the guest gateway claim or personalise it. Returns how long that took, in µs.
    async fn start(&self, sandbox: &Sandbox, execution: &Execution) -> Result<i64, Error>;
    async fn quiesce(&self, execution: &Execution) -> Result<(), Error>;
    /// Stops the guest and writes its memory under the snapshot named after the execution.
    async fn save(&self, sandbox: &Sandbox, execution: &Execution) -> Result<(), Error>;
    /// Lets a guest go on whose memory could not be written.
    async fn resume_in_place(&self, sandbox: &Sandbox, execution: &Execution) -> Result<(), Error>;
    async fn kill_vmm(&self, sandbox: &Sandbox, execution: &Execution) -> Result<(), Error>;
    async fn detach(&self, execution: &Execution) -> Result<(), Error>;
    async fn remove_host_objects(&self, execution: &Execution) -> Result<(), Error>;
    /// Removes disk and snapshots of a destroyed sandbox.
    async fn remove_disk(&self, sandbox: &Sandbox) -> Result<(), Error>;
    /// Removes the memory snapshot of a paused sandbox.
    async fn remove_memory(&self, sandbox: &Sandbox) -> Result<(), Error>;
    /// Removes the snapshots this execution came from and left, but the one the sandbox still needs.
    async fn remove_spent_snapshots(&self, sandbox: &Sandbox, execution: &Execution) -> Result<(), Error>;
    /// Present counters; also of an execution whose VMM is gone, as of its end if that was seen, while its cgroup is
    /// there. `None` once it is not: then the last reading was the last.
    async fn read_usage(&self, sandbox: &Sandbox, execution: &Execution) -> Result<Option<Reading>, Error>;
}
