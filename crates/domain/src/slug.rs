//! Slugs: the part of a preview's host name that names the sandbox.
//!
//! `{port}-{slug}` is one DNS label, so a slug has at most 57 characters (63 − 5 digits − 1 hyphen).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

pub const SLUG_BYTES_MAX: usize = 57;

/// What a derived slug is when nothing of the name is left.
const FALLBACK: &str = "sandbox";

/// Slugs that would look like the platform's own hosts.
const RESERVED: &[&str] = &[
    "admin",
    "api",
    "app",
    "auth",
    "billing",
    "dashboard",
    "docs",
    "edge",
    "ftp",
    "localhost",
    "login",
    "mail",
    "mta-sts",
    "ns1",
    "ns2",
    "oauth",
    "preview",
    "proxy",
    "root",
    "smtp",
    "sso",
    "static",
    "status",
    "support",
    "system",
    "wpad",
    "www",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "a slug has 1 to {SLUG_BYTES_MAX} letters, digits and hyphens in lower case, no hyphen at its ends"
    )]
    Form,
    #[error("this slug is reserved")]
    Reserved,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Slug(String);

impl Slug {
    pub fn parse(text: &str) -> Result<Self, Error> {
        let is_edge = |byte: Option<u8>| byte.is_some_and(|byte| byte != b'-');
        let is_allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let has_form = text.len() <= SLUG_BYTES_MAX
            && text.bytes().all(is_allowed)
            && is_edge(text.bytes().next())
            && is_edge(text.bytes().next_back());
        if !has_form {
            return Err(Error::Form);
        }
        // An A-label would show as other characters than it is compared by.
        if text.starts_with("xn--") || RESERVED.contains(&text) {
            return Err(Error::Reserved);
        }
        Ok(Self(text.to_owned()))
    }

    /// The slug of a display name. Always one: what cannot be kept is dropped.
    pub fn derive(name: &str) -> Self {
        let mut text = String::new();
        for char in name.chars().flat_map(char::to_lowercase) {
            if char.is_ascii_alphanumeric() {
                text.push(char);
            } else if !text.is_empty() && !text.ends_with('-') {
                text.push('-');
            }
            if text.len() == SLUG_BYTES_MAX {
                break;
            }
        }
        let text = text.trim_end_matches('-');
        let text = if text.is_empty() { FALLBACK } else { text };
        Self::parse(text).unwrap_or_else(|_| Self(FALLBACK.to_owned()).with_suffix(text))
    }

    /// This slug with `-suffix`, shortened to fit: for conflicts of derived slugs. The suffix is itself a slug
    /// or is dropped.
    #[must_use]
    pub fn with_suffix(&self, suffix: &str) -> Self {
        let keep = SLUG_BYTES_MAX.saturating_sub(suffix.len() + 1).min(self.0.len());
        let head = self.0[..keep].trim_end_matches('-');
        Self::parse(&format!("{head}-{suffix}")).unwrap_or_else(|_| self.clone())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Slug {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl<'de> Deserialize<'de> for Slug {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for Slug {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms() {
        let longest = "a".repeat(57);
        for text in ["a", "brand-refresh-2026", "3000-foo", "0", "a--b", longest.as_str()] {
            assert_eq!(Slug::parse(text).unwrap().as_str(), text);
        }
        let too_long = "a".repeat(58);
        for text in ["", "-", "-a", "a-", "A", "a_b", "a.b", "\u{e4}", "a b", too_long.as_str()] {
            assert_eq!(Slug::parse(text), Err(Error::Form), "{text}");
        }
        for text in ["www", "api", "xn--bcher-kva", "xn--"] {
            assert!(Slug::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn derived_from_names() {
        for (name, slug) in [
            ("Brand Refresh 2026", "brand-refresh-2026"),
            ("  --Hello,  World!--  ", "hello-world"),
            ("\u{1f426}", "sandbox"),
            ("", "sandbox"),
            ("WWW", "sandbox-www"),
            ("xn--a", "xn-a"),
            ("na\u{ef}ve", "na-ve"),
        ] {
            assert_eq!(Slug::derive(name).as_str(), slug, "{name}");
        }
        let long = Slug::derive(&"ab ".repeat(40));
        assert!(long.as_str().len() <= SLUG_BYTES_MAX);
        assert_eq!(long.with_suffix("x7k2").as_str().len(), SLUG_BYTES_MAX.min(long.as_str().len() + 5));
        assert!(long.with_suffix("x7k2").as_str().ends_with("-x7k2"));
    }

    proptest! {
        #[test]
        fn every_name_has_a_slug(name in ".{0,80}", suffix in "[a-z0-9]{4,8}") {
            let slug = Slug::derive(&name);
            prop_assert_eq!(Slug::parse(slug.as_str()), Ok(slug.clone()));
            let other = slug.with_suffix(&suffix);
            prop_assert!(other.as_str().ends_with(&suffix) && Slug::parse(other.as_str()).is_ok());
        }
    }
}
