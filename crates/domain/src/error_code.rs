//! The closed set of error codes tenants see, each with its status, the class the public Python SDK raises for it,
//! whether trying again can help, and what the caller should do.
//!
//! Where the SDK maps a spelling to a class of its own, that spelling is the code. A known code wins over the
//! status in the SDK, so the class column is what callers catch. The table is golden: `tests/golden/error_codes.txt`.

/// Everything there is to say about one code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    pub text: &'static str,
    pub status: u16,
    pub sdk_class: &'static str,
    pub retryable: bool,
    pub advice: &'static str,
}

macro_rules! codes {
    ($($variant:ident, $text:literal, $status:literal, $class:literal, $retry:ident, $advice:literal;)+) => {
        /// A public error code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $advice] $variant),+
        }

        crate::text::words!(Code, "error code" { $($variant => $text),+ });

        impl Code {
            pub const fn meaning(self) -> Meaning {
                match self {
                    $(Self::$variant => Meaning {
                        text: $text,
                        status: $status,
                        sdk_class: $class,
                        retryable: codes!(@$retry),
                        advice: $advice,
                    }),+
                }
            }
        }
    };
    (@retry) => { true };
    (@final) => { false };
}

codes! {
    BadRequest, "bad_request", 400, "ValidationError", final, "correct the request: it could not be read";
    InvalidId, "invalid_id", 400, "ValidationError", final, "pass an id of the right kind";
    InvalidState, "invalid_state", 400, "ValidationError", final, "start the OAuth flow again: its state is unknown, used or expired";
    InvalidToken, "invalid_token", 401, "AuthenticationError", final, "check the credential";
    TokenExpired, "token_expired", 401, "AuthenticationError", final, "get a new token";
    TokenRevoked, "token_revoked", 401, "AuthenticationError", final, "get a new token, if you still may";
    TokenMissing, "token_missing", 401, "AuthenticationError", final, "send a credential";
    CreditRequired, "CREDIT_REQUIRED", 402, "CreditRequiredError", final, "raise the credit of the subject that is named";
    InsufficientScope, "insufficient_scope", 403, "PermissionError", final, "use a key that has the scope";
    BrowserTokenNotAllowed, "browser_token_not_allowed", 403, "PermissionError", final, "call the API from your server, with a key";
    EndUserCredentialsDisabled, "end_user_credentials_disabled", 403, "PermissionError", final, "the tenant switched end-user credentials off";
    StateUserMismatch, "state_user_mismatch", 403, "PermissionError", final, "start the OAuth flow again for the right user";
    ShareRevoked, "share_revoked", 403, "PermissionError", final, "ask for a new link";
    TokenWrongResource, "token_wrong_resource", 403, "PermissionError", final, "use the token of this resource";
    WorkspaceForbidden, "WORKSPACE_FORBIDDEN", 403, "WorkspaceForbiddenError", final, "this key is bound to another workspace";
    QuotaExceeded, "quota_exceeded", 403, "PermissionError", final, "free something or raise the quota that is named";
    EgressHostNotAllowed, "EGRESS_HOST_NOT_ALLOWED", 403, "EgressHostNotAllowedError", final, "allow the host in the egress policy or in the secret";
    SecretNotTheirs, "secret_not_theirs", 403, "PermissionError", final, "send the value too, or use a secret of the sandbox's own user";
    OperatorOnly, "operator_only", 403, "PermissionError", final, "ask the operator of this installation";
    NotFound, "not_found", 404, "NotFoundError", final, "check the id: it does not exist or is not yours";
    MethodNotAllowed, "method_not_allowed", 405, "MiosaError", final, "use a method that this path has";
    ExecTimeout, "exec_timeout", 408, "MiosaError", final, "give the command more time or run it as a process";
    SlugConflict, "slug_conflict", 409, "MiosaError", final, "choose another slug";
    NameTaken, "NAME_TAKEN", 409, "SnapshotNameTakenError", final, "choose another name";
    WorkspaceNameExists, "WORKSPACE_NAME_EXISTS", 409, "WorkspaceNameExistsError", final, "choose another name or use the workspace that has it";
    ResourceState, "RESOURCE_STATE", 409, "ResourceStateError", final, "bring the resource into a state that allows this";
    SandboxStarting, "SANDBOX_STARTING", 409, "MachineStartingError", retry, "wait until the sandbox is ready";
    SnapshotInUse, "SNAPSHOT_IN_USE", 409, "SnapshotInUseError", final, "delete what uses the snapshot first";
    SnapshotNotReady, "SNAPSHOT_NOT_READY", 409, "SnapshotNotReadyError", retry, "wait until the snapshot is ready";
    NoSnapshotAvailable, "NO_SNAPSHOT_AVAILABLE", 409, "NoSnapshotAvailableError", final, "make a snapshot first";
    IdempotencyKeyReused, "idempotency_key_reused", 409, "MiosaError", final, "use a fresh key for another request";
    IdempotencyInProgress, "idempotency_in_progress", 409, "MiosaError", retry, "the first call still runs: ask again";
    DomainTaken, "domain_taken", 409, "MiosaError", final, "the domain belongs to another tenant";
    EnvTaken, "env_taken", 409, "MiosaError", final, "another secret of this scope has the variable";
    AlreadyCompleted, "already_completed", 409, "MiosaError", final, "nothing: it was done before";
    AlreadyReplayed, "already_replayed", 409, "MiosaError", final, "nothing: it was replayed before";
    ProcessExited, "process_exited", 409, "MiosaError", final, "the process is over";
    TooLarge, "TOO_LARGE", 413, "PayloadTooLargeError", final, "send less";
    UnsupportedMediaType, "unsupported_media_type", 415, "MiosaError", final, "send the content type the path takes";
    MisdirectedRequest, "misdirected_request", 421, "MiosaError", final, "send the request to the host it names";
    ValidationFailed, "VALIDATION_FAILED", 422, "ValidationError", final, "correct the fields that are named";
    InvalidScope, "invalid_scope", 422, "ValidationError", final, "ask for scopes that exist and that you have";
    InvalidPath, "INVALID_PATH", 422, "InvalidPathError", final, "pass an absolute path without ..";
    TtlExceedsPlan, "ttl_exceeds_plan", 422, "ValidationError", final, "ask for a shorter lifetime";
    AttributionImmutable, "attribution_immutable", 422, "ValidationError", final, "external ids are fixed at creation";
    ScopeFieldMissing, "scope_field_missing", 422, "ValidationError", final, "pass the id that the scope needs";
    InvalidEnvName, "invalid_env_name", 422, "ValidationError", final, "use letters, digits and underscores, no digit first";
    ValueRequired, "value_required", 422, "ValidationError", final, "send the value again to widen who may receive it";
    NarrowTheFilter, "narrow_the_filter", 422, "ValidationError", final, "filter or page: there are too many matches";
    TimeoutTooLong, "TIMEOUT_TOO_LONG", 422, "CommandTimeoutError", final, "run it as a process";
    RateLimitExceeded, "rate_limit_exceeded", 429, "RateLimitError", retry, "slow down; Retry-After says for how long";
    InternalError, "internal_error", 500, "ServerError", retry, "try again; if it stays, report the request id";
    NotImplemented, "not_implemented", 501, "ServerError", final, "this installation does not have it";
    UpstreamUnreachable, "upstream_unreachable", 502, "ServerError", retry, "start the server in the sandbox, or try again";
    OauthExchangeFailed, "oauth_exchange_failed", 502, "ServerError", final, "check the provider's settings and start again";
    TokenRefreshFailed, "TOKEN_REFRESH_FAILED", 502, "TokenRefreshFailedError", final, "connect the account again";
    NoReadyMachine, "no_ready_machine", 503, "NoReadyMachineError", final, "leave out fail_fast to wait for capacity";
    CapacityUnavailable, "capacity_unavailable", 503, "ServerError", retry, "try again later or add a host";
    SchedulerUnavailable, "scheduler_unavailable", 503, "ServerError", retry, "try again: the control plane is away";
    SandboxUnreachable, "sandbox_unreachable", 503, "ServerError", retry, "try again: the sandbox or its host does not answer";
    SandboxReadyTimeout, "sandbox_ready_timeout", 504, "ServerError", retry, "wait for the sandbox with its readiness stream";
    UpstreamTimeout, "upstream_timeout", 504, "ServerError", retry, "try again: no answer in time";
}

impl Code {
    pub const fn status(self) -> u16 {
        self.meaning().status
    }

    pub const fn is_retryable(self) -> bool {
        self.meaning().retryable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_golden() {
        let mut table = String::from("code | status | sdk class | retryable | what to do\n");
        for code in Code::ALL {
            let Meaning { text, status, sdk_class, retryable, advice } = code.meaning();
            table.push_str(&format!("{text} | {status} | {sdk_class} | {retryable} | {advice}\n"));
        }
        let golden = include_str!("../tests/golden/error_codes.txt");
        assert!(
            table == golden,
            "the codes differ from tests/golden/error_codes.txt; they are now:\n{table}"
        );
    }

    #[test]
    fn statuses_and_classes_agree() {
        for code in Code::ALL {
            let Meaning { text, status, sdk_class, retryable, advice } = code.meaning();
            assert!((400..600).contains(&status) && !advice.is_empty());
            // The SDK retries these by itself: they must not be the answer to something that stays wrong.
            if matches!(status, 429 | 500) {
                assert!(retryable, "{text}");
            }
            // 429 is always RateLimitError there, whatever the code.
            assert_eq!(status == 429, sdk_class == "RateLimitError", "{text}");
        }
    }

    #[test]
    fn classes_by_status_are_the_sdks() {
        for code in Code::ALL {
            let Meaning { text, status, sdk_class, .. } = code.meaning();
            // The spellings that the SDK maps by themselves; all others get the class of their status.
            let is_mapped = text.bytes().any(|byte| byte.is_ascii_uppercase()) || text == "no_ready_machine";
            let by_status = match status {
                400 | 422 => "ValidationError",
                401 => "AuthenticationError",
                402 => "InsufficientCreditsError",
                403 => "PermissionError",
                404 => "NotFoundError",
                413 => "PayloadTooLargeError",
                429 => "RateLimitError",
                500.. => "ServerError",
                _ => "MiosaError",
            };
            assert!(is_mapped || sdk_class == by_status, "{text}: {sdk_class}, by status {by_status}");
        }
    }
}
