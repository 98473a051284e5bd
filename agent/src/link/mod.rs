//! The agent's side of the scheduler: join, keep in step, report.
//!
//! Owns the host's identity and the session; decides nothing about sandboxes (the manager and its actors do). With
//! the scheduler away everything on this host goes on; reports wait in the outbox.

mod ensure;
mod identity;
mod session;
mod wire;

pub use wire::draft;

use std::path::PathBuf;

pub use identity::Identity;
pub use session::{Context, run};

/// Why the scheduler could not be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} {path}")]
    File { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("making the host's key or its certificate request")]
    Certificate(#[from] rcgen::Error),
    #[error(
        "this host has not joined and has no join token: make one with `roost-scheduler admin host token` and name its file as [scheduler] join_token_file"
    )]
    NoToken,
    #[error(
        "the data-plane process {role} has not written its certificate request {path} yet: is it running?"
    )]
    NoRequest { role: &'static str, path: PathBuf },
    #[error("setting up the connection to the scheduler")]
    Transport(#[from] tonic::transport::Error),
    #[error("the scheduler address {0:?} is not host:port")]
    Address(String),
    #[error("the scheduler refused {call} ({code:?}): {message}")]
    Refused { call: &'static str, code: tonic::Code, message: String },
    #[error("the scheduler's message is not understood: {0}")]
    Malformed(String),
    #[error("the agent's database failed")]
    Store(#[from] crate::store::Error),
    #[error("a wish could not be accepted")]
    Manager(#[from] crate::sandbox::Error),
}

impl Error {
    fn refused(call: &'static str) -> impl FnOnce(tonic::Status) -> Self {
        move |status| Self::Refused { call, code: status.code(), message: status.message().to_owned() }
    }
}
