//! Rows as structs: the mapping of a table's columns to fields, written once per table by [`record!`].
//!
//! Owns how a field becomes a column and the three statements every table has. Knows no table.

use std::collections::BTreeMap;

use super::{Error, Tx, Value, params};

/// A type one column holds.
pub trait Column: Sized {
    fn read(value: Value, column: &'static str) -> Result<Self, Error>;
    fn value(&self) -> Result<Value, Error>;
}

fn wrong(value: &Value, column: &str, expected: &'static str) -> Error {
    Error::ColumnType { column: column.to_owned(), expected, found: value.kind() }
}

macro_rules! plain_columns {
    ($($type:ty: $expected:literal, $variant:ident($read:ident) => $value:expr);* $(;)?) => {$(
        impl Column for $type {
            fn read(value: Value, column: &'static str) -> Result<Self, Error> {
                match value {
                    Value::$variant($read) => $value.ok_or_else(|| wrong(&Value::$variant($read), column, $expected)),
                    other => Err(wrong(&other, column, $expected)),
                }
            }

            fn value(&self) -> Result<Value, Error> {
                Ok(Value::from(self.clone()))
            }
        }

        impl Column for Option<$type> {
            fn read(value: Value, column: &'static str) -> Result<Self, Error> {
                match value {
                    Value::Null => Ok(None),
                    other => <$type>::read(other, column).map(Some),
                }
            }

            fn value(&self) -> Result<Value, Error> {
                Ok(Value::from(self.clone()))
            }
        }
    )*};
}

plain_columns! {
    i64: "integer", Int(number) => Some(number);
    u64: "non-negative integer", Int(number) => u64::try_from(number).ok();
    bool: "flag", Int(number) => Some(number != 0);
}

macro_rules! owned_columns {
    ($($type:ty: $expected:literal, $variant:ident);* $(;)?) => {$(
        impl Column for $type {
            fn read(value: Value, column: &'static str) -> Result<Self, Error> {
                match value {
                    Value::$variant(owned) => Ok(owned),
                    other => Err(wrong(&other, column, $expected)),
                }
            }

            fn value(&self) -> Result<Value, Error> {
                Ok(Value::from(self.clone()))
            }
        }

        impl Column for Option<$type> {
            fn read(value: Value, column: &'static str) -> Result<Self, Error> {
                match value {
                    Value::Null => Ok(None),
                    other => <$type>::read(other, column).map(Some),
                }
            }

            fn value(&self) -> Result<Value, Error> {
                Ok(Value::from(self.clone()))
            }
        }
    )*};
}

owned_columns! {
    String: "text", Text;
    Vec<u8>: "bytes", Bytes;
}

macro_rules! json_columns {
    ($($type:ty),* $(,)?) => {$(
        impl Column for $type {
            fn read(value: Value, column: &'static str) -> Result<Self, Error> {
                let text = String::read(value, column)?;
                serde_json::from_str(&text).map_err(|source| Error::Json { column: column.to_owned(), source })
            }

            fn value(&self) -> Result<Value, Error> {
                Value::json(self)
            }
        }
    )*};
}

json_columns!(Vec<String>, BTreeMap<String, String>, BTreeMap<String, serde_json::Value>, serde_json::Value);

/// What is written once per table and used by every call.
#[derive(Debug)]
pub struct Statements {
    select: String,
    insert: String,
    insert_if_absent: String,
}

impl Statements {
    pub(super) fn of(table: &str, columns: &[&str]) -> Statements {
        let places: Vec<String> = (1..=columns.len()).map(|at| format!("?{at}")).collect();
        let columns = columns.join(", ");
        let insert = format!("INSERT INTO {table} ({columns}) VALUES ({})", places.join(", "));
        Statements {
            select: format!("SELECT {columns} FROM {table} "),
            insert_if_absent: format!("{insert} ON CONFLICT DO NOTHING"),
            insert,
        }
    }
}

/// A struct whose fields are a table's columns.
pub trait Record: Sized {
    const TABLE: &'static str;
    fn statements() -> &'static Statements;
    /// From the values in the order of the fields.
    fn from_values(values: Vec<Value>) -> Result<Self, Error>;
    fn values(&self) -> Result<Vec<Value>, Error>;
}

/// Declares a struct together with its table: field names are column names.
macro_rules! record {
    ($(#[$meta:meta])* pub struct $name:ident in $table:literal {
        $($(#[$about:meta])* $field:ident: $type:ty),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone)]
        pub struct $name { $($(#[$about])* pub $field: $type),* }

        impl $crate::store::record::Record for $name {
            const TABLE: &'static str = $table;

            fn statements() -> &'static $crate::store::record::Statements {
                static STATEMENTS: std::sync::OnceLock<$crate::store::record::Statements> = std::sync::OnceLock::new();
                STATEMENTS.get_or_init(|| {
                    $crate::store::record::Statements::of($table, &[$(stringify!($field)),*])
                })
            }

            fn from_values(values: Vec<$crate::store::Value>) -> Result<Self, $crate::store::Error> {
                let mut values = values.into_iter();
                // Fields are read in the order they are written in, which is that of the columns asked for.
                Ok(Self {
                    $($field: $crate::store::record::Column::read(
                        values.next().unwrap_or($crate::store::Value::Null),
                        stringify!($field),
                    )?),*
                })
            }

            fn values(&self) -> Result<Vec<$crate::store::Value>, $crate::store::Error> {
                Ok(vec![$($crate::store::record::Column::value(&self.$field)?),*])
            }
        }
    };
}
pub(crate) use record;

/// Inserts, or fails with [`Error::Unique`].
pub(super) fn insert<T: Record>(tx: &mut Tx<'_>, record: &T) -> Result<(), Error> {
    tx.execute(&T::statements().insert, &record.values()?).map(|_| ())
}

/// Inserts unless some unique index already has such a row; true if it did.
pub(super) fn insert_if_absent<T: Record>(tx: &mut Tx<'_>, record: &T) -> Result<bool, Error> {
    Ok(tx.execute(&T::statements().insert_if_absent, &record.values()?)? > 0)
}

/// `tail` is everything after `FROM table`.
pub(super) fn list<T: Record>(tx: &mut Tx<'_>, tail: &str, params: &[Value]) -> Result<Vec<T>, Error> {
    let sql = [T::statements().select.as_str(), tail].concat();
    tx.query_values(&sql, params)?.into_iter().map(T::from_values).collect()
}

pub(super) fn find<T: Record>(tx: &mut Tx<'_>, tail: &str, params: &[Value]) -> Result<Option<T>, Error> {
    Ok(list(tx, tail, params)?.into_iter().next())
}

/// True if the statement changed a row: the answer of a conditional write.
pub(super) fn changed(tx: &mut Tx<'_>, sql: &str, params: &[Value]) -> Result<bool, Error> {
    Ok(tx.execute(sql, params)? > 0)
}

/// Conditions joined by AND, with their parameters numbered as they come.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    clauses: Vec<String>,
    params: Vec<Value>,
}

impl Conditions {
    pub(super) fn new(column: &str, value: impl Into<Value>) -> Self {
        let mut conditions = Self::default();
        conditions.push(column, "=", value);
        conditions
    }

    /// `column operator ?n`. Column and operator are literals of the code, never input.
    pub(super) fn push(&mut self, column: &str, operator: &str, value: impl Into<Value>) {
        let place = self.place(value);
        self.clauses.push(format!("{column} {operator} {place}"));
    }

    pub(super) fn push_if(&mut self, column: &str, operator: &str, value: &Option<impl Into<Value> + Clone>) {
        if let Some(value) = value {
            self.push(column, operator, value.clone());
        }
    }

    pub(super) fn push_any(&mut self, column: &str, values: &[String]) {
        if !values.is_empty() {
            let places: Vec<String> = values.iter().map(|value| self.place(value)).collect();
            self.clauses.push(format!("{column} IN ({})", places.join(", ")));
        }
    }

    /// `column` holds JSON; `member` is one element of its list, or one `"key":"value"` of its map, as JSON.
    pub(super) fn push_json_member(&mut self, column: &str, member: &str) {
        let place = self.place(containing(member));
        self.clauses.push(format!("{column} LIKE {place} ESCAPE '\\'"));
    }

    /// A clause without parameters, a literal of the code.
    pub(super) fn push_clause(&mut self, clause: impl Into<String>) {
        self.clauses.push(clause.into());
    }

    /// Registers a parameter and returns its placeholder.
    pub(super) fn place(&mut self, value: impl Into<Value>) -> String {
        self.params.push(value.into());
        format!("?{}", self.params.len())
    }

    /// `WHERE …` and the parameters in order.
    pub(super) fn finish(self) -> (String, Vec<Value>) {
        (format!("WHERE {}", self.clauses.join(" AND ")), self.params)
    }
}

/// A LIKE pattern that matches what contains `text` literally (use with `ESCAPE '\'`).
pub(super) fn containing(text: &str) -> String {
    let mut pattern = String::from("%");
    for character in text.chars() {
        if matches!(character, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern + "%"
}

/// How many rows a table has; for tests and metrics.
pub fn count<T: Record>(tx: &mut Tx<'_>) -> Result<i64, Error> {
    let sql = format!("SELECT COUNT(*) AS n FROM {}", T::TABLE);
    tx.query_one(T::TABLE, &sql, params![])?.int("n")
}
