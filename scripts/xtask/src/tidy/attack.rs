//! Each row of the attack checklist (placeholders, exfiltration, destinations, protocols, isolation) has a test that
//! carries its id in its name, like `c13_…` or `d1_to_d5_…`; a row without one stands below, with the reason.
//!
//! A function of a test counts as well as a test: one that nobody calls does not compile here. What the test proves is
//! for people to judge.

use std::collections::BTreeSet;

use super::Finding;
use super::source::Tree;

/// Letters of the checklist and how many rows each has.
const ROWS: [(char, u32); 5] = [('a', 20), ('b', 15), ('c', 20), ('d', 26), ('e', 18)];

/// Rows nothing is tested for, and why.
const UNTESTED: &[(&str, &str)] = &[
    ("a15", "a credential replaces a placeholder; there is no mode in which one is added"),
    ("b9", "known residual: whoever guesses the whole value can tell by the length that it was taken out"),
    ("b10", "known residual: a permitted host may keep what a permitted header brings"),
    ("b12", "no query is a slot, which a2 tries"),
    ("b13", "there is no OAuth on behalf of end-users yet"),
    ("b14", "nothing is unpacked: packed answers to requests with a credential are refused, which b3 tries"),
    ("c17", "the TLS library has no older version than 1.2 and no null cipher"),
    ("d14", "the HTTP/2 library bounds its tables; nobody has tried it from here yet"),
    (
        "d23",
        "the TLS library neither renegotiates nor takes early data; sessions are of one execution and name",
    ),
    ("d26", "the HTTP library takes no line ends in values"),
    ("e13", "rows and limits carry the execution, whose id is never used again"),
    ("e14", "a matter of latencies under load, which the benches measure"),
    ("e17", "nobody but root may trace a process that cannot be dumped; nobody has tried it from here yet"),
    ("e18", "nobody has paused a sandbox with an open call from here yet"),
];

const FILE: &str = "scripts/xtask/src/tidy/attack.rs";

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let tested = find_tested(tree);
    let mut findings = Vec::new();
    let mut complain = |message| findings.push(Finding::new(FILE, 1, "attack", message));
    for (letter, count) in ROWS {
        for number in 1..=count {
            let id = format!("{letter}{number}");
            let is_excused = UNTESTED.iter().any(|(excused, _)| *excused == id);
            match (tested.contains(&id), is_excused) {
                (false, false) => {
                    complain(format!("no test carries {id} in its name, and no reason is given"))
                }
                (true, true) => complain(format!("{id} has a test by now: take it off the list")),
                _ => {}
            }
        }
    }
    findings
}

/// The ids in the names of all test code.
fn find_tested(tree: &Tree) -> BTreeSet<String> {
    let mut tested = BTreeSet::new();
    for source in &tree.sources {
        let Some(scan) = &source.scan else { continue };
        for function in scan.functions.iter().filter(|function| source.is_test || function.in_test) {
            tested.extend(ids(&function.name));
        }
    }
    tested
}

/// The ids a name begins with, after the `vm_` of tests that boot one: `c6_c7_…`, `d1_to_d5_…`.
fn ids(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut words = name.strip_prefix("vm_").unwrap_or(name).split('_');
    let mut last: Option<(char, u32)> = None;
    while let Some(word) = words.next() {
        match (word, id(word), last) {
            ("to", None, Some((letter, from))) => match words.next().and_then(id) {
                Some((_, to)) => found.extend((from + 1..=to).map(|number| format!("{letter}{number}"))),
                None => break,
            },
            (_, Some((letter, number)), _) => {
                found.push(format!("{letter}{number}"));
                last = Some((letter, number));
            }
            _ => break,
        }
    }
    found
}

fn id(word: &str) -> Option<(char, u32)> {
    let letter = word.chars().next().filter(|letter| ('a'..='e').contains(letter))?;
    Some((letter, word[1..].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_from_the_beginning_of_a_name() {
        assert_eq!(ids("c6_c7_streams"), ["c6", "c7"]);
        assert_eq!(ids("d1_to_d4_probes"), ["d1", "d2", "d3", "d4"]);
        assert_eq!(ids("vm_a20_a_secret_is_nowhere"), ["a20"]);
        for name in ["a_name", "to_a1", "f7_rows", "answers_a1", "b", "vm_boots"] {
            assert_eq!(ids(name), Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn a_row_without_a_test_is_found_and_so_is_a_reason_that_is_none() {
        let every: String = ROWS
            .iter()
            .flat_map(|(letter, count)| (1..=*count).map(move |number| format!("{letter}{number}")))
            .filter(|id| !UNTESTED.iter().any(|(excused, _)| excused == id))
            .map(|id| format!("fn {id}_is_tried() {{}}\n"))
            .collect();
        let of = |text: &str| check(&Tree::of(&[("agent/tests/every.rs", text)]));
        assert_eq!(of(&every), []);
        let without = of(&every.replace("fn c13_", "fn x13_"));
        assert_eq!(without.len(), 1);
        assert!(without[0].message.contains("c13"), "{without:?}");
        let (excused, _) = UNTESTED[0];
        let stale = of(&format!("{every}fn {excused}_is_tried() {{}}"));
        assert!(stale[0].message.contains("take it off"), "{stale:?}");
        // Product code with such a name proves nothing.
        let product = check(&Tree::of(&[("agent/src/every.rs", &format!("//! X.\n{every}"))]));
        assert!(product.len() > 50);
    }
}
