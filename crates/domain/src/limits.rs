//! Limits every component must agree on.

/// The reserved guest port of the guest RPC.
const GUEST_RPC_PORT: u16 = 1021;

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
const EXCERPT_CHARS_MAX: usize = 64;

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

/// The beginning of what somebody sent, for saying what is wrong with it: an answer must not be as long as a request.
pub fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT_CHARS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_short_and_shows_that_it_is_one() {
        assert_eq!(excerpt("short"), "short");
        assert_eq!(excerpt(&"é".repeat(64)), "é".repeat(64));
        assert_eq!(excerpt(&"é".repeat(65)), format!("{}…", "é".repeat(64)));
    }

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
