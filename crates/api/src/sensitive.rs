//! Values that come in or go out once and must appear nowhere else.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// A value a caller hands in: readable by the code that seals it, wiped when dropped, never printed or
/// serialised.
#[derive(Clone)]
pub struct Sensitive(Zeroizing<String>);

impl Sensitive {
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Sensitive {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("[hidden]")
    }
}

impl<'de> Deserialize<'de> for Sensitive {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// A value shown in exactly one answer (a new key, a new token): serialised, never printed.
#[derive(Clone)]
pub struct OneTime(Zeroizing<String>);

impl OneTime {
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for OneTime {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("[hidden]")
    }
}

impl Serialize for OneTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

macro_rules! string_schema {
    ($type:ty) => {
        impl utoipa::PartialSchema for $type {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::schema::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .into()
            }
        }
        impl utoipa::ToSchema for $type {}
    };
}
string_schema!(Sensitive);
string_schema!(OneTime);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_is_ever_printed() {
        let text =
            format!("{:?} {:?}", Sensitive::new("open sesame".into()), OneTime::new("open sesame".into()));
        assert!(!text.contains("sesame"), "{text}");
    }
}
