//! What the API can do: one function per operation, the story in order.
//!
//! Every function takes the [`Caller`] first asked about, checks scope and ownership before anything else,
//! and writes what it changes, the event and the audit row in one transaction. Must not know HTTP, SQL or
//! codes.

use std::sync::Arc;

use roost_daemon::clock::Clock;
use roost_domain::token;

use crate::audit::Audit;
use crate::fleet::Fleet;
use crate::secret::Vault;
use crate::store::Store;

pub mod audit;
pub mod caller;
mod error;
pub mod event;
pub mod guest;
pub mod idempotency;
pub mod key;
pub mod label;
pub mod placement;
pub mod preview;
pub mod quota;
pub mod sandbox;
pub mod secret;
pub mod settings;
pub mod template;
pub mod text;
pub mod usage;
pub mod workspace;

pub use caller::{Caller, Scope};
pub use error::Error;

/// What the operations work on. One for the whole process.
#[derive(Debug)]
pub struct App {
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub fleet: Fleet,
    pub vault: Vault,
    pub audit: Audit,
    pub brand: Brand,
    pub limits: Limits,
}

/// What shows on the wire and is the operator's to choose.
#[derive(Debug, Clone)]
pub struct Brand {
    /// Before every API key, like `msk_`.
    pub key_prefix: String,
    /// `iss` of browser tokens.
    pub issuer: String,
    /// In every browser token, like `miosa` in `miosa_pv_`.
    pub token_brand: String,
    /// The platform's domain for previews.
    pub preview_domain: String,
    /// Between host and path of preview URLs, when previews are not on 443.
    pub preview_port: Option<u16>,
}

impl Default for Brand {
    fn default() -> Self {
        Self {
            key_prefix: "msk_".to_owned(),
            issuer: "roost".to_owned(),
            token_brand: "miosa".to_owned(),
            preview_domain: "roost.localhost".to_owned(),
            preview_port: None,
        }
    }
}

/// What a plan allows that is not a quota.
#[derive(Debug, Clone)]
pub struct Limits {
    pub max_share_ttl_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_share_ttl_s: u64::try_from(token::LIFETIME_S_MAX).unwrap_or(0) }
    }
}

impl App {
    pub fn now_us(&self) -> i64 {
        self.clock.now_us()
    }
}
