//! Limits every component must agree on, and ports and addresses that are the same in every sandbox.

use std::net::Ipv4Addr;

/// The reserved guest port of the guest RPC: previews and `expose` refuse it.
pub const GUEST_RPC_PORT: u16 = 1021;

/// The guest's address, the same in every sandbox.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The host's end of the guest's network.
pub const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub const GUEST_MAC: &str = "02:00:00:00:00:02";
pub const GATEWAY_MAC: &str = "02:00:00:00:00:01";

/// Most names one lineage may look up; each keeps its synthetic address for good.
pub const SYNTHETIC_NAMES_MAX: u32 = 4096;

/// Longest display name.
pub const NAME_CHARS_MAX: usize = 128;
/// Most tags of a sandbox, and the longest.
pub const TAGS_MAX: usize = 32;
pub const TAG_BYTES_MAX: usize = 128;
/// Largest metadata of a sandbox, as JSON.
pub const METADATA_BYTES_MAX: usize = 16 * 1024;
/// Largest environment of a sandbox, names and values.
pub const ENVIRONMENT_BYTES_MAX: usize = 64 * 1024;
pub const ENVIRONMENT_NAME_BYTES_MAX: usize = 128;

/// Longest secret value: it has to fit a header.
pub const SECRET_VALUE_BYTES_MAX: usize = 8 * 1024;
/// Shorter values cannot be found reliably when they are echoed.
pub const SECRET_SCRUBBED_BYTES_MIN: usize = 12;
pub const SECRET_HOSTS_MAX: usize = 32;
pub const SECRET_SLOTS_MAX: usize = 16;

/// Most rows an unpaged list returns.
pub const LIST_ROWS_MAX: usize = 10_000;

/// How long after a revocation nothing uses what was revoked, unless configured otherwise.
pub const REVOCATION_BOUND_S_DEFAULT: u32 = 30;
pub const REVOCATION_BOUND_S_RANGE: std::ops::RangeInclusive<u32> = 10..=600;
/// Leases are refused when the clocks of host and scheduler differ by more.
pub const CLOCK_SKEW_S_MAX: i64 = 30;

/// Whether a guest port may be published.
pub const fn is_publishable_port(port: u16) -> bool {
    port != 0 && port != GUEST_RPC_PORT
}

/// Whether a text can be the name of an environment variable everywhere.
pub fn is_environment_name(text: &str) -> bool {
    let starts_well = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    starts_well && text.len() <= ENVIRONMENT_NAME_BYTES_MAX && text.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_names() {
        for text in ["A", "_", "OPENAI_API_KEY", "a1"] {
            assert!(is_environment_name(text), "{text}");
        }
        let long = "A".repeat(129);
        for text in ["", "1A", "A-B", "A=B", "A B", "\u{c4}", "A\0", long.as_str()] {
            assert!(!is_environment_name(text), "{text}");
        }
    }

    #[test]
    fn the_guest_rpc_port_is_never_published() {
        assert!(is_publishable_port(3000) && !is_publishable_port(0) && !is_publishable_port(GUEST_RPC_PORT));
    }
}
