//! What may be stored: names, values, hosts, slots. Pure.

use roost_domain::host_name::{Host, Pattern};
use roost_domain::limits::excerpt;

use super::{Error, Plaintext};

const NAME_BYTES_MAX: usize = 128;
const ENV_BYTES_MAX: usize = 128;
/// More does not fit a header.
const VALUE_BYTES_MAX: usize = 8 * 1024;
const HOSTS_MAX: usize = 64;
const SLOTS_MAX: usize = 16;
const SLOT_BYTES_MAX: usize = 64;
/// Headers whose meaning a value must never change.
const SLOTS_REFUSED: &[&str] = &[
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "upgrade",
    "te",
    "trailer",
    "expect",
    "user-agent",
    "referer",
    "origin",
    "accept",
    "accept-encoding",
    "accept-language",
    "range",
    "if-range",
    "via",
    "forwarded",
];

fn invalid(field: &'static str, problem: impl Into<String>) -> Error {
    Error::Invalid { field, problem: problem.into() }
}

pub(super) fn name(name: &str) -> Result<(), Error> {
    if name.trim().is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(invalid(
            "name",
            format!("must be 1 to {NAME_BYTES_MAX} bytes without control characters"),
        ));
    }
    Ok(())
}

/// A name programs can look up: letters, digits and underscores, not beginning with a digit.
pub(super) fn env(env: &str) -> Result<(), Error> {
    let mut bytes = env.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if first && rest && env.len() <= ENV_BYTES_MAX {
        Ok(())
    } else {
        Err(Error::InvalidEnvName { env: env.chars().take(ENV_BYTES_MAX).collect() })
    }
}

/// Only what can stand in a header as it is. Says nothing of the value itself.
pub(super) fn value(value: &Plaintext) -> Result<(), Error> {
    let bytes = value.expose();
    if bytes.is_empty() || bytes.len() > VALUE_BYTES_MAX {
        return Err(invalid("value", format!("must be 1 to {VALUE_BYTES_MAX} bytes")));
    }
    let is_edge_space = bytes.first() == Some(&b' ') || bytes.last() == Some(&b' ');
    if is_edge_space || !bytes.iter().all(|byte| (0x20..0x7f).contains(byte)) {
        return Err(invalid("value", "must be visible ASCII without line breaks or surrounding spaces"));
    }
    Ok(())
}

/// Host patterns in their canonical spelling, sorted, each once.
pub(super) fn hosts(hosts: &[String]) -> Result<Vec<String>, Error> {
    if hosts.len() > HOSTS_MAX {
        return Err(invalid("allowed_hosts", format!("may have at most {HOSTS_MAX} entries")));
    }
    let mut canonical = Vec::new();
    for host in hosts {
        let pattern = Pattern::parse(host)
            .map_err(|error| invalid("allowed_hosts", format!("{:?}: {error}", excerpt(host))))?;
        canonical.push(pattern.to_string());
    }
    canonical.sort();
    canonical.dedup();
    Ok(canonical)
}

/// Header names in lower case, sorted, each once.
pub(super) fn slots(slots: &[String]) -> Result<Vec<String>, Error> {
    if slots.len() > SLOTS_MAX {
        return Err(invalid("slots", format!("may have at most {SLOTS_MAX} entries")));
    }
    let mut canonical = Vec::new();
    for slot in slots {
        let name = slot.to_ascii_lowercase();
        let is_token = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        let is_reserved = SLOTS_REFUSED.contains(&name.as_str())
            || ["x-forwarded-", "sec-", "proxy-", ":"].iter().any(|prefix| name.starts_with(prefix));
        if name.is_empty() || name.len() > SLOT_BYTES_MAX || !is_token || is_reserved {
            return Err(invalid(
                "slots",
                format!("{:?} is not a header that may carry a credential", excerpt(slot)),
            ));
        }
        canonical.push(name);
    }
    canonical.sort();
    canonical.dedup();
    Ok(canonical)
}

/// True if every host that `new` lets in was let in by `old`. No hosts at all let nobody in.
pub(super) fn is_narrower(new: &[String], old: &[String]) -> bool {
    new.iter().all(|new| old.iter().any(|old| covers(old, new)))
}

fn covers(old: &str, new: &str) -> bool {
    let (Ok(old), Ok(new)) = (Pattern::parse(old), Pattern::parse(new)) else { return false };
    match (&old, &new) {
        (Pattern::Exact(old), Pattern::Exact(new)) => old == new,
        (Pattern::Below(_), Pattern::Exact(new)) => old.matches(new),
        (Pattern::Below(old_suffix), Pattern::Below(new_suffix)) => {
            old_suffix == new_suffix || is_below(&old, new_suffix)
        }
        (Pattern::Exact(_), Pattern::Below(_)) => false,
    }
}

fn is_below(old: &Pattern, suffix: &Host) -> bool {
    old.matches(suffix)
}

/// How a stored value is shown: enough to recognise it by, never enough to guess it.
pub(super) fn mask(value: &Plaintext) -> String {
    const SHOWN: usize = 4;
    const SECRET_AT_LEAST: usize = 16;
    let bytes = value.expose();
    if bytes.len() < SHOWN + SECRET_AT_LEAST {
        return "••••".to_owned();
    }
    format!("••••{}", String::from_utf8_lossy(&bytes[bytes.len() - SHOWN..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|item| (*item).to_owned()).collect()
    }

    #[test]
    fn narrowing_lets_nobody_new_in() {
        for (new, old, narrower) in [
            (&[][..], &["a.example.com"][..], true),
            (&["a.example.com"], &["a.example.com"], true),
            (&["a.example.com"], &["*.example.com"], true),
            (&["*.a.example.com"], &["*.example.com"], true),
            (&["*.example.com"], &["*.example.com"], true),
            (&["example.com"], &["*.example.com"], false),
            (&["*.example.com"], &["a.example.com"], false),
            (&["*.example.com"], &["*.a.example.com"], false),
            (&["evilexample.com"], &["*.example.com"], false),
            (&["a.example.com", "b.test.com"], &["*.example.com"], false),
            (&["a.example.com"], &[], false),
        ] {
            assert_eq!(is_narrower(&list(new), &list(old)), narrower, "{new:?} within {old:?}");
        }
    }

    #[test]
    fn values_that_cannot_stand_in_a_header_are_refused() {
        for bad in ["", " x", "x ", "a\nb", "a\rb", "a\0b", "é", "\u{7f}"] {
            assert!(value(&bad.into()).is_err(), "{bad:?}");
        }
        assert!(value(&"sk-live 100%\"quoted\"".into()).is_ok());
        assert!(value(&Plaintext::new(vec![b'x'; VALUE_BYTES_MAX + 1])).is_err());
    }

    #[test]
    fn a_mask_shows_at_most_four_characters_of_a_long_value() {
        assert_eq!(mask(&"sk-live-0123456789abcdef".into()), "••••cdef");
        assert_eq!(mask(&"hunter2hunter2".into()), "••••");
    }

    #[test]
    fn names_of_variables_and_headers_are_closed_sets() {
        for good in ["OPENAI_API_KEY", "_x", "a1"] {
            assert!(env(good).is_ok(), "{good}");
        }
        for bad in ["", "1A", "A-B", "A B", "A=B", "Ä"] {
            assert!(env(bad).is_err(), "{bad}");
        }
        assert_eq!(slots(&list(&["X-Key", "x-key"])).unwrap(), ["x-key"]);
        for bad in ["", "Host", "X-Forwarded-For", "Sec-Fetch", "a b", "a:b", "Transfer-Encoding"] {
            assert!(slots(&list(&[bad])).is_err(), "{bad}");
        }
        assert_eq!(hosts(&list(&["API.example.com.", "api.example.com"])).unwrap(), ["api.example.com"]);
        assert!(hosts(&list(&["*.com"])).is_err());
    }
}
