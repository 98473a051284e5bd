//! Configuration files: TOML into a daemon's own settings type, with errors that name file, line and key.
//!
//! Unknown keys are refused by the settings types themselves (`#[serde(deny_unknown_fields)]`, a tidy rule).
//! Errors never quote the value: a settings file may hold a database password.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// A larger settings file is a mistake.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read settings file {}, which --config names", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("settings file {} is larger than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{}:{line}: {key}{reason}", path.display())]
    Invalid { path: PathBuf, line: usize, key: Key, reason: String },
}

/// The dotted key an error is about; empty when the error is about the file as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl std::fmt::Display for Key {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(out, "{}: ", self.0) }
    }
}

/// Reads and checks a settings file.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(read)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(read)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::TooLarge { path: path.to_owned() });
    }
    parse(&text, path)
}

/// The file that was asked for; else the usual one, with every setting at its default when there is none.
pub fn load_or_default<T: DeserializeOwned + Default>(
    asked: Option<&Path>,
    usual: &Path,
) -> Result<T, Error> {
    if let Some(asked) = asked {
        return load(asked);
    }
    match load(usual) {
        Err(Error::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(T::default()),
        other => other,
    }
}

/// Checks the text of a settings file; `path` is only named in errors.
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, Error> {
    toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start).min(text.len());
        let (line, key) = locate(text, offset);
        Error::Invalid { path: path.to_owned(), line, key, reason: without_value(error.message()) }
    })
}

/// Line number (from 1) of a byte offset, and the key that line is about.
fn locate(text: &str, offset: usize) -> (usize, Key) {
    let line_index = text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count();
    let mut table = "";
    let mut key = "";
    for (index, line) in text.lines().enumerate().take(line_index + 1) {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            table = header.split(']').next().unwrap_or_default().trim_start_matches('[').trim();
        }
        if index == line_index && !line.starts_with(['[', '#']) {
            key = line.split_once('=').map_or("", |(key, _)| key.trim());
        }
    }
    let separator = if table.is_empty() || key.is_empty() { "" } else { "." };
    (line_index + 1, Key(format!("{table}{separator}{key}")))
}

/// serde quotes the value it found (`invalid type: string "hunter2", expected u16`): keep only its type.
fn without_value(message: &str) -> String {
    let is_about_value = message.starts_with("invalid type") || message.starts_with("invalid value");
    let expected = message.rfind(", expected ");
    match (message.split_once(": "), expected) {
        (Some((kind, found)), Some(expected)) if is_about_value => {
            let found_type = found.split(['"', '`', ',']).next().unwrap_or_default().trim_end();
            format!("{kind}: {found_type}{}", &message[expected..])
        }
        _ => message.trim_end().replace('\n', ", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Settings {
        instance: String,
        link: Link,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Link {
        port: u16,
        url: String,
    }

    fn error_of(text: &str) -> String {
        parse::<Settings>(text, Path::new("agent.toml")).unwrap_err().to_string()
    }

    #[test]
    fn reads_what_it_knows() {
        let settings: Settings =
            parse("instance = \"t1\"\n[link]\nport = 7\n", Path::new("agent.toml")).unwrap();
        assert_eq!(settings.instance, "t1");
        assert_eq!(settings.link.port, 7);
    }

    #[test]
    fn names_file_line_and_key() {
        let unknown = error_of("instance = \"t1\"\n\n[link]\nprot = 7\n");
        assert!(unknown.starts_with("agent.toml:4: link.prot: unknown field `prot`"), "{unknown}");
        let top = error_of("instanc = 1\n");
        assert!(top.starts_with("agent.toml:1: instanc: unknown field"), "{top}");
        let table = error_of("instance = \"a\"\n[lnk]\nport = 1\n");
        assert!(table.starts_with("agent.toml:2: lnk: unknown field"), "{table}");
        let range = error_of("[link]\nport = 70000\n");
        assert!(range.starts_with("agent.toml:2: link.port: invalid value: integer"), "{range}");
        let syntax = error_of("instance = \"a\nlink = 1\n");
        assert!(syntax.starts_with("agent.toml:1: instance: "), "{syntax}");
    }

    #[test]
    fn never_quotes_a_value() {
        for text in
            ["[link]\nport = \"hunter2\"\n", "link = \"hunter2\"\n", "[link]\nurl = \"hunter2\nport = 1\n"]
        {
            let error = error_of(text);
            assert!(!error.contains("hunter2"), "{error}");
        }
        let number = error_of("[link]\nurl = 5551234\n");
        assert!(!number.contains("5551234"), "{number}");
    }

    #[test]
    fn a_missing_file_is_an_error_unless_defaults_will_do() {
        let path = Path::new("/nonexistent/roost.toml");
        let error = load::<Settings>(path).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read settings file /nonexistent/roost.toml, which --config names"
        );
        assert_eq!(load_or_default::<Settings>(None, path).unwrap(), Settings::default());
        assert!(
            load_or_default::<Settings>(Some(path), path).is_err(),
            "a mistyped path must not mean the defaults"
        );
    }
}
