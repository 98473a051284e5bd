//! Moments: microseconds since 1970 inside, RFC 3339 UTC with six digits outside.

use roost_domain::duration::{moment_text, parse_moment_us};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Six fractional digits always: some clients cannot read other widths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(i64);

impl Timestamp {
    pub fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    pub fn as_micros(self) -> i64 {
        self.0
    }

    /// Reads RFC 3339; `None` if it is not that, or not between the years 1 and 9999.
    pub fn parse(text: &str) -> Option<Self> {
        parse_moment_us(text).ok().map(Self)
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&moment_text(self.0))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom("expected a time like 2026-11-20T12:00:00Z"))
    }
}

impl utoipa::PartialSchema for Timestamp {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .into()
    }
}

impl utoipa::ToSchema for Timestamp {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_six_digits_and_reads_any_offset() {
        assert_eq!(Timestamp::from_micros(1).to_string(), "1970-01-01T00:00:00.000001Z");
        assert_eq!(Timestamp::from_micros(1_790_000_000_000_000).to_string(), "2026-09-21T14:13:20.000000Z");
        let parsed = Timestamp::parse("2026-09-21T16:13:20+02:00").map(Timestamp::as_micros);
        assert_eq!(parsed, Some(1_790_000_000_000_000));
        assert_eq!(Timestamp::parse("yesterday"), None);
    }
}
