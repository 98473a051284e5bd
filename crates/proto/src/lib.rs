//! The contracts between Roost's own processes, generated from `proto/`.
//!
//! Owns message shapes and nothing else: no I/O, no defaults, no validation. Fields are only ever added, since a
//! paused guest, a surviving data plane and the agent may be of different builds.

#![allow(clippy::all, unreachable_pub, missing_debug_implementations)]

/// Guest gateway to roost-init.
pub mod guest {
    pub mod v1 {
        tonic::include_proto!("roost.guest.v1");
    }
    pub use v1::*;

    /// The protocol generation this build speaks; the host speaks back to the oldest snapshot it holds.
    pub const PROTOCOL_GENERATION: u32 = 1;
    /// Where roost-init listens in the guest. Below 1024, so that no unprivileged process of the guest can take it.
    pub const GUEST_RPC_PORT: u16 = 1021;
}

/// Agent to the two data-plane processes.
pub mod dataplane {
    pub mod v1 {
        tonic::include_proto!("roost.dataplane.v1");
    }
    pub use v1::*;

    /// The generation of this contract, exchanged in `Hello` and `Holding`.
    pub const GENERATION: u32 = 1;
}

/// A host's processes to the scheduler and back.
pub mod host {
    pub mod v1 {
        tonic::include_proto!("roost.host.v1");
    }
    pub use v1::*;

    /// gRPC metadata key that names the sandbox a Gateway call is for.
    pub const SANDBOX_METADATA: &str = "roost-sandbox";
    /// Message of the Gateway's own NOT_FOUND, which a guest's NOT_FOUND about a file never has.
    pub const NOT_ATTACHED: &str = "no such sandbox is attached here";
    /// gRPC metadata key on a failed Gateway call whose code and text came from the guest, not from the gateway:
    /// it tells "no such file" from "no such sandbox". Present or absent; the value means nothing.
    pub const GUEST_STATUS_METADATA: &str = "roost-guest-status";
}

/// The agent to the operator's CLI on the same host.
pub mod local {
    pub mod v1 {
        tonic::include_proto!("roost.local.v1");
    }
    pub use v1::*;
}
