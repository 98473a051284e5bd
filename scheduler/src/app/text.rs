//! The caller's texts: names, slugs, tags, metadata, variables. Pure checks, each saying what would be
//! accepted.

use std::collections::BTreeMap;

use roost_domain::limits::excerpt;
use roost_domain::limits::{
    ENVIRONMENT_BYTES_MAX, METADATA_BYTES_MAX, NAME_CHARS_MAX, TAG_BYTES_MAX, TAGS_MAX, is_environment_name,
};
use serde_json::Value;

use super::Error;

const MAX_METADATA_KEYS: usize = 50;
const MAX_METADATA_KEY_CHARACTERS: usize = 64;
const MAX_METADATA_VALUE_CHARACTERS: usize = 1024;
/// Linux's own limit of a path.
pub const GUEST_PATH_BYTES_MAX: usize = 4096;
pub const GUEST_USER_BYTES_MAX: usize = 256;
const REMARK_CHARACTERS_MAX: usize = 1024;
const MAX_VARIABLES: usize = 256;
const MAX_VARIABLE_BYTES: usize = 32 * 1024;

pub fn check_name(field: &str, name: &str) -> Result<String, Error> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        return Err(Error::invalid(
            field,
            format!("1 to {NAME_CHARS_MAX} characters, none of them a control character"),
        ));
    }
    Ok(name.to_owned())
}

/// Free text that nothing here reads, like a description.
pub fn check_remark(field: &str, remark: Option<String>) -> Result<Option<String>, Error> {
    match &remark {
        Some(text) if text.chars().count() > REMARK_CHARACTERS_MAX => {
            Err(Error::invalid(field, format!("at most {REMARK_CHARACTERS_MAX} characters")))
        }
        _ => Ok(remark),
    }
}

/// A directory or a user of the guest; empty where none is given. What it means is the guest's to say.
pub fn check_guest_word(field: &str, word: Option<String>, bytes_max: usize) -> Result<String, Error> {
    let word = word.unwrap_or_default();
    if word.len() > bytes_max || word.contains('\0') {
        return Err(Error::invalid(field, format!("at most {bytes_max} bytes and no zero byte")));
    }
    Ok(word)
}

/// Trims, drops doubles, keeps the order.
pub fn check_tags(tags: Vec<String>) -> Result<Vec<String>, Error> {
    let mut kept: Vec<String> = Vec::new();
    for tag in tags {
        let tag = tag.trim().to_owned();
        if tag.is_empty()
            || tag.len() > TAG_BYTES_MAX
            || tag.contains(',')
            || tag.chars().any(char::is_control)
        {
            return Err(Error::invalid("tags", format!("each has 1 to {TAG_BYTES_MAX} bytes and no comma")));
        }
        if !kept.contains(&tag) {
            kept.push(tag);
        }
    }
    if kept.len() > TAGS_MAX {
        return Err(Error::invalid("tags", format!("at most {TAGS_MAX}")));
    }
    Ok(kept)
}

pub fn check_metadata(metadata: BTreeMap<String, Value>) -> Result<BTreeMap<String, Value>, Error> {
    if metadata.len() > MAX_METADATA_KEYS {
        return Err(Error::invalid("metadata", format!("at most {MAX_METADATA_KEYS} keys")));
    }
    let mut bytes = 0;
    for (key, value) in &metadata {
        if key.is_empty() || key.chars().count() > MAX_METADATA_KEY_CHARACTERS {
            return Err(Error::invalid(
                "metadata",
                format!("a key has 1 to {MAX_METADATA_KEY_CHARACTERS} characters"),
            ));
        }
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        if text.chars().count() > MAX_METADATA_VALUE_CHARACTERS {
            let problem = format!("at most {MAX_METADATA_VALUE_CHARACTERS} characters");
            return Err(Error::invalid(format!("metadata.{key}"), problem));
        }
        bytes += key.len() + text.len();
    }
    if bytes > METADATA_BYTES_MAX {
        return Err(Error::invalid("metadata", format!("at most {METADATA_BYTES_MAX} bytes in all")));
    }
    Ok(metadata)
}

/// Letters, digits and `_`, not starting with a digit.
pub fn check_variable_name(name: &str) -> Result<(), Error> {
    if is_environment_name(name) { Ok(()) } else { Err(Error::EnvironmentName { name: excerpt(name) }) }
}

pub fn check_environment(
    field: &str,
    environment: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, Error> {
    if environment.len() > MAX_VARIABLES {
        return Err(Error::invalid(field, format!("at most {MAX_VARIABLES} variables")));
    }
    for (name, value) in &environment {
        check_variable_name(name)?;
        if value.len() > MAX_VARIABLE_BYTES || value.contains('\0') {
            return Err(Error::invalid(
                format!("{field}.{name}"),
                format!("a value has at most {MAX_VARIABLE_BYTES} bytes and no zero byte"),
            ));
        }
    }
    let bytes: usize = environment.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > ENVIRONMENT_BYTES_MAX {
        return Err(Error::invalid(field, format!("at most {ENVIRONMENT_BYTES_MAX} bytes in all")));
    }
    Ok(environment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_keep_order_and_lose_doubles() {
        let tags = check_tags(vec![" b ".into(), "a".into(), "b".into()]).unwrap();
        assert_eq!(tags, ["b", "a"]);
        for bad in ["", "a,b", &"x".repeat(TAG_BYTES_MAX + 1)] {
            assert!(check_tags(vec![bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(check_tags((0..=TAGS_MAX).map(|n| n.to_string()).collect()).is_err());
    }

    #[test]
    fn metadata_is_bounded_in_every_direction() {
        let one = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), Value::from(value))]);
        assert!(check_metadata(one("plan", "pro")).is_ok());
        assert!(check_metadata(one("", "x")).is_err());
        assert!(check_metadata(one(&"k".repeat(65), "x")).is_err());
        assert!(check_metadata(one("k", &"v".repeat(1025))).is_err());
        assert!(check_metadata((0..51).map(|n| (n.to_string(), Value::Null)).collect()).is_err());
        let large = (0..20).map(|n| (n.to_string(), Value::from("v".repeat(1000)))).collect();
        assert!(check_metadata(large).is_err());
    }

    #[test]
    fn variables_have_shell_names() {
        for good in ["A", "_a1", "OPENAI_API_KEY"] {
            assert!(check_variable_name(good).is_ok(), "{good}");
        }
        for bad in ["", "1A", "A-B", "Ä", "A B", "A="] {
            assert!(check_variable_name(bad).is_err(), "{bad}");
        }
        let nul = BTreeMap::from([("A".to_owned(), "a\0b".to_owned())]);
        assert!(check_environment("env", nul).is_err());
    }
}
