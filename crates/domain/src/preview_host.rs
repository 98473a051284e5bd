//! Host names of previews, in both forms, read and written in this one place.
//!
//! * `{port}-{slug}.sandbox.{domain}`: the sandbox's own name, on a tenant's or the platform's domain (PRV-02);
//! * `{key}.preview.{domain}`: a short random key of 8 characters (PRV-03).
//!
//! Whether such a preview exists, and whose domain it is, is not decided here.

use std::fmt;

use crate::host_name::Host;
use crate::slug::Slug;

/// Characters of a preview's random key, each of `[a-z0-9]`.
pub const KEY_BYTES: usize = 8;

const SANDBOX_LABEL: &str = "sandbox";
const PREVIEW_LABEL: &str = "preview";

/// The random name of a preview that has no slug.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    pub fn parse(text: &str) -> Option<Self> {
        let is_allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
        (text.len() == KEY_BYTES && text.bytes().all(is_allowed)).then(|| Self(text.to_owned()))
    }

    /// A key from random bytes; about 41 bits are used.
    pub fn from_random(random: [u8; 8]) -> Self {
        const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let mut number = u64::from_le_bytes(random);
        let mut text = String::with_capacity(KEY_BYTES);
        for _ in 0..KEY_BYTES {
            text.push(char::from(ALPHABET[(number % 36) as usize]));
            number /= 36;
        }
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, out)
    }
}

/// What the first label says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    Port { port: u16, slug: Slug },
    Key(Key),
}

/// A preview's host name, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PreviewHost {
    pub target: Target,
    /// The preview domain: `opendesigns.ai`, `miosa.app`, `localhost`.
    pub domain: Host,
}

impl PreviewHost {
    /// `None` for every host that is not a preview's.
    pub fn find(host: &Host) -> Option<Self> {
        if !host.is_name() {
            return None;
        }
        let (label, rest) = host.as_str().split_once('.')?;
        let (kind, domain) = rest.split_once('.')?;
        let target = match kind {
            SANDBOX_LABEL => find_port_and_slug(label)?,
            PREVIEW_LABEL => Target::Key(Key::parse(label)?),
            _ => return None,
        };
        Some(Self { target, domain: Host::parse(domain).ok().filter(Host::is_name)? })
    }
}

/// The port is the digits up to the first hyphen; what follows is the slug, digits included (`3000-3000-foo`).
fn find_port_and_slug(label: &str) -> Option<Target> {
    let (digits, slug) = label.split_once('-')?;
    let is_canonical = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    let port = digits.parse().ok().filter(|_| is_canonical)?;
    Some(Target::Port { port, slug: Slug::parse(slug).ok()? })
}

impl fmt::Display for PreviewHost {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Port { port, slug } => write!(out, "{port}-{slug}.{SANDBOX_LABEL}.{}", self.domain),
            Target::Key(key) => write!(out, "{}.{PREVIEW_LABEL}.{}", key.0, self.domain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn find(text: &str) -> Option<PreviewHost> {
        PreviewHost::find(&Host::parse(text).ok()?)
    }

    fn port_and_slug(text: &str) -> Option<(u16, String)> {
        match find(text)?.target {
            Target::Port { port, slug } => Some((port, slug.as_str().to_owned())),
            Target::Key(_) => None,
        }
    }

    #[test]
    fn the_seed_forms() {
        let named = find("3000-brand-refresh-2026.sandbox.opendesigns.ai").unwrap();
        assert_eq!(named.domain.as_str(), "opendesigns.ai");
        assert_eq!(named.to_string(), "3000-brand-refresh-2026.sandbox.opendesigns.ai");
        let keyed = find("abc12345.preview.miosa.app").unwrap();
        assert_eq!(keyed.target, Target::Key(Key::parse("abc12345").unwrap()));
        assert!(find("8080-x.sandbox.localhost").is_some());
    }

    #[test]
    fn dec_08_traps() {
        for (text, port, slug) in [
            ("3000-3000-foo.sandbox.a.b", 3000, "3000-foo"),
            ("1-0.sandbox.a.b", 1, "0"),
            ("65535-a--b.sandbox.a.b", 65535, "a--b"),
            ("3000-FOO.SANDBOX.A.B.", 3000, "foo"),
        ] {
            assert_eq!(port_and_slug(text), Some((port, slug.to_owned())), "{text}");
        }
        let label = format!("65535-{}", "a".repeat(57));
        assert_eq!(label.len(), 63);
        assert!(find(&format!("{label}.sandbox.a.b")).is_some());
        for text in [
            "0-foo.sandbox.a.b",
            "65536-foo.sandbox.a.b",
            "080-foo.sandbox.a.b",
            "+80-foo.sandbox.a.b",
            "foo.sandbox.a.b",
            "3000.sandbox.a.b",
            "3000-.sandbox.a.b",
            "-foo.sandbox.a.b",
            "3000-xn--foo.sandbox.a.b",
            "3000-www.sandbox.a.b",
            "3000-fo_o.sandbox.a.b",
            "3000-foo.sandbox",
            "3000-foo.sandbo.a.b",
            "x.3000-foo.sandbox.a.b",
            "abc1234.preview.a.b",
            "abc123456.preview.a.b",
            "abc_1234.preview.a.b",
            "abc12345.preview",
            "127.0.0.1",
            "::1",
        ] {
            assert_eq!(find(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(port in 1u16.., slug in "[a-z0-9]([a-z0-9-]{0,55}[a-z0-9])?", domain in "[a-z]{1,9}(\\.[a-z]{1,9}){0,2}") {
            prop_assume!(Slug::parse(&slug).is_ok());
            let target = Target::Port { port, slug: Slug::parse(&slug).unwrap() };
            let host = PreviewHost { target, domain: Host::parse(&domain).unwrap() };
            prop_assert_eq!(find(&host.to_string()), Some(host));
        }

        #[test]
        fn what_is_read_is_written_the_same(text in "[a-z0-9-]{1,12}\\.(sandbox|preview)\\.[a-z]{1,5}\\.[a-z]{2}") {
            if let Some(host) = find(&text) {
                prop_assert_eq!(host.to_string(), text);
            }
        }

        #[test]
        fn every_random_key_is_a_key(random: [u8; 8]) {
            let key = Key::from_random(random);
            prop_assert_eq!(Key::parse(key.as_str()), Some(key));
        }
    }
}
