//! The operator's way in: a unix socket of mode 0600, and the commands that go over it.
//!
//! One JSON request and one JSON answer per connection. Whoever may open the socket is the operator; there is no
//! other credential. Secrets (new keys, join tokens) are in exactly one answer and stored as hashes.

mod client;
mod command;
mod operation;
mod server;

use std::path::PathBuf;

pub use client::call;
pub use command::{Answer, Command, HostCommand, KeyCommand, TenantCommand};
pub use operation::Operator;
pub use server::{bind, serve};

use crate::{app, secret, store};

/// A request or an answer is never longer.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step} the admin socket {}", path.display())]
    Socket { step: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the scheduler does not listen at {}: is it running, and is this its socket?", path.display())]
    NotRunning { path: PathBuf, source: std::io::Error },
    #[error("the message is not understood")]
    Message(#[from] serde_json::Error),
    #[error("the message is longer than {MESSAGE_BYTES_MAX} bytes")]
    TooLong,
    #[error("the scheduler refused: {0}")]
    Refused(String),
    #[error("the store failed")]
    Store(#[from] store::Error),
    #[error("the vault failed")]
    Vault(#[from] secret::Error),
    #[error("a key could not be made")]
    Key(#[source] Box<app::Error>),
    #[error("random bytes could not be had")]
    Random,
    #[error("a tenant with the name {0:?} exists")]
    TenantExists(String),
    #[error("no tenant {0:?}: `tenant list` shows them")]
    NoTenant(String),
    #[error("no workspace {0:?} of this tenant; the API's /workspaces lists them")]
    NoWorkspace(String),
    #[error("no key {0:?} of this tenant that is not revoked already: `key list` shows them")]
    NoKey(String),
    #[error("{0}")]
    Invalid(String),
}
