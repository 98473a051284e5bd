//! Why an operation was not done, in the words of the product; `http/error.rs` alone turns it into codes.

use super::guest::PathProblem;
use crate::{secret, store};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("send the API key in the header Authorization: Bearer <key>")]
    CredentialMissing,
    #[error("the API key has expired; make a new one")]
    CredentialExpired,
    #[error("the API key was revoked")]
    CredentialRevoked,
    #[error("{problem}")]
    Credential { problem: &'static str },
    #[error("a browser token opens previews, it cannot call this API")]
    BrowserToken,
    #[error("the key lacks the scope {scope}")]
    ScopeMissing { scope: &'static str },
    #[error("the key is scoped to another workspace")]
    WorkspaceForbidden,
    #[error("no such {what}")]
    NotFound { what: &'static str },
    #[error("this server has no {what}")]
    NoRoute { what: String },
    /// The request cannot be read.
    #[error("{problem}")]
    Malformed { problem: String },
    #[error("send application/json in the header Content-Type")]
    ContentType,
    #[error("the body is larger than {limit_bytes} bytes")]
    BodyTooLarge { limit_bytes: usize },
    /// The request can be read and asks for something impossible.
    #[error("{field}: {problem}")]
    Invalid { field: String, problem: String },
    #[error("{field} was stamped when the sandbox was created and cannot be changed")]
    AttributionImmutable { field: &'static str },
    #[error("the slug {slug} is taken in this {within}; choose another one")]
    SlugTaken { slug: String, within: &'static str },
    #[error("a workspace named {name} exists; send allow_duplicate_name, or use it")]
    WorkspaceNameTaken { name: String },
    #[error("the quota of {subject} allows {limit} {quota}, {current} are in use")]
    QuotaExceeded { subject: String, quota: &'static str, limit: u64, current: u64 },
    #[error("no host has room for this sandbox now")]
    NoCapacity { fail_fast: bool },
    #[error("more than {limit} sandboxes match; narrow the filter or page with limit and cursor")]
    TooManyMatches { limit: usize },
    #[error("the sandbox is {state}; wait until it is running")]
    Starting { state: &'static str },
    #[error("the sandbox is {state}, which does not allow this; {advice}")]
    WrongState { state: &'static str, advice: &'static str },
    #[error("the host of this sandbox does not answer")]
    HostSilent {
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    #[error("the sandbox does not answer")]
    GuestSilent {
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    #[error("{path}: {problem}")]
    Path { path: String, problem: String, code: PathProblem },
    #[error("the sandbox cannot take more: {problem}")]
    GuestBusy { problem: String },
    #[error("no process {pid} was started here, or it ended long ago")]
    NoProcess { pid: String },
    #[error("a command may run for at most {limit} s; start it as a process instead")]
    TimeoutTooLong { limit: u64 },
    #[error("the content is larger than {limit_bytes} bytes")]
    FileTooLarge { limit_bytes: u64 },
    #[error("this Idempotency-Key was used with another request; use a new key")]
    IdempotencyKeyReused,
    #[error("the first request with this Idempotency-Key is still running")]
    IdempotencyInProgress,
    #[error("a lifetime of {seconds} s exceeds the {limit} s that the plan allows")]
    LifetimeExceedsPlan { seconds: u64, limit: u64 },
    #[error("{scope:?} is not a scope this token can have")]
    TokenScope { scope: String },
    #[error("end-user credentials are switched off in this tenant's settings")]
    EndUserCredentialsDisabled,
    #[error("the scope {scope} needs the field {field}")]
    ScopeFieldMissing { scope: &'static str, field: &'static str },
    #[error(
        "{name:?} is not a name for an environment variable: letters, digits and _, not starting with a digit"
    )]
    EnvironmentName { name: String },
    #[error("this widens what may receive the value: send the value again in the same call")]
    ValueRequired,
    #[error("{name} is taken: by another secret of the same scope and owner, or in the sandbox itself")]
    EnvironmentTaken { name: String },
    #[error("the secret belongs to somebody else than the sandbox; send its value too, or use their own")]
    SecretNotTheirs,
    #[error("it was changed by another request in this moment; read it again")]
    ChangedMeanwhile,
    #[error("read or write the store")]
    Store(#[from] store::Error),
    #[error("{step}")]
    Internal {
        step: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<secret::Error> for Error {
    fn from(error: secret::Error) -> Self {
        use secret::Error as Vault;
        match error {
            Vault::Store(source) => Self::Store(source),
            Vault::NoSecret => Self::NotFound { what: "secret" },
            Vault::NoSandbox => Self::no_sandbox(),
            Vault::NoBinding => Self::NotFound { what: "binding" },
            Vault::Invalid { field, problem } => Self::invalid(field, problem),
            Vault::InvalidEnvName { env } => Self::EnvironmentName { name: env },
            Vault::ScopeFieldMissing { scope, field } => Self::ScopeFieldMissing { scope, field },
            Vault::EnvTaken { logical_key } => Self::EnvironmentTaken { name: logical_key },
            Vault::EndUserCredentialsDisabled => Self::EndUserCredentialsDisabled,
            Vault::ValueRequired { .. } => Self::ValueRequired,
            Vault::NotTheirs => Self::SecretNotTheirs,
            Vault::Conflict => Self::ChangedMeanwhile,
            source => Self::internal("use the vault", source),
        }
    }
}

impl Error {
    pub fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    pub fn internal(step: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal { step, source: source.into() }
    }

    pub fn no_sandbox() -> Self {
        Self::NotFound { what: "sandbox" }
    }
}
