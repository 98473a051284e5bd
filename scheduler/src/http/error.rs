//! The one place where an error becomes a code, a status and a body.
//!
//! Owns the mapping, the error envelope and the log line of what is our fault. Codes are `roost_domain`'s
//! closed set; nothing of a source (a host's answer, a statement, a path on this machine) reaches the
//! outside.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use roost_api::{ErrorBody, ErrorEnvelope};
use roost_domain::error_code::Code;
use serde_json::{Value, json};

use super::request;
use crate::app::Error;
use crate::app::guest::PathProblem;

/// What a caller should wait before it tries again.
const RETRY_AFTER_MS: u64 = 1_000;

/// An error on its way out.
#[derive(Debug)]
pub struct Failure(Error);

impl Failure {
    /// The same request will not do better later.
    pub(super) fn is_final(&self) -> bool {
        let code = code(&self.0);
        code.status() < 500 && !code.is_retryable()
    }

    #[cfg(test)]
    pub(super) fn error(&self) -> &Error {
        &self.0
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, body) = describe(&self.0);
        log(&self.0, status, &body);
        let retry_after = body.error.retry_after_ms;
        let mut response = (status, axum::Json(body)).into_response();
        if let Some(retry_after_ms) = retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(retry_after_ms.div_ceil(1000)));
        }
        response
    }
}

/// The answer to an error.
pub(super) fn describe(error: &Error) -> (StatusCode, ErrorEnvelope) {
    let code = code(error);
    let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let retryable = code.is_retryable();
    let message = match code {
        Code::InternalError => "something went wrong here; the request id finds it in our logs".to_owned(),
        _ => error.to_string(),
    };
    let body = ErrorBody {
        code: code.text().to_owned(),
        message,
        request_id: request::current_id(),
        details: details(error),
        retryable,
        retry_after_ms: retryable.then_some(RETRY_AFTER_MS),
    };
    (status, ErrorEnvelope { error: body })
}

fn code(error: &Error) -> Code {
    match error {
        Error::CredentialMissing => Code::TokenMissing,
        Error::CredentialExpired => Code::TokenExpired,
        Error::CredentialRevoked => Code::TokenRevoked,
        Error::Credential { .. } => Code::InvalidToken,
        Error::BrowserToken => Code::BrowserTokenNotAllowed,
        Error::ScopeMissing { .. } => Code::InsufficientScope,
        Error::WorkspaceForbidden => Code::WorkspaceForbidden,
        Error::NotFound { .. } | Error::NoRoute { .. } | Error::NoProcess { .. } => Code::NotFound,
        Error::Malformed { .. } => Code::BadRequest,
        Error::ContentType => Code::UnsupportedMediaType,
        Error::BodyTooLarge { .. } | Error::FileTooLarge { .. } => Code::TooLarge,
        Error::Invalid { .. } => Code::ValidationFailed,
        Error::AttributionImmutable { .. } => Code::AttributionImmutable,
        Error::SlugTaken { .. } => Code::SlugConflict,
        Error::WorkspaceNameTaken { .. } => Code::WorkspaceNameExists,
        Error::QuotaExceeded { .. } => Code::QuotaExceeded,
        Error::NoCapacity { fail_fast: false } => Code::CapacityUnavailable,
        Error::NoCapacity { fail_fast: true } => Code::NoReadyMachine,
        Error::TooManyMatches { .. } => Code::NarrowTheFilter,
        Error::Starting { .. } => Code::SandboxStarting,
        Error::WrongState { .. } => Code::ResourceState,
        Error::HostSilent { .. } | Error::GuestSilent { .. } | Error::GuestBusy { .. } => {
            Code::SandboxUnreachable
        }
        Error::Path { code: PathProblem::Absent, .. } => Code::NotFound,
        Error::Path { code: PathProblem::Refused, .. } => Code::InvalidPath,
        Error::Path { code: PathProblem::NoSpace, .. } => Code::TooLarge,
        Error::TimeoutTooLong { .. } => Code::TimeoutTooLong,
        Error::IdempotencyKeyReused => Code::IdempotencyKeyReused,
        Error::IdempotencyInProgress => Code::IdempotencyInProgress,
        Error::LifetimeExceedsPlan { .. } => Code::TtlExceedsPlan,
        Error::TokenScope { .. } => Code::InvalidScope,
        Error::EndUserCredentialsDisabled => Code::EndUserCredentialsDisabled,
        Error::ScopeFieldMissing { .. } => Code::ScopeFieldMissing,
        Error::EnvironmentName { .. } => Code::InvalidEnvName,
        Error::ValueRequired => Code::ValueRequired,
        Error::EnvironmentTaken { .. } => Code::EnvTaken,
        Error::SecretNotTheirs => Code::SecretNotTheirs,
        Error::ChangedMeanwhile => Code::ResourceState,
        Error::Store(source) if source.is_transient() => Code::SchedulerUnavailable,
        Error::Store(_) | Error::Internal { .. } => Code::InternalError,
    }
}

/// What a program needs besides the code.
fn details(error: &Error) -> Option<Value> {
    match error {
        Error::Invalid { field, problem } => Some(json!({ "field": field, "problem": problem })),
        Error::AttributionImmutable { field } => Some(json!({ "field": field })),
        Error::SlugTaken { slug, within } => Some(json!({ "slug": slug, "within": within })),
        Error::QuotaExceeded { subject, quota, limit, current } => {
            Some(json!({ "subject": subject, "quota": quota, "limit": limit, "current": current }))
        }
        Error::ScopeMissing { scope } => Some(json!({ "scope": scope })),
        Error::Starting { state } | Error::WrongState { state, .. } => Some(json!({ "state": state })),
        Error::LifetimeExceedsPlan { limit, .. } => Some(json!({ "limit": limit })),
        Error::TooManyMatches { limit } => Some(json!({ "limit": limit })),
        Error::ScopeFieldMissing { scope, field } => Some(json!({ "scope": scope, "field": field })),
        Error::Path { path, problem, .. } => Some(json!({ "path": path, "problem": problem })),
        _ => None,
    }
}

/// What is our fault is logged here with its whole chain; what is the caller's is not a warning.
fn log(error: &Error, status: StatusCode, body: &ErrorEnvelope) {
    // A lack of room is a figure to watch, not a fault of one request.
    if !status.is_server_error() || matches!(error, Error::NoCapacity { .. }) {
        return;
    }
    let mut chain = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        chain.push_str(": ");
        chain.push_str(&cause.to_string());
        source = cause.source();
    }
    tracing::warn!(request = %body.error.request_id, code = %body.error.code, "request failed: {chain}");
}
