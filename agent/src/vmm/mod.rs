//! Virtual machine monitors behind one trait.
//!
//! Owns how a VMM is started, asked, saved and ended; not the network, cgroup and disk it is given. A guest never
//! runs before [`Vm::cont`]:
//! ```text
//! launch ──▶ paused ◀── stop ─── running ──▶ gone
//!              │ └───── cont ──────▶ ┘        ▲
//!              └─ save (stays paused)         │
//!              └──────── kill ────────────────┘
//! ```
//! A VMM outlives the agent; [`Driver::adopt`] takes hold of it again. No byte the guest wrote is interpreted.

pub mod choose;
#[cfg(any(test, feature = "fake-vmm"))]
pub mod fake;
pub mod qemu;

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use roost_domain::id::SnapshotId;

use crate::host::cgroup::{Cgroup, Limits};
use crate::host::names::Names;
use crate::host::process::VmmProcess;
use crate::image::Image;
use crate::snapshot::{Key, Manifest, Mismatch, Snapshot, Snapshots};

mod error;

pub use error::Error;

/// Size of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    pub vcpus: u32,
    pub memory_mib: u64,
}

/// Everything a new VMM is made of. Descriptors move into it; the caller keeps none.
#[derive(Debug)]
pub struct LaunchSpec {
    pub names: Names,
    /// User of this VMM alone, for as long as it lives.
    pub uid: u32,
    pub geometry: Geometry,
    pub image: Arc<Image>,
    /// The writable disk. Nobody else may have it open.
    pub disk: PathBuf,
    /// `tap0` of the execution's namespace; without one the guest has no network.
    pub tap: Option<OwnedFd>,
    pub cgroup: Cgroup,
    /// The guest starts where this was taken instead of booting.
    pub restore: Option<Snapshot>,
}

/// A VMM that an earlier agent launched.
#[derive(Debug)]
pub struct AdoptSpec {
    pub names: Names,
    pub process: VmmProcess,
    pub geometry: Geometry,
    pub image: Arc<Image>,
}

/// A VMM whose guest exists and has not run.
#[derive(Debug)]
pub struct Launched {
    pub process: VmmProcess,
    pub vm: Arc<dyn Vm>,
}

/// What a VMM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    Running,
    Paused,
    /// A write to its disk found the host's file system full. [`Vm::cont`] makes it try again.
    Stalled,
    Gone(End),
}

/// Why a VMM is gone, as far as can be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest rebooted (or panicked), which ends it here.
    GuestReset,
    /// The agent or an operator ended it.
    Killed,
    /// It ended by itself, with this exit code or signal.
    Crashed { code: Option<i32>, signal: Option<i32> },
    /// It ended while nobody was watching.
    Unknown,
}

/// One kind of VMM.
#[async_trait]
pub trait Driver: Debug + Send + Sync {
    /// Short name for logs and `doctor`, e.g. `qemu-tcg`.
    fn name(&self) -> &'static str;

    /// What a snapshot must match to be restored into such a guest.
    fn key(&self, image: &Image, geometry: Geometry) -> Key;

    /// Limits of the cgroup that such a guest and its VMM need.
    fn limits(&self, geometry: Geometry) -> Limits;

    /// Starts a VMM with its guest stopped. On an error nothing of it runs any more.
    async fn launch(&self, spec: LaunchSpec) -> Result<Launched, Error>;

    /// Takes hold of a VMM; `None` if it is gone.
    async fn adopt(&self, spec: AdoptSpec) -> Result<Option<Arc<dyn Vm>>, Error>;
}

/// One running VMM. Dropping it ends nothing.
#[async_trait]
pub trait Vm: Debug + Send + Sync {
    fn process(&self) -> VmmProcess;

    /// Lets the guest run. Repeatable.
    async fn cont(&self) -> Result<(), Error>;

    /// Holds the guest; its disk is quiet afterwards. Repeatable.
    async fn stop(&self) -> Result<(), Error>;

    async fn observe(&self) -> Result<Observed, Error>;

    /// Writes device state and memory of a stopped guest as one snapshot. The guest stays stopped.
    async fn save(&self, snapshots: &Snapshots, id: SnapshotId) -> Result<Manifest, Error>;

    /// Ends the VMM and returns when it is gone. Repeatable.
    async fn kill(&self) -> Result<(), Error>;

    /// Returns when the VMM is gone, for whatever reason.
    async fn wait_exit(&self) -> End;

    /// The last bytes the guest wrote to its serial console, as it wrote them.
    async fn console(&self, max_bytes: usize) -> Result<Bytes, Error>;
}

/// Refuses a snapshot that does not fit.
pub(crate) fn check_key(snapshot: &Snapshot, wanted: &Key) -> Result<(), Error> {
    snapshot.key().check(wanted).map_err(|mismatch: Mismatch| Error::Incompatible(Box::new(mismatch)))
}
