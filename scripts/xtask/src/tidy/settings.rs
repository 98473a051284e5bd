//! Settings types refuse unknown keys: a misspelt key is an error and not a default.

use super::Finding;
use super::scan::Scan;
use super::source::Source;

pub(super) fn check(source: &Source, scan: &Scan) -> Vec<Finding> {
    let name = source.path.rsplit('/').next().unwrap_or_default();
    let is_settings = matches!(name, "config.rs" | "settings.rs") && source.path.contains("/src/");
    // The tenant API has settings of another kind.
    if source.is_test || !is_settings || source.path.starts_with("crates/api/") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    // From one `struct` word back to the end of the item before it: its attributes.
    for (index, word) in
        scan.words.iter().enumerate().filter(|(_, word)| word.text == "struct" && !word.in_test)
    {
        let before: Vec<&str> = scan.words[..index]
            .iter()
            .rev()
            .take_while(|word| !matches!(word.text.as_str(), ";" | "}"))
            .map(|word| word.text.as_str())
            .collect();
        let is_tuple = scan.words.get(index + 2).is_some_and(|next| next.text == "(");
        if before.contains(&"Deserialize") && !before.contains(&"deny_unknown_fields") && !is_tuple {
            let message = "a settings type has #[serde(deny_unknown_fields)]";
            findings.push(Finding::new(&source.path, word.line, "settings", message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::findings;

    #[test]
    fn settings_that_take_any_key_are_found() {
        let open = "//! X.\nuse a::B;\n#[derive(Deserialize)]\n#[serde(default)]\nstruct A { b: u8 }\n";
        assert_eq!(findings("agent/src/config.rs", open), ["5 settings"]);
        let closed = open.replace("default", "default, deny_unknown_fields");
        assert_eq!(findings("agent/src/config.rs", &closed), Vec::<String>::new());
        assert_eq!(findings("agent/src/row.rs", open), Vec::<String>::new());
    }
}
