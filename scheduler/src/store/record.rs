//! Rows as structs: the mapping of a table's columns to fields, written once per table by [`record!`].
//!
//! Owns how a field becomes a column and the three statements every table has. Knows no table.

use std::collections::BTreeMap;

use super::{Error, Row, Tx, Value, params};

/// A type one column holds.
pub trait Column: Sized {
    fn read(row: &Row, column: &str) -> Result<Self, Error>;
    fn value(&self) -> Result<Value, Error>;
}

macro_rules! columns {
    ($($type:ty => $read:ident, |$value:ident| $to:expr);* $(;)?) => {$(
        impl Column for $type {
            fn read(row: &Row, column: &str) -> Result<Self, Error> { row.$read(column) }
            fn value(&self) -> Result<Value, Error> { let $value = self; Ok($to) }
        }
    )*};
}

columns! {
    i64 => int, |v| Value::Int(*v);
    u64 => uint, |v| Value::from(*v);
    bool => flag, |v| Value::from(*v);
    String => text, |v| Value::from(v);
    Vec<u8> => bytes, |v| Value::from(v);
    Option<i64> => find_int, |v| Value::from(v);
    Option<String> => find_text, |v| Value::from(v);
    Option<Vec<u8>> => find_bytes, |v| Value::from(v.clone());
    Vec<String> => json, |v| Value::json(v)?;
    BTreeMap<String, String> => json, |v| Value::json(v)?;
    BTreeMap<String, serde_json::Value> => json, |v| Value::json(v)?;
    serde_json::Value => json, |v| Value::json(v)?;
}

/// A struct whose fields are a table's columns.
pub trait Record: Sized {
    const TABLE: &'static str;
    const COLUMNS: &'static [&'static str];
    fn from_row(row: &Row) -> Result<Self, Error>;
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
            const COLUMNS: &'static [&'static str] = &[$(stringify!($field)),*];

            fn from_row(row: &$crate::store::Row) -> Result<Self, $crate::store::Error> {
                Ok(Self { $($field: $crate::store::record::Column::read(row, stringify!($field))?),* })
            }

            fn values(&self) -> Result<Vec<$crate::store::Value>, $crate::store::Error> {
                Ok(vec![$($crate::store::record::Column::value(&self.$field)?),*])
            }
        }
    };
}
pub(crate) use record;

fn insert_statement<T: Record>() -> String {
    let places: Vec<String> = (1..=T::COLUMNS.len()).map(|at| format!("?{at}")).collect();
    format!("INSERT INTO {} ({}) VALUES ({})", T::TABLE, T::COLUMNS.join(", "), places.join(", "))
}

/// Inserts, or fails with [`Error::Unique`].
pub(super) fn insert<T: Record>(tx: &mut Tx<'_>, record: &T) -> Result<(), Error> {
    tx.execute(&insert_statement::<T>(), &record.values()?).map(|_| ())
}

/// Inserts unless some unique index already has such a row; true if it did.
pub(super) fn insert_if_absent<T: Record>(tx: &mut Tx<'_>, record: &T) -> Result<bool, Error> {
    let sql = insert_statement::<T>() + " ON CONFLICT DO NOTHING";
    Ok(tx.execute(&sql, &record.values()?)? > 0)
}

/// `tail` is everything after `FROM table`.
pub(super) fn list<T: Record>(tx: &mut Tx<'_>, tail: &str, params: &[Value]) -> Result<Vec<T>, Error> {
    let sql = format!("SELECT {} FROM {} {tail}", T::COLUMNS.join(", "), T::TABLE);
    tx.query(&sql, params)?.iter().map(T::from_row).collect()
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
