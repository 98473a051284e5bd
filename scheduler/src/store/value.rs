//! What goes into a statement and what comes out of it: the three column types both engines share.
//!
//! Owns the mapping between Rust values and BIGINT, TEXT and BYTEA. Knows no table.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Error;

/// One parameter or one column. Booleans are BIGINT 0 and 1, times BIGINT microseconds, lists and maps JSON in TEXT.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    Null,
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
}

impl Value {
    /// JSON in a TEXT column.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Value, Error> {
        serde_json::to_string(value)
            .map(Value::Text)
            .map_err(|source| Error::Json { column: "(parameter)".into(), source })
    }

    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Int(_) => "integer",
            Value::Text(_) => "text",
            Value::Bytes(_) => "bytes",
        }
    }
}

/// Values may be sealed secrets or token hashes, so only their kind is ever shown.
impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind())
    }
}

macro_rules! value_from {
    ($($from:ty => |$value:ident| $to:expr),* $(,)?) => {
        $(impl From<$from> for Value {
            fn from($value: $from) -> Value { $to }
        })*
    };
}

value_from! {
    i64 => |v| Value::Int(v),
    i32 => |v| Value::Int(v.into()),
    u32 => |v| Value::Int(v.into()),
    u16 => |v| Value::Int(v.into()),
    bool => |v| Value::Int(v.into()),
    // Counters of 2^63 and above do not occur; a hostile one is clamped rather than wrapped.
    u64 => |v| Value::Int(i64::try_from(v).unwrap_or(i64::MAX)),
    usize => |v| Value::Int(i64::try_from(v).unwrap_or(i64::MAX)),
    &str => |v| Value::Text(v.to_owned()),
    String => |v| Value::Text(v),
    &String => |v| Value::Text(v.clone()),
    &[u8] => |v| Value::Bytes(v.to_vec()),
    Vec<u8> => |v| Value::Bytes(v),
    &Vec<u8> => |v| Value::Bytes(v.clone()),
    &Option<String> => |v| v.as_deref().into(),
    &Option<i64> => |v| (*v).into(),
}

impl<const N: usize> From<[u8; N]> for Value {
    fn from(bytes: [u8; N]) -> Value {
        Value::Bytes(bytes.to_vec())
    }
}

impl<const N: usize> From<&[u8; N]> for Value {
    fn from(bytes: &[u8; N]) -> Value {
        Value::Bytes(bytes.to_vec())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Value {
        value.map_or(Value::Null, Into::into)
    }
}

impl From<&i64> for Value {
    fn from(value: &i64) -> Value {
        Value::Int(*value)
    }
}

/// `params![id, now_us, name]`: a slice of [`Value`]s from anything that converts into one.
#[macro_export]
macro_rules! params {
    () => { &[] as &[$crate::store::Value] };
    ($($value:expr),+ $(,)?) => { &[$($crate::store::Value::from($value)),+] as &[$crate::store::Value] };
}
pub use params;

/// One row of an answer, read by column name.
#[derive(Debug, Clone)]
pub struct Row {
    pub(super) columns: Arc<[String]>,
    pub(super) values: Vec<Value>,
}

impl Row {
    fn value(&self, column: &str) -> Result<&Value, Error> {
        let position = self.columns.iter().position(|name| name == column);
        position
            .and_then(|at| self.values.get(at))
            .ok_or_else(|| Error::NoColumn { column: column.to_owned() })
    }

    fn wrong(&self, column: &str, expected: &'static str, found: &Value) -> Error {
        Error::ColumnType { column: column.to_owned(), expected, found: found.kind() }
    }

    pub fn int(&self, column: &str) -> Result<i64, Error> {
        self.find_int(column)?.ok_or_else(|| self.wrong(column, "integer", &Value::Null))
    }

    pub fn find_int(&self, column: &str) -> Result<Option<i64>, Error> {
        match self.value(column)? {
            Value::Null => Ok(None),
            Value::Int(value) => Ok(Some(*value)),
            other => Err(self.wrong(column, "integer", other)),
        }
    }

    /// A counter or a size; what is below zero is an error of the row.
    pub fn uint(&self, column: &str) -> Result<u64, Error> {
        let value = self.int(column)?;
        u64::try_from(value).map_err(|_| self.wrong(column, "non-negative integer", &Value::Int(value)))
    }

    pub fn flag(&self, column: &str) -> Result<bool, Error> {
        Ok(self.int(column)? != 0)
    }

    pub fn text(&self, column: &str) -> Result<String, Error> {
        self.find_text(column)?.ok_or_else(|| self.wrong(column, "text", &Value::Null))
    }

    pub fn find_text(&self, column: &str) -> Result<Option<String>, Error> {
        match self.value(column)? {
            Value::Null => Ok(None),
            Value::Text(value) => Ok(Some(value.clone())),
            other => Err(self.wrong(column, "text", other)),
        }
    }

    pub fn bytes(&self, column: &str) -> Result<Vec<u8>, Error> {
        self.find_bytes(column)?.ok_or_else(|| self.wrong(column, "bytes", &Value::Null))
    }

    pub fn find_bytes(&self, column: &str) -> Result<Option<Vec<u8>>, Error> {
        match self.value(column)? {
            Value::Null => Ok(None),
            Value::Bytes(value) => Ok(Some(value.clone())),
            other => Err(self.wrong(column, "bytes", other)),
        }
    }

    /// A TEXT column that holds JSON.
    pub fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T, Error> {
        let text = self.text(column)?;
        serde_json::from_str(&text).map_err(|source| Error::Json { column: column.to_owned(), source })
    }
}
