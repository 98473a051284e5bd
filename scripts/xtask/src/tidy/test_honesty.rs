//! Tests that prove something: certificates are verified, and nothing waits by sleeping.
//!
//! A fake that is slow because slowness is what the test is about says so: a comment with "on purpose" above it.

use super::Finding;
use super::source::Source;

pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    // The rules and their samples name what they forbid.
    if source.path.starts_with("scripts/xtask/src/") {
        return findings;
    }
    for (index, line) in source.text.lines().enumerate() {
        if let Some(bypass) = find_bypass(&source.path, line) {
            let message = format!("\"{bypass}\" switches verification off; pass the right roots");
            findings.push(Finding::new(&source.path, index + 1, "tls-bypass", message));
        }
    }
    if let Some(scan) = &source.scan {
        for word in scan.find(&["sleep", "("]).chain(scan.find(&["sleep_until", "("])) {
            let is_meant = || is_on_purpose(&source.text, word.line);
            if (source.is_test || word.in_test) && !word.in_loop && !is_meant() {
                let message = "a test polls with a deadline; a fake that is slow says \"on purpose\" above";
                findings.push(Finding::new(&source.path, word.line, "bare-sleep", message));
            }
        }
    }
    if source.is_test && source.path.ends_with(".py") {
        findings.extend(python_sleeps(source));
    }
    findings
}

/// Whether the line above, or the same line, explains the sleep.
fn is_on_purpose(text: &str, line: usize) -> bool {
    let mut lines = text.lines().skip(line.saturating_sub(2)).take(2);
    lines.any(|line| {
        line.split_once("//").is_some_and(|(_, comment)| comment.to_lowercase().contains("on purpose"))
    })
}

fn find_bypass(path: &str, line: &str) -> Option<&'static str> {
    const ANYWHERE: &[&str] = &[
        "--insecure",
        "verify=False",
        "verify = False",
        "danger_accept_invalid",
        "CERT_NONE",
        "check_hostname = False",
        "NODE_TLS_REJECT_UNAUTHORIZED",
        "--no-check-certificate",
        "sslVerify=false",
        "SSL_VERIFY_NONE",
    ];
    // Documents say what must not be done.
    if path.ends_with(".md") {
        return None;
    }
    ANYWHERE
        .iter()
        .find(|bypass| line.contains(**bypass))
        .copied()
        .or_else(|| curl_without_verification(line))
}

/// `curl -k`, `curl -sk`, …: up to the end of that command.
fn curl_without_verification(line: &str) -> Option<&'static str> {
    let (_, after) = line.split_once("curl")?;
    let command = after.split(['|', ';', '&', '>']).next().unwrap_or_default();
    let is_short = |word: &&str| word.starts_with('-') && !word.starts_with("--") && !word.contains('=');
    let has_k = |word: &str| word[1..].chars().take_while(char::is_ascii_alphabetic).any(|char| char == 'k');
    let mut words =
        command.split(|char: char| char.is_whitespace() || matches!(char, '"' | '\'' | ',' | '[' | ']'));
    words.find(|word| is_short(word) && has_k(word)).map(|_| "curl -k")
}

/// `time.sleep` that no `while` or `for` with a smaller indent stands above.
fn python_sleeps(source: &Source) -> Vec<Finding> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let lines: Vec<&str> = source.text.lines().collect();
    let mut findings = Vec::new();
    for (index, line) in
        lines.iter().enumerate().filter(|(_, line)| line.trim_start().starts_with("time.sleep("))
    {
        let mut depth = indent(line);
        let mut in_loop = false;
        for above in lines[..index].iter().rev().filter(|above| !above.trim().is_empty()) {
            if indent(above) < depth {
                depth = indent(above);
                in_loop |= above.trim_start().starts_with("while ") || above.trim_start().starts_with("for ");
            }
        }
        if !in_loop {
            let message = "a test polls with a deadline and does not just sleep";
            findings.push(Finding::new(&source.path, index + 1, "bare-sleep", message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::findings;

    #[test]
    fn switched_off_verification_is_found() {
        for (path, text, expected) in [
            ("tests/x.sh", "curl -sk https://a\n", 1),
            ("tests/x.sh", "curl --insecure https://a\n", 1),
            ("tests/x.sh", "curl -fsS --cacert ca https://a | sort -k 2\n", 0),
            ("tests/x.sh", "curl -fsS https://a\n", 0),
            ("tests/x.py", "httpx.get(u, verify=False)\n", 1),
            ("tests/x.py", "run([\"curl\", \"-k\", u])\n", 1),
            ("tests/x.md", "never `curl --insecure`\n", 0),
        ] {
            let found = findings(path, text);
            let wanted = if expected == 1 { vec!["1 tls-bypass".to_owned()] } else { vec![] };
            assert_eq!(found, wanted, "{text}");
        }
        let rust = "//! X.\nfn x(c: C) { c.danger_accept_invalid_certs(true); }\n";
        assert_eq!(findings("tests/tests/x.rs", rust), ["2 tls-bypass"]);
    }

    #[test]
    fn bare_sleeps_are_found() {
        let bare = "//! X.\nasync fn x() { tokio::time::sleep(D).await; }\n";
        assert_eq!(findings("tests/tests/x.rs", bare), ["2 bare-sleep"]);
        assert_eq!(findings("agent/src/x.rs", bare), Vec::<String>::new());
        let inline = "//! X.\n#[test]\nfn x() { std::thread::sleep(D); }\n";
        assert_eq!(findings("agent/src/x.rs", inline), ["3 bare-sleep"]);
        let meant = bare.replace("async", "// Slow on purpose: the caller gives up first.\nasync");
        assert_eq!(findings("tests/tests/x.rs", &meant), Vec::<String>::new());
        let polling = "//! X.\nasync fn x() { while !done() { tokio::time::sleep(D).await; } }\n";
        assert_eq!(findings("tests/tests/x.rs", polling), Vec::<String>::new());
        assert_eq!(findings("tests/x.py", "def f():\n    time.sleep(3)\n"), ["2 bare-sleep"]);
        let polling =
            "def f():\n    while not done():\n        if x:\n            y()\n        time.sleep(0.1)\n";
        assert_eq!(findings("tests/x.py", polling), Vec::<String>::new());
    }
}
