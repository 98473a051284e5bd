//! Features that must be asked for by name: no package of ours is built without its defences by accident.

use toml::{Table, Value};

use super::Finding;
use super::source::Source;

/// Switches defences off, for `cargo xtask sabotage` alone.
const FEATURE: &str = "sabotage";

pub(super) fn check(source: &Source) -> Vec<Finding> {
    if !source.path.ends_with("Cargo.toml") {
        return Vec::new();
    }
    let manifest: Table = match source.text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![Finding::new(&source.path, 1, "feature", format!("not TOML: {error}"))],
    };
    let mut findings = Vec::new();
    walk(&manifest, &mut |name| {
        let message = format!("\"{name}\" brings {FEATURE}, which is asked for on the command line only");
        findings.push(Finding::new(&source.path, 1, "feature", message));
    });
    findings
}

/// Reports every key, but the feature itself, under which the feature is asked for: another feature, `default` above
/// all, or the features of a dependency.
fn walk(table: &Table, report: &mut impl FnMut(&str)) {
    for (key, value) in table {
        match value {
            Value::Table(inner) => walk(inner, report),
            Value::Array(items) if key != FEATURE && items.iter().any(is_feature) => report(key),
            _ => {}
        }
    }
}

/// `sabotage`, or that of a dependency: `roost-domain/sabotage`, `roost-domain?/sabotage`.
fn is_feature(item: &Value) -> bool {
    item.as_str().is_some_and(|text| text.rsplit('/').next() == Some(FEATURE))
}

#[cfg(test)]
mod tests {
    use super::super::tests::findings;

    #[test]
    fn defences_are_switched_off_by_command_only() {
        let manifest = |rest: &str| format!("[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n\n{rest}");
        for (rest, wanted) in [
            ("[features]\nsabotage = [\"roost-domain/sabotage\"]\n", &[][..]),
            ("[features]\nsabotage = []\ndefault = []\n", &[]),
            ("[features]\ndefault = [\"sabotage\"]\nsabotage = []\n", &["1 feature"]),
            ("[features]\nfake-vmm = [\"roost-domain?/sabotage\"]\n", &["1 feature"]),
            ("[dependencies]\nb = { path = \"b\", features = [\"x\", \"sabotage\"] }\n", &["1 feature"]),
            ("[target.'cfg(unix)'.dev-dependencies.b]\nfeatures = [\"sabotage\"]\n", &["1 feature"]),
        ] {
            assert_eq!(findings("a/Cargo.toml", &manifest(rest)), wanted, "{rest}");
        }
        assert_eq!(findings("a/Cargo.toml", &manifest("[features\n")), ["1 feature"]);
    }
}
