//! What serde says of a request, in words for whoever wrote the request: which field, and what would be accepted.
//!
//! Never quotes a value of the request, which may be a secret, and never names a type of this program.

/// The field an error is about and what is wrong with it. `path` is where the reader stood, `.` for the whole.
pub(super) fn explain(path: &str, text: &str) -> (String, String) {
    // serde_json's texts end in the position, which says nothing about a field.
    let text = text.split(" at line ").next().unwrap_or(text);
    if let Some(name) = quoted_after(text, "missing field ") {
        return (join(path, name), "is missing".to_owned());
    }
    if let Some(name) = quoted_after(text, "duplicate field ") {
        return (join(path, name), "is given twice".to_owned());
    }
    if let Some(name) = quoted_after(text, "unknown field ") {
        return (join(path, name), format!("is no field of this request{}", choices(text, "; there is ")));
    }
    let field = if path == "." { "body".to_owned() } else { path.to_owned() };
    if text.starts_with("unknown variant ") {
        return (field, format!("is none of the words{}", choices(text, ": ")));
    }
    let is_about_value = text.starts_with("invalid type: ") || text.starts_with("invalid value: ");
    let problem = match text.rsplit_once(", expected ").filter(|_| is_about_value) {
        Some((found, expected)) => format!("expected {}{}", kind(expected), but_got(found)),
        None => number(text).to_owned(),
    };
    (field, problem)
}

/// The place `name` below `path`; some readers have already gone there.
fn join(path: &str, name: &str) -> String {
    match path {
        "." => name.to_owned(),
        path if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
        path => format!("{path}.{name}"),
    }
}

fn quoted_after<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    text.strip_prefix(start)?.strip_prefix('`')?.split('`').next()
}

/// The words serde lists after what it expected, without its way of quoting them.
fn choices(text: &str, lead: &str) -> String {
    let listed = text.rsplit_once(", expected ").map(|(_, listed)| listed.trim_start_matches("one of "));
    listed.map_or_else(String::new, |listed| format!("{lead}{}", listed.replace('`', "")))
}

/// serde's name of what it wanted.
fn kind(expected: &str) -> &str {
    match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number from 0",
        "i32" | "i64" => "a whole number",
        "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        "string or map" => "a string",
        other if other.starts_with("struct ") => "an object",
        other => other,
    }
}

/// serde's name of what it found, its value left out.
fn but_got(found: &str) -> &str {
    let found = found.split_once(": ").map_or(found, |(_, found)| found);
    match found.split(['"', '`']).next().unwrap_or_default().trim_end() {
        "sequence" => ", got a list",
        "map" => ", got an object",
        "string" => ", got a string",
        "boolean" => ", got true or false",
        "integer" => ", got a number out of that range or of another kind",
        "floating point" => ", got a number with a fraction or out of that range",
        "null" | "unit value" => ", got null",
        _ => "",
    }
}

/// What the standard library says of text that is no number or truth value, for query parameters.
fn number(text: &str) -> &str {
    match text {
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            "expected a whole number from 0"
        }
        "number too large to fit in target type" => "the number is too large",
        "provided string was not `true` or `false`" => "expected true or false",
        // serde_json's verdict on a number or truth value where a word of a closed set belongs.
        "expected value" => "expected one of the words that the document lists",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_and_what_would_do_are_said_without_the_value() {
        for (path, text, field, problem) in [
            (".", "missing field `port` at line 1 column 2", "port", "is missing"),
            ("vars[0]", "missing field `value`", "vars[0].value", "is missing"),
            (
                "ttl",
                "unknown field `ttl`, expected `a` or `b`",
                "ttl",
                "is no field of this request; there is a or b",
            ),
            ("a", "unknown field `b`, there are no fields", "a.b", "is no field of this request"),
            (".", "duplicate field `limit`", "limit", "is given twice"),
            (
                "scope",
                "unknown variant `hunter2`, expected one of `user`, `tenant`",
                "scope",
                "is none of the words: user, tenant",
            ),
            (
                "port",
                "invalid type: string \"hunter2, expected u8\", expected u32",
                "port",
                "expected a whole number from 0 to 4294967295, got a string",
            ),
            ("tags", "invalid type: map, expected a sequence", "tags", "expected a list, got an object"),
            ("limit", "invalid digit found in string", "limit", "expected a whole number from 0"),
        ] {
            assert_eq!(explain(path, text), (field.to_owned(), problem.to_owned()), "{text}");
        }
    }
}
