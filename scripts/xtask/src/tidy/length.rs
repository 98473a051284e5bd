//! Files of at most 500 lines without their tests, functions of at most 70, lines of at most 120 characters
//! (rustfmt keeps code at 110; this is for what it leaves alone, comments above all).
//!
//! A function that is longer for now stands in `scripts/xtask/ratchet.txt` with its length, which may only shrink.

use super::Finding;
use super::scan::Scan;
use super::source::{RATCHET, Source, Tree};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_CHARS_MAX: usize = 120;

pub(super) fn check(source: &Source, scan: &Scan) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        if line.chars().count() > LINE_CHARS_MAX && !may_be_long(&source.path, line) {
            let message = format!("the line has more than {LINE_CHARS_MAX} characters");
            findings.push(Finding::new(&source.path, index + 1, "width", message));
        }
    }
    if source.is_test {
        return findings;
    }
    let lines = (1..=source.text.lines().count()).filter(|line| !scan.is_test_line(*line)).count();
    if lines > FILE_LINES_MAX {
        let message =
            format!("{lines} lines without tests, at most {FILE_LINES_MAX}: split it by what it owns");
        findings.push(Finding::new(&source.path, 1, "file-length", message));
    }
    findings
}

/// Text and addresses cannot be broken; neither can rows of a table, nor what becomes text of the API document.
fn may_be_long(path: &str, line: &str) -> bool {
    let start = line.trim_start();
    let is_described = path.starts_with("crates/api/src/") && start.starts_with("///");
    line.contains('"') || line.contains("://") || start.starts_with("//! |") || is_described
}

/// Compares every long function with the ratchet list, both ways.
pub(super) fn check_ratchet(tree: &Tree) -> Vec<Finding> {
    let mut listed = Vec::new();
    let mut findings = Vec::new();
    for (index, line) in tree.ratchet.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [] => {}
            [word, ..] if word.starts_with('#') => {}
            [path, name, lines] => match lines.parse::<usize>() {
                Ok(lines) => listed.push((path, name, lines, index + 1)),
                Err(_) => {
                    findings.push(Finding::new(RATCHET, index + 1, "ratchet", "the length is no number"))
                }
            },
            _ => findings.push(Finding::new(
                RATCHET,
                index + 1,
                "ratchet",
                "a line is: path, function, length",
            )),
        }
    }
    for source in tree.sources.iter().filter(|source| !source.is_test) {
        let functions = source.scan.iter().flat_map(|scan| &scan.functions);
        for function in
            functions.filter(|function| !function.in_test && function.lines() > FUNCTION_LINES_MAX)
        {
            let at =
                listed.iter().position(|(path, name, ..)| *path == source.path && *name == function.name);
            let allowed = at.map(|at| listed.swap_remove(at));
            let (name, lines, line) = (&function.name, function.lines(), function.first_line);
            match allowed {
                None => {
                    let message = format!("{name} has {lines} lines, at most {FUNCTION_LINES_MAX}");
                    findings.push(Finding::new(&source.path, line, "function-length", message));
                }
                Some((.., allowed, _)) if lines > allowed => {
                    let message = format!("{name} grew from {allowed} to {lines} lines");
                    findings.push(Finding::new(&source.path, line, "function-length", message));
                }
                Some((.., allowed, at)) if lines < allowed => {
                    let message = format!("{name} shrank to {lines} lines: write that down");
                    findings.push(Finding::new(RATCHET, at, "ratchet", message));
                }
                Some(_) => {}
            }
        }
    }
    for (_, name, _, at) in listed {
        findings.push(Finding::new(
            RATCHET,
            at,
            "ratchet",
            format!("{name} is not longer than allowed: remove it"),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::findings;
    use super::*;

    fn function(lines: usize) -> String {
        format!("//! X.\nfn long() {{\n{}}}\n", "    a();\n".repeat(lines - 2))
    }

    #[test]
    fn long_functions_files_and_lines_are_found() {
        assert_eq!(findings("a/src/x.rs", &function(70)), Vec::<String>::new());
        assert_eq!(findings("a/src/x.rs", &function(71)), ["2 function-length"]);
        assert_eq!(findings("a/tests/x.rs", &function(71)), Vec::<String>::new());
        let items = "const A: u8 = 1;\n".repeat(499);
        assert_eq!(findings("a/src/x.rs", &format!("//! X.\n{items}")), Vec::<String>::new());
        assert_eq!(findings("a/src/x.rs", &format!("//! X.\n{items}const B: u8 = 1;\n")), ["1 file-length"]);
        let with_tests = format!("//! X.\n{items}#[cfg(test)]\nmod tests {{\n{items}}}\n");
        assert_eq!(findings("a/src/x.rs", &with_tests), Vec::<String>::new());
        let wide = format!("//! X.\n// {}\n", "w".repeat(118));
        assert_eq!(findings("a/src/x.rs", &wide), ["2 width"]);
    }

    #[test]
    fn the_ratchet_only_shrinks() {
        let rules = |lines: usize, ratchet: &str| {
            let text = function(lines);
            let tree = Tree::of(&[("a/src/x.rs", &text), (RATCHET, ratchet)]);
            check_ratchet(&tree).iter().map(|finding| finding.message.clone()).collect::<Vec<_>>()
        };
        assert_eq!(rules(80, "# why\na/src/x.rs long 80\n"), Vec::<String>::new());
        assert_eq!(rules(81, "a/src/x.rs long 80\n"), ["long grew from 80 to 81 lines"]);
        assert_eq!(rules(79, "a/src/x.rs long 80\n"), ["long shrank to 79 lines: write that down"]);
        assert_eq!(rules(60, "a/src/x.rs long 80\n"), ["long is not longer than allowed: remove it"]);
        assert_eq!(rules(60, "a/src/x.rs long\n"), ["a line is: path, function, length"]);
    }
}
