//! What the agent has committed about a sandbox and its current execution.
//!
//! Pure values and their text forms in the store. States are named by what is already true.
//!
//! ```text
//! execution:  recorded ─ disk_ready ─ network_ready ─ launched ─ attached ─ running ─┬─ saved ─┐
//!                 └────────────┴─────────────┴────────────┴──────────┴───────────────┴─ ending ┴─ ended
//! ```

use roost_domain::desired::{Run, Standing};
use roost_domain::id::{ExecutionId, SandboxId, SnapshotId};
use roost_domain::lifecycle::State;
use serde::{Deserialize, Serialize};

use crate::host::process::VmmProcess;

/// Who asked for a sandbox: the scheduler for a tenant, or the operator at this host's own CLI.
/// Local ones are never reported and never billed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    Local,
    Tenant,
}

/// What a sandbox is made of. Fixed when it is created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub template: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub disk_mib: u64,
    pub host_name: String,
    #[serde(default)]
    pub environment: std::collections::BTreeMap<String, String>,
}

/// How far an execution has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The row exists; nothing on the host does.
    Recorded,
    DiskReady,
    NetworkReady,
    /// The VMM exists and its guest has not run.
    Launched,
    /// Both data-plane processes hold it; a memory snapshot it came from is spent.
    Attached,
    Running,
    /// The guest is stopped and its memory is on disk.
    Saved,
    /// Being taken down; `end_cause` says why.
    Ending,
}

/// Why an execution ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndCause {
    Paused,
    Stopped,
    Destroyed,
    /// The guest powered off or rebooted.
    GuestExited,
    /// The VMM was gone without the guest having asked for it.
    VmmCrashed,
    /// The host itself restarted.
    HostRestarted,
    /// A step of the start failed for good.
    StartFailed,
    /// The memory snapshot could not be restored; the disk still can be booted.
    RestoreFailed,
}

/// The current execution of a sandbox.
#[derive(Clone, PartialEq, Eq)]
pub struct Execution {
    pub id: ExecutionId,
    pub phase: Phase,
    pub image: String,
    pub vmm_uid: u32,
    pub vmm: Option<VmmProcess>,
    /// The memory snapshot this execution resumes from.
    pub restore: Option<SnapshotId>,
    pub token: GuestToken,
    pub old_token: Option<GuestToken>,
    pub epoch: u64,
    /// The host boot it was launched under.
    pub boot_id: String,
    pub created_us: i64,
    pub started_us: Option<i64>,
    pub end_cause: Option<EndCause>,
}

impl std::fmt::Debug for Execution {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Execution")
            .field("id", &self.id)
            .field("phase", &self.phase)
            .field("vmm", &self.vmm)
            .field("end_cause", &self.end_cause)
            .finish_non_exhaustive()
    }
}

/// The bearer token of the guest RPC. Not a tenant's secret, but never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct GuestToken(pub String);

impl std::fmt::Debug for GuestToken {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("GuestToken(…)")
    }
}

/// One sandbox as committed.
#[derive(Debug, Clone)]
pub struct Sandbox {
    pub id: SandboxId,
    pub origin: Origin,
    pub spec: Spec,
    pub lineage: SandboxId,
    /// What is wanted, and what this host decided by itself since.
    pub standing: Standing,
    pub state: State,
    pub state_reason: Option<String>,
    pub execution: Option<Execution>,
    /// A complete memory snapshot that matches the disk as it is.
    pub snapshot: Option<SnapshotId>,
    /// Digest of the image; fixed at the first launch, since the writable disk is layered over it.
    pub image: Option<String>,
    /// Token and epoch the guest's init (running, or asleep in the snapshot) answers to.
    pub guest_token: Option<GuestToken>,
    pub guest_epoch: u64,
    pub boot_path: Option<BootPath>,
    pub boot_us: Option<i64>,
    pub created_us: i64,
    pub changed_us: i64,
}

impl Sandbox {
    /// What this host works towards. A sandbox that is another host's now is taken down here.
    pub fn target(&self) -> Run {
        self.standing.target().unwrap_or(Run::Destroyed)
    }
}

/// How the current execution came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BootPath {
    Cold,
    Snapshot,
}

/// Ties an enum to the text the store keeps for it, exhaustively and both ways.
macro_rules! stored_as {
    ($name:ident { $($variant:ident => $text:literal),+ $(,)? }) => {
        impl $name {
            pub fn text(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }

            pub fn find(text: &str) -> Option<Self> {
                match text { $($text => Some($name::$variant),)+ _ => None }
            }
        }
    };
}

stored_as!(Origin { Local => "local", Tenant => "tenant" });
stored_as!(BootPath { Cold => "cold", Snapshot => "snapshot" });
stored_as!(Phase {
    Recorded => "recorded",
    DiskReady => "disk_ready",
    NetworkReady => "network_ready",
    Launched => "launched",
    Attached => "attached",
    Running => "running",
    Saved => "saved",
    Ending => "ending",
});
stored_as!(EndCause {
    Paused => "paused",
    Stopped => "stopped",
    Destroyed => "destroyed",
    GuestExited => "guest_exited",
    VmmCrashed => "vmm_crashed",
    HostRestarted => "host_restarted",
    StartFailed => "start_failed",
    RestoreFailed => "restore_failed",
});
