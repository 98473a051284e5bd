//! Host names and patterns over them: parsed once, then only the parsed value is compared and dialled.
//!
//! A [`Host`] is either a name of letters, digits, hyphens and underscores (at most 253 characters, lower case,
//! internationalised names as A-labels, no trailing dot) or an IP address. What looks like an address to some
//! resolver and not to another (`127.1`, `0x7f.1`, `2130706433`) is neither. Resolves nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest name, after normalisation.
pub const NAME_BYTES_MAX: usize = 253;
/// Longest label of a name.
pub const LABEL_BYTES_MAX: usize = 63;
/// Longest text that is looked at; a longer one cannot become a name.
const TEXT_BYTES_MAX: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a host name is empty")]
    Empty,
    #[error("a host name is longer than {NAME_BYTES_MAX} characters")]
    TooLong,
    #[error("a label of a host name is empty or longer than {LABEL_BYTES_MAX} characters")]
    Label,
    #[error("a host name has a character other than letters, digits, hyphen and underscore")]
    Character,
    #[error("an internationalised host name is not valid")]
    Idna,
    #[error("a host name looks like an address but is none")]
    Ambiguous,
    #[error("a port is not a number from 1 to 65535")]
    Port,
    #[error("a host pattern is a name, an address or \"*.\" and a name of at least two labels")]
    Pattern,
}

/// A name or an address that something may be dialled at.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host {
    text: String,
    address: Option<IpAddr>,
}

impl Host {
    /// Reads a host as it stands in a URL, a `Host` header, a TLS greeting or a DNS question: no port, IPv6
    /// with or without brackets.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Empty);
        }
        if text.len() > TEXT_BYTES_MAX {
            return Err(Error::TooLong);
        }
        if text.contains([':', '[', ']']) {
            return parse_ipv6(text);
        }
        let ascii = to_ascii(text)?;
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        check_name(name)?;
        if ends_in_number(name) {
            let address = Ipv4Addr::from_str(name).map_err(|_| Error::Ambiguous)?;
            // A full-width or otherwise disguised address is nobody's honest spelling.
            return if text.is_ascii() { Ok(Self::from(IpAddr::V4(address))) } else { Err(Error::Ambiguous) };
        }
        Ok(Self { text: name.to_owned(), address: None })
    }

    /// Reads `host`, `host:port`, `[v6]` or `[v6]:port`. User information is refused.
    pub fn parse_authority(text: &str) -> Result<(Self, Option<u16>), Error> {
        let port_start = match text.rfind(':') {
            Some(colon) if !text[colon..].contains(']') => Some(colon),
            _ => None,
        };
        let Some(colon) = port_start else {
            return Ok((Self::parse(text)?, None));
        };
        let (host, port) = (&text[..colon], &text[colon + 1..]);
        if host.contains(':') && !host.starts_with('[') {
            return Err(Error::Character);
        }
        Ok((Self::parse(host)?, Some(parse_port(port)?)))
    }

    /// Canonical text: a lower-case name, or an address without brackets.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The address, if it is one.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    pub fn is_name(&self) -> bool {
        self.address.is_none()
    }

    /// As it stands in a URL: IPv6 in brackets.
    pub fn url_text(&self) -> String {
        match self.address {
            Some(IpAddr::V6(_)) => format!("[{}]", self.text),
            _ => self.text.clone(),
        }
    }

    /// The labels of a name, first one first; none for an address.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.text.split('.').filter(|_| self.is_name())
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        Self { text: address.to_string(), address: Some(address) }
    }
}

fn parse_ipv6(text: &str) -> Result<Host, Error> {
    let inner = match (text.strip_prefix('['), text.strip_suffix(']')) {
        (Some(_), Some(_)) => &text[1..text.len() - 1],
        (None, None) => text,
        _ => return Err(Error::Character),
    };
    // Rust's parser knows no zone ids, so "fe80::1%eth0" ends here.
    Ipv6Addr::from_str(inner).map(|address| Host::from(IpAddr::V6(address))).map_err(|_| Error::Character)
}

fn parse_port(text: &str) -> Result<u16, Error> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if is_plain && port > 0 => Ok(port),
        _ => Err(Error::Port),
    }
}

fn to_ascii(text: &str) -> Result<String, Error> {
    if !text.is_ascii() || has_punycode(text) {
        let ascii = idna::domain_to_ascii_cow(text.as_bytes(), idna::AsciiDenyList::EMPTY);
        return ascii.map(std::borrow::Cow::into_owned).map_err(|_| Error::Idna);
    }
    Ok(text.to_ascii_lowercase())
}

fn has_punycode(text: &str) -> bool {
    text.split('.').any(|label| label.len() >= 4 && label.as_bytes()[..4].eq_ignore_ascii_case(b"xn--"))
}

fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::Empty);
    }
    if !name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.')) {
        return Err(Error::Character);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(Error::TooLong);
    }
    for label in name.split('.') {
        if label.is_empty() || label.len() > LABEL_BYTES_MAX {
            return Err(Error::Label);
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(Error::Character);
        }
    }
    Ok(())
}

/// Whether a resolver somewhere may take the name for an IPv4 address: its last label is a number.
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let is_decimal = last.bytes().all(|byte| byte.is_ascii_digit());
    let is_hex =
        last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    is_decimal || is_hex
}

/// What a rule says about hosts: one name or address exactly, or every name below one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pattern {
    Exact(Host),
    /// `*.example.com`: names with at least one more label, at any depth; not `example.com` itself.
    Below(Host),
}

impl Pattern {
    pub fn parse(text: &str) -> Result<Self, Error> {
        let Some(suffix) = text.strip_prefix("*.") else {
            return Host::parse(text).map(Self::Exact);
        };
        let host = Host::parse(suffix)?;
        // "*.com" would be most of the internet.
        if host.labels().count() < 2 {
            return Err(Error::Pattern);
        }
        Ok(Self::Below(host))
    }

    pub fn matches(&self, host: &Host) -> bool {
        match self {
            Self::Exact(exact) => exact == host,
            Self::Below(suffix) => {
                let head = host.text.strip_suffix(&suffix.text).and_then(|head| head.strip_suffix('.'));
                host.is_name() && head.is_some_and(|head| !head.is_empty())
            }
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => host.fmt(out),
            Self::Below(host) => write!(out, "*.{host}"),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, out)
    }
}

/// `FromStr` and serde as the canonical text.
macro_rules! as_text {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                Self::parse(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

as_text!(Host);
as_text!(Pattern);

#[cfg(test)]
mod tests;
