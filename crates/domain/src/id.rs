//! Typed identifiers: a prefix that names the kind and a lower-case ULID body.
//!
//! Owns how an id is written and read. Makes none: this crate has no clock and no randomness, so fresh
//! ids come from the daemon's `ids` module. The body is `[0-9a-z]{26}`, so it fits a DNS label, a cgroup
//! name and a network namespace name as it stands.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use ulid::Ulid;

/// Why a text is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text starts with another prefix, or with none.
    #[error("an id of kind {kind} starts with \"{prefix}\"")]
    Prefix { kind: &'static str, prefix: &'static str },
    /// What follows the prefix is not a canonical lower-case ULID.
    #[error("an id of kind {kind} ends in a lower-case ULID of {ULID_TEXT_BYTES} characters")]
    Body { kind: &'static str },
}

/// Length of the text of every ULID.
pub const ULID_TEXT_BYTES: usize = ulid::ULID_LEN;

/// What every typed id can do, for code that is generic over the kind (making fresh ids, store columns).
pub trait Id: Copy + Ord + fmt::Display {
    /// Name of the kind in errors, e.g. `sandbox`.
    const KIND: &'static str;
    /// Text before the body, e.g. `sbx_`.
    const PREFIX: &'static str;
    fn from_ulid(ulid: Ulid) -> Self;
    fn ulid(&self) -> Ulid;
}

/// Writes a ULID as its lower-case text.
pub fn ulid_text(ulid: Ulid) -> String {
    let mut buffer = [0u8; ULID_TEXT_BYTES];
    let text = ulid.array_to_str(&mut buffer);
    text.make_ascii_lowercase();
    text.to_owned()
}

/// Reads a canonical lower-case ULID: the only text that [`ulid_text`] writes for it.
pub fn parse_ulid(text: &str) -> Option<Ulid> {
    let ulid = Ulid::from_string(text).ok()?;
    (ulid_text(ulid) == text).then_some(ulid)
}

fn parse<T: Id>(text: &str) -> Result<T, Error> {
    let body = text.strip_prefix(T::PREFIX).ok_or(Error::Prefix { kind: T::KIND, prefix: T::PREFIX })?;
    parse_ulid(body).map(T::from_ulid).ok_or(Error::Body { kind: T::KIND })
}

fn serialize<T: Id, S: Serializer>(id: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn deserialize<'de, T: Id, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    parse(&text).map_err(serde::de::Error::custom)
}

macro_rules! typed_ids {
    ($($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Ulid);

        impl $name {
            /// Text before the body.
            pub const PREFIX: &'static str = $prefix;

            pub const fn from_ulid(ulid: Ulid) -> Self {
                Self(ulid)
            }

            pub const fn ulid(&self) -> Ulid {
                self.0
            }

            /// The body alone, as host names carry it.
            pub fn ulid_text(&self) -> String {
                ulid_text(self.0)
            }

            pub fn parse(text: &str) -> Result<Self, Error> {
                parse(text)
            }
        }

        impl Id for $name {
            const KIND: &'static str = $kind;
            const PREFIX: &'static str = $prefix;

            fn from_ulid(ulid: Ulid) -> Self {
                Self(ulid)
            }

            fn ulid(&self) -> Ulid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str($prefix)?;
                out.write_str(&ulid_text(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, out)
            }
        }

        impl std::str::FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                parse(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = Error;

            fn try_from(text: &str) -> Result<Self, Error> {
                parse(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serialize(self, serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserialize(deserializer)
            }
        }
    )+

        /// Every kind with its prefix, for the test that no prefix begins another.
        #[cfg(test)]
        const KINDS: &[(&str, &str)] = &[$(($kind, $prefix)),+];
    };
}

typed_ids! {
    /// What a tenant has.
    SandboxId, "sandbox", "sbx_";
    /// One VMM launch.
    ExecutionId, "execution", "exe_";
    /// A published port of a sandbox.
    PreviewId, "preview", "preview_";
    /// A public share link of a preview.
    ShareId, "share", "shr_";
    /// A row of the vault, not its value.
    SecretId, "secret", "sec_";
    /// A secret bound to one sandbox.
    BindingId, "binding", "bind_";
    /// A row of an event or audit stream.
    EventId, "event", "evt_";
    /// An API key's row, not the key.
    KeyId, "api key", "key_";
    /// A machine that runs an agent.
    HostId, "host", "host_";
    TenantId, "tenant", "ten_";
    SnapshotId, "snapshot", "snap_";
    /// One call to the API, in headers and logs.
    RequestId, "request", "req_";
    /// A webhook endpoint.
    WebhookId, "webhook", "whk_";
    /// One event on its way to one webhook endpoint.
    DeliveryId, "delivery", "dlv_";
    /// A pending OAuth flow.
    FlowId, "oauth flow", "flow_";
    /// A rule of the egress allow list.
    RuleId, "egress rule", "rule_";
    PolicyId, "egress policy", "pol_";
    DeploymentId, "deployment", "dep_";
    /// A batch of creates.
    BatchId, "batch", "batch_";
    /// A bulk operation over many sandboxes.
    JobId, "job", "job_";
    /// A terminal session.
    TerminalId, "terminal", "term_";
    /// A browser token's row (not the token).
    TokenId, "token", "tok_";
    /// A custom or preview domain.
    DomainId, "domain", "dom_";
    UserId, "user", "usr_";
    /// A one-time permission for a host to join.
    JoinId, "join token", "join_";
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_of_a_known_id() {
        let id = SandboxId::from_ulid(Ulid::from_string("01D39ZY06FGSCTVN4T2V9PKHFZ").unwrap());
        assert_eq!(id.to_string(), "sbx_01d39zy06fgsctvn4t2v9pkhfz");
        assert_eq!(format!("{id:?}"), "sbx_01d39zy06fgsctvn4t2v9pkhfz");
        assert_eq!(id.ulid_text(), "01d39zy06fgsctvn4t2v9pkhfz");
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"sbx_01d39zy06fgsctvn4t2v9pkhfz\"");
        assert_eq!(serde_json::from_str::<SandboxId>("\"sbx_01d39zy06fgsctvn4t2v9pkhfz\"").unwrap(), id);
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let prefix = Error::Prefix { kind: "sandbox", prefix: "sbx_" };
        let body = Error::Body { kind: "sandbox" };
        for (text, error) in [
            ("", &prefix),
            ("exe_01d39zy06fgsctvn4t2v9pkhfz", &prefix),
            ("SBX_01d39zy06fgsctvn4t2v9pkhfz", &prefix),
            ("sbx_", &body),
            ("sbx_01D39ZY06FGSCTVN4T2V9PKHFZ", &body),
            ("sbx_01d39zy06fgsctvn4t2v9pkhf", &body),
            ("sbx_01d39zy06fgsctvn4t2v9pkhfzz", &body),
            ("sbx_o1d39zy06fgsctvn4t2v9pkhfz", &body),
            ("sbx_81d39zy06fgsctvn4t2v9pkhfz", &body),
            ("sbx_01d39zy06fgsctvn4t2v9pkhf\u{e9}", &body),
        ] {
            assert_eq!(SandboxId::parse(text).as_ref(), Err(error), "{text}");
        }
    }

    #[test]
    fn no_prefix_begins_another() {
        for (index, (_, one)) in KINDS.iter().enumerate() {
            for (_, other) in &KINDS[index + 1..] {
                assert!(!one.starts_with(other) && !other.starts_with(one), "{one} {other}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_id_survives_its_text(bits: u128) {
            let id = ExecutionId::from_ulid(Ulid(bits));
            prop_assert_eq!(ExecutionId::parse(&id.to_string()), Ok(id));
        }

        #[test]
        fn order_is_that_of_the_text(one: u128, other: u128) {
            let (one, other) = (HostId::from_ulid(Ulid(one)), HostId::from_ulid(Ulid(other)));
            prop_assert_eq!(one.cmp(&other), one.to_string().cmp(&other.to_string()));
        }

        #[test]
        fn what_is_accepted_is_canonical(text in "sbx_[0-9a-zA-Z]{26}") {
            if let Ok(id) = SandboxId::parse(&text) {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
