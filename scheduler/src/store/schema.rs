//! The schema, as blocks that are only ever appended to `schema.sql`, each applied once.

use super::{Error, Tx, params};

/// One set of tables with its own count of versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Schema {
    text: &'static str,
    versions: &'static str,
}

/// The scheduler's own tables.
pub(super) const MAIN: Schema = Schema { text: include_str!("schema.sql"), versions: "schema_version" };
/// The egress audit's.
pub(super) const AUDIT: Schema = Schema { text: include_str!("audit.sql"), versions: "audit_schema_version" };

const VERSION_LINE: &str = "-- version ";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

/// Applies what is missing, inside the caller's transaction. Running it again changes nothing.
pub(super) fn migrate(tx: &mut Tx<'_>, schema: Schema, dialect: Dialect) -> Result<(), Error> {
    let versions = schema.versions;
    tx.execute(&format!("CREATE TABLE IF NOT EXISTS {versions} (version BIGINT PRIMARY KEY)"), params![])?;
    let newest = format!("SELECT CAST(COALESCE(MAX(version), 0) AS BIGINT) AS version FROM {versions}");
    let row = tx.query_one("schema version", &newest, params![])?;
    let found = row.int("version")?;
    let known = blocks(schema).last().map_or(0, |(version, _)| version);
    if found > known {
        return Err(Error::SchemaNewer { found, known });
    }
    for (version, block) in blocks(schema).filter(|(version, _)| *version > found) {
        apply(tx, schema, dialect, version, block)
            .map_err(|source| Error::Migrate { version, source: Box::new(source) })?;
    }
    Ok(())
}

fn apply(tx: &mut Tx<'_>, schema: Schema, dialect: Dialect, version: i64, block: &str) -> Result<(), Error> {
    for statement in statements(block) {
        tx.execute(&translate(&statement, dialect), params![])?;
    }
    tx.execute(&format!("INSERT INTO {} (version) VALUES (?1)", schema.versions), params![version])?;
    Ok(())
}

/// The blocks in file order with their versions.
fn blocks(schema: Schema) -> impl Iterator<Item = (i64, &'static str)> {
    schema.text.split(VERSION_LINE).skip(1).filter_map(|block| {
        let (number, body) = block.split_once('\n')?;
        Some((number.trim().parse().ok()?, body))
    })
}

/// Statements end with `;` at the end of a line; comments go.
fn statements(block: &str) -> Vec<String> {
    let code = |line: &str| line.split("--").next().unwrap_or("").trim_end().to_owned() + "\n";
    let block: String = block.lines().map(code).collect();
    block.split(";\n").map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

/// SQLite's STRICT tables check types as PostgreSQL does, so a wrong parameter fails on both engines alike.
fn translate(statement: &str, dialect: Dialect) -> String {
    match dialect {
        Dialect::Postgres => statement.to_owned(),
        Dialect::Sqlite => {
            let strict = if statement.starts_with("CREATE TABLE") { " STRICT" } else { "" };
            statement.replace(" BIGINT", " INTEGER").replace(" BYTEA", " BLOB") + strict
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_up_from_one() {
        for schema in [MAIN, AUDIT] {
            let versions: Vec<i64> = blocks(schema).map(|(version, _)| version).collect();
            let expected: Vec<i64> = (1..=versions.len() as i64).collect();
            assert!(!versions.is_empty());
            assert_eq!(versions, expected);
        }
    }

    #[test]
    fn only_three_column_types_are_used() {
        let all = [MAIN, AUDIT].into_iter().flat_map(blocks).flat_map(|(_, block)| statements(block));
        for statement in all.filter(|s| s.starts_with("CREATE TABLE")) {
            let body = statement.split_once('(').expect("a table has columns").1;
            for line in body.lines().map(str::trim).filter(|l| !l.is_empty() && *l != ")") {
                let mut words = line.split_whitespace();
                let (first, second) =
                    (words.next().unwrap_or(""), words.next().unwrap_or("").trim_end_matches(','));
                let constraint = matches!(first, "UNIQUE" | "PRIMARY" | "FOREIGN" | "CHECK");
                assert!(constraint || matches!(second, "BIGINT" | "TEXT" | "BYTEA"), "{line}");
            }
        }
    }
}
