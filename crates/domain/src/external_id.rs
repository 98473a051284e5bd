//! The caller's own names for its users, workspaces and projects: opaque, exact, case-sensitive labels.
//!
//! They attribute; they never authorise. A blank one is no id at all and matches nothing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// Longest external id.
pub const EXTERNAL_ID_BYTES_MAX: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("an external id is blank")]
    Blank,
    #[error("an external id is longer than {EXTERNAL_ID_BYTES_MAX} bytes")]
    TooLong,
    #[error("an external id has a control character")]
    Control,
}

/// One opaque id, never blank.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ExternalId(String);

impl ExternalId {
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.chars().all(char::is_whitespace) {
            return Err(Error::Blank);
        }
        if text.len() > EXTERNAL_ID_BYTES_MAX {
            return Err(Error::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(Error::Control);
        }
        Ok(Self(text.to_owned()))
    }

    /// Reads an optional field: absent and blank are the same.
    pub fn parse_optional(text: Option<&str>) -> Result<Option<Self>, Error> {
        match text.map(Self::parse) {
            None | Some(Err(Error::Blank)) => Ok(None),
            Some(Ok(id)) => Ok(Some(id)),
            Some(Err(error)) => Err(error),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ExternalId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl<'de> Deserialize<'de> for ExternalId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for ExternalId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for ExternalId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, out)
    }
}

/// The three labels of a resource, fixed when it is created.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attribution {
    #[serde(rename = "external_workspace_id")]
    pub workspace: Option<ExternalId>,
    #[serde(rename = "external_user_id")]
    pub user: Option<ExternalId>,
    #[serde(rename = "external_project_id")]
    pub project: Option<ExternalId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opaque_and_exact() {
        for text in ["user_42", "dr_smith@clinic1.example", "clinic-123", "a/b?c#d", "\u{1f426} nest", " x "]
        {
            assert_eq!(ExternalId::parse(text).unwrap().as_str(), text);
        }
        assert_ne!(ExternalId::parse("User_42"), ExternalId::parse("user_42"));
    }

    #[test]
    fn blank_is_absent_and_the_rest_is_refused() {
        for blank in [None, Some(""), Some("  "), Some("\u{3000}")] {
            assert_eq!(ExternalId::parse_optional(blank), Ok(None), "{blank:?}");
        }
        assert_eq!(ExternalId::parse("a\nb"), Err(Error::Control));
        assert_eq!(ExternalId::parse("a\u{85}b"), Err(Error::Control));
        assert_eq!(ExternalId::parse(&"a".repeat(257)), Err(Error::TooLong));
        assert!(serde_json::from_str::<ExternalId>("\"\"").is_err());
    }

    #[test]
    fn attribution_has_the_names_of_the_wire() {
        let json = r#"{"external_workspace_id":"clinic1","external_user_id":"u","external_project_id":null}"#;
        let attribution: Attribution = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&attribution).unwrap(), json);
    }
}
