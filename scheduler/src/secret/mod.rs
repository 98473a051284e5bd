//! The vault: the only module that seals and opens stored values.
//!
//! ```text
//! master key (file, 0600) ──wraps──▶ two data keys per tenant ──▶ values      AES-256-GCM-SIV, bound to their place
//!                                                              └─▶ placeholders  HMAC-SHA-256(lineage, logical key)
//! ```
//! A value leaves in one way only: to the egress process of the host a sandbox runs on, as a lease. No function here
//! returns one to `app`. Widening what may receive a value (hosts, slots, another owner's sandbox) needs the value
//! again in the same call, so that an admin key without the value can never send it elsewhere.

mod bind;
mod change;
mod check;
mod environment;
mod key;
mod resolve;
mod set;
mod sign;
mod value;

use std::path::Path;
use std::sync::Arc;

use roost_daemon::clock::Clock;
use roost_domain::placeholder::Format;
use roost_domain::resolver::{EndUserCredentials, Skipped, Step};

pub use bind::NewBinding;
pub use change::Change;
pub use key::MasterKey;
pub use resolve::{Explanation, Lease, Outcome};
pub use set::{NewSecret, Scope, Stored};
pub use sign::{Key as SigningKey, PublicKey};
pub use value::Plaintext;

use crate::store::{self, Store, Tx, setting};

/// The tenant's switch for credentials of its end-users: true, false or `"strict"`.
pub const SWITCH_SETTING: &str = "security.allow_end_user_scoped_credentials";
/// What a secret without hosts may do: `refuse` (the default) or `allow`. Copied onto a secret when it is set.
pub const UNBOUND_SETTING: &str = "secrets.unbound_hosts";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the store failed")]
    Store(#[from] store::Error),
    #[error("{step} the master key {}", path.display())]
    MasterKey { step: &'static str, path: std::path::PathBuf, source: std::io::Error },
    #[error("the master key file {} does not hold 32 bytes in hexadecimal", path.display())]
    MasterKeyForm { path: std::path::PathBuf },
    /// Says nothing about what failed: there is nothing more to know about a ciphertext.
    #[error("{what} could not be sealed or opened")]
    Crypto { what: &'static str },
    #[error("{what} is sealed under master key {wanted}, the file holds {found}")]
    OtherMasterKey { what: &'static str, wanted: String, found: String },
    #[error("no such secret")]
    NoSecret,
    #[error("no such sandbox")]
    NoSandbox,
    #[error("no such binding")]
    NoBinding,
    #[error("{field} {problem}")]
    Invalid { field: &'static str, problem: String },
    #[error("{env} is not a name for an environment variable")]
    InvalidEnvName { env: String },
    #[error("the scope {scope} needs {field}")]
    ScopeFieldMissing { scope: &'static str, field: &'static str },
    #[error("another secret already is {logical_key} there")]
    EnvTaken { logical_key: String },
    #[error("credentials of end-users are switched off")]
    EndUserCredentialsDisabled,
    /// What may receive the value would grow, and the value was not given again.
    #[error("{what} would widen what may receive the value: give the value again")]
    ValueRequired { what: &'static str },
    /// A secret of one end-customer on a sandbox of another, without proof of knowing its value.
    #[error("the secret belongs to somebody else than the sandbox")]
    NotTheirs,
    #[error("the secret changed meanwhile")]
    Conflict,
}

impl From<aws_lc_rs::error::Unspecified> for Error {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Error::Crypto { what: "a value" }
    }
}

/// Why a placeholder did not resolve, for people and audit rows.
pub(crate) fn explain_skipped(skipped: &[(Step, Skipped)]) -> String {
    let steps: Vec<String> = skipped.iter().map(|(step, reason)| format!("{step}: {reason}")).collect();
    steps.join(", ")
}

/// A cheap handle on the vault.
#[derive(Debug, Clone)]
pub struct Vault {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    clock: Arc<dyn Clock>,
    master: MasterKey,
    format: Format,
}

impl Vault {
    pub fn new(store: Store, clock: Arc<dyn Clock>, master: MasterKey, format: Format) -> Vault {
        Vault { shared: Arc::new(Shared { store, clock, master, format }) }
    }

    /// Reads the master key, or makes it at the first start.
    pub fn ensure_master_key(path: &Path) -> Result<MasterKey, Error> {
        MasterKey::ensure(path)
    }

    fn now_us(&self) -> i64 {
        self.shared.clock.now_us()
    }
}

/// The tenant's switch as it is now.
fn find_switch(tx: &mut Tx<'_>, tenant: &str) -> Result<EndUserCredentials, store::Error> {
    Ok(match setting::find(tx, tenant, SWITCH_SETTING)? {
        Some(serde_json::Value::Bool(false)) => EndUserCredentials::Off,
        Some(serde_json::Value::String(word)) => {
            EndUserCredentials::find(&word).unwrap_or(EndUserCredentials::Off)
        }
        _ => EndUserCredentials::Allowed,
    })
}
