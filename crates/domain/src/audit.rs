//! The two records of one outbound call, as egress writes them and the scheduler stores them.
//!
//! Owns the shape of a line of an audit segment: JSON, one record per line. An [`Intent`] is written before
//! anything leaves the host, a [`Completion`] when the outcome is known; both carry the same `event_id` and
//! make one row. An intent whose process died gets a completion with the reason [`reason::ABORTED`].
//! Carries no tenant and no external ids: the scheduler fills those from its own row of the execution.
//! Text that came from a guest goes through [`recorded_text`], so it cannot break a line or a terminal.

use serde::{Deserialize, Serialize};

/// Longest path that is recorded; the rest is cut.
pub const MAX_PATH_BYTES: usize = 2048;
/// Longest method that is recorded.
pub const MAX_METHOD_BYTES: usize = 32;
/// Longest host that is recorded.
pub const MAX_HOST_BYTES: usize = 253;
/// Longest error text that is recorded.
pub const MAX_DETAIL_BYTES: usize = 512;
/// Longest line a record may take, with its line end.
pub const MAX_RECORD_BYTES: usize = 32 * 1024;

/// One line of a segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    Intent(Intent),
    Completion(Completion),
}

/// What a guest is about to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// `evt_…`, the same in the completion.
    pub event_id: String,
    pub time_us: i64,
    /// `exe_…`: the identity of the socket the call arrived on.
    pub execution: String,
    /// `sbx_…` as the agent attached it; the scheduler checks it against its own row.
    pub sandbox: String,
    pub scheme: Scheme,
    /// The name, or the literal address if the guest dialled one that it did not get from a name.
    pub host: String,
    pub port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Without the query, as the guest sent it: before any substitution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// One entry for every placeholder seen in the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretUse>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    pub event_id: String,
    pub time_us: i64,
    pub action: Action,
    /// Which rule of the proxy ended the call, one of [`reason`]; none for a call that went through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
    pub duration_us: u64,
    /// From the upstream to the guest, bodies only for HTTP.
    pub bytes_in: u64,
    /// From the guest to the upstream, bodies only for HTTP.
    pub bytes_out: u64,
    /// The address that was dialled; none if nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What went wrong, for people. Never holds bytes of a response or of a credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What was spoken. `tls` is a connection passed through uninspected, `tcp` anything that is neither TLS nor
/// HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    Http,
    Https,
    Ws,
    Wss,
    Tls,
    Tcp,
    Dns,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// An HTTP response came back, whatever its status.
    Allow,
    /// The proxy refused; nothing of the request left the host.
    Reject,
    /// It was permitted and failed on the way, or the proxy died.
    Error,
    /// The guest went away first.
    ClientCancel,
    /// Bytes were relayed uninspected, or a WebSocket was opened.
    Tunnel,
}

/// One placeholder of a request and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretUse {
    /// The logical key (`OPENAI_API_KEY`); empty when the placeholder did not resolve.
    pub env: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// `binding`, `user`, `external_user`, `external_workspace`, `workspace`, `tenant` or `none`.
    pub resolved_by: String,
    /// Where it stood: a header's lower-case name, `path` or `query`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Whether the value was sent in its place.
    pub swapped: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Values of `rejected_by` and of the reason of a secret: a closed list, so that filters and tests can name
/// them.
pub mod reason {
    /// The process died between intent and completion.
    pub const ABORTED: &str = "aborted";
    /// The execution was detached while the call ran.
    pub const DETACHED: &str = "detached";
    /// A rule of a policy.
    pub const POLICY: &str = "policy";
    /// The address is one that no guest may reach (loopback, private, metadata, …).
    pub const DENIED_ADDRESS: &str = "denied_address";
    /// An address of 198.18.0.0/15 that was never given for a name.
    pub const UNKNOWN_ADDRESS: &str = "unknown_address";
    /// A limit of the execution (names, connections, rate).
    pub const LIMIT: &str = "limit";
    /// The name in the TLS greeting is not the name that was looked up.
    pub const SNI_MISMATCH: &str = "sni_mismatch";
    /// The greeting or the request is not valid.
    pub const MALFORMED: &str = "malformed";
    /// The request names another host or port than the connection.
    pub const AUTHORITY_MISMATCH: &str = "authority_mismatch";
    /// A method that the proxy does not carry (CONNECT, TRACE).
    pub const METHOD: &str = "method";
    /// A placeholder towards a host its secret is not bound to.
    pub const BLOCKED_HOST: &str = "blocked_host";
    /// A placeholder in a place where values are never put.
    pub const BLOCKED_LOCATION: &str = "blocked_location";
    /// A placeholder that belongs to another sandbox.
    pub const FOREIGN_PLACEHOLDER: &str = "foreign_placeholder";
    /// More placeholders than one request may carry.
    pub const OCCURRENCES: &str = "occurrences";
    /// A placeholder on a connection without TLS.
    pub const PLAINTEXT: &str = "plaintext";
    /// The secret is bound to no host.
    pub const UNBOUND: &str = "unbound";
    /// The stored value cannot stand in a header.
    pub const INVALID_VALUE: &str = "invalid_value";
    /// Credentials cannot be asked for: the scheduler is away and the lease is over.
    pub const SCHEDULER_UNAVAILABLE: &str = "scheduler_unavailable";
    /// The name has no address, or none that answers.
    pub const RESOLVE: &str = "resolve";
    pub const CONNECT: &str = "connect";
    pub const UPSTREAM_TLS: &str = "upstream_tls";
    pub const UPSTREAM_PROTOCOL: &str = "upstream_protocol";
    /// The answer to a request with a credential came in an encoding that cannot be searched for it.
    pub const UNREADABLE_RESPONSE: &str = "unreadable_response";
    pub const TIMEOUT: &str = "timeout";
    /// The guest's side of TLS failed; most often its trust store lacks the egress root.
    pub const GUEST_TLS: &str = "guest_tls";
    /// No certificate authority is loaded yet, so nothing can be inspected.
    pub const NO_AUTHORITY: &str = "no_authority";
}

impl Record {
    /// The id that joins the two records of a row.
    pub fn event_id(&self) -> &str {
        match self {
            Self::Intent(intent) => &intent.event_id,
            Self::Completion(completion) => &completion.event_id,
        }
    }
}

/// A text from outside as records carry it: at most `max_bytes` of it, control characters replaced by `?`.
pub fn recorded_text(text: &str, max_bytes: usize) -> String {
    text[..text.floor_char_boundary(max_bytes)].replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn intent(host: &str, path: &str) -> Record {
        Record::Intent(Intent {
            event_id: "evt_01d39zy06fgsctvn4t2v9pkhfz".into(),
            time_us: 1,
            execution: "exe_01d39zy06fgsctvn4t2v9pkhfz".into(),
            sandbox: "sbx_01d39zy06fgsctvn4t2v9pkhfz".into(),
            scheme: Scheme::Https,
            host: host.into(),
            port: 443,
            method: Some("GET".into()),
            path: Some(path.into()),
            secrets: Vec::new(),
        })
    }

    #[test]
    fn a_record_names_its_kind() {
        let line = serde_json::to_string(&intent("api.example.com", "/v1")).unwrap();
        assert!(line.starts_with(r#"{"record":"intent","event_id":"evt_"#), "{line}");
        assert!(line.contains(r#""scheme":"https""#), "{line}");
    }

    proptest! {
        #[test]
        fn f1_whatever_a_guest_sends_stays_one_line(host in ".*", path in "\\PC*[\r\n\u{1b}\"]\\PC*") {
            let record = intent(&recorded_text(&host, MAX_HOST_BYTES), &recorded_text(&path, MAX_PATH_BYTES));
            let line = serde_json::to_string(&record).unwrap();
            prop_assert!(!line.chars().any(char::is_control));
            prop_assert!(line.len() < MAX_RECORD_BYTES);
            prop_assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
        }
    }
}
