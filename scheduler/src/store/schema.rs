//! The schema, as blocks that are only ever appended to `schema.sql`, each applied once.

use super::{Error, Tx, params};

const SCHEMA: &str = include_str!("schema.sql");
const VERSION_LINE: &str = "-- version ";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

/// Applies what is missing, inside the caller's transaction. Running it again changes nothing.
pub(super) fn migrate(tx: &mut Tx<'_>, dialect: Dialect) -> Result<(), Error> {
    let table = "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT PRIMARY KEY)";
    tx.execute(table, params![])?;
    let row = tx.query_one(
        "schema version",
        "SELECT CAST(COALESCE(MAX(version), 0) AS BIGINT) AS version FROM schema_version",
        params![],
    )?;
    let found = row.int("version")?;
    let known = blocks().last().map_or(0, |(version, _)| version);
    if found > known {
        return Err(Error::SchemaNewer { found, known });
    }
    for (version, block) in blocks().filter(|(version, _)| *version > found) {
        apply(tx, dialect, version, block).map_err(|source| Error::Migrate {
            version,
            source: Box::new(source),
        })?;
    }
    Ok(())
}

fn apply(tx: &mut Tx<'_>, dialect: Dialect, version: i64, block: &str) -> Result<(), Error> {
    for statement in statements(block) {
        tx.execute(&translate(&statement, dialect), params![])?;
    }
    tx.execute(
        "INSERT INTO schema_version (version) VALUES (?1)",
        params![version],
    )?;
    Ok(())
}

/// The blocks in file order with their versions.
fn blocks() -> impl Iterator<Item = (i64, &'static str)> {
    SCHEMA.split(VERSION_LINE).skip(1).filter_map(|block| {
        let (number, body) = block.split_once('\n')?;
        Some((number.trim().parse().ok()?, body))
    })
}

/// Statements end with `;` at the end of a line; comments go.
fn statements(block: &str) -> Vec<String> {
    let code = |line: &str| line.split("--").next().unwrap_or("").trim_end().to_owned() + "\n";
    let block: String = block.lines().map(code).collect();
    block
        .split(";\n")
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .map(str::to_owned)
        .collect()
}

/// SQLite's STRICT tables check types as PostgreSQL does, so a wrong parameter fails on both engines alike.
fn translate(statement: &str, dialect: Dialect) -> String {
    match dialect {
        Dialect::Postgres => statement.to_owned(),
        Dialect::Sqlite => {
            let strict = if statement.starts_with("CREATE TABLE") {
                " STRICT"
            } else {
                ""
            };
            statement
                .replace(" BIGINT", " INTEGER")
                .replace(" BYTEA", " BLOB")
                + strict
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_up_from_one() {
        let versions: Vec<i64> = blocks().map(|(version, _)| version).collect();
        let expected: Vec<i64> = (1..=versions.len() as i64).collect();
        assert!(!versions.is_empty());
        assert_eq!(versions, expected);
    }

    #[test]
    fn only_three_column_types_are_used() {
        for (_, block) in blocks() {
            for statement in statements(block).iter().filter(|s| s.starts_with("CREATE TABLE")) {
                let body = statement.split_once('(').expect("a table has columns").1;
                for line in body.lines().map(str::trim).filter(|l| !l.is_empty() && *l != ")") {
                    let second = line.split_whitespace().nth(1).unwrap_or("").trim_end_matches(',');
                    let first = line.split_whitespace().next().unwrap_or("");
                    let constraint = matches!(first, "UNIQUE" | "PRIMARY" | "FOREIGN" | "CHECK");
                    assert!(
                        constraint || matches!(second, "BIGINT" | "TEXT" | "BYTEA"),
                        "{line}"
                    );
                }
            }
        }
    }
}
