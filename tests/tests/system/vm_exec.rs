//! What `exec` promises: every byte, the exit code, input, and that it ends when the shell ends.

use std::time::{Duration, Instant};

use roost_tests::stack::Stack;

#[test]
fn vm_exec_ends_with_the_shell_and_keeps_every_line() {
    let stack = Stack::for_test("exec").unwrap();
    let agent = stack.agent().unwrap();
    let id = agent.run().unwrap();

    // A child in the background keeps the output open; only the shell counts.
    let begun = Instant::now();
    let outcome = agent.shell(&id, "seq 200000; (sleep 60 &)").unwrap();
    let took = begun.elapsed();
    assert_eq!(outcome.code, 0, "{}", outcome.complaint());
    let text = outcome.text();
    assert_eq!(text.lines().count(), 200_000);
    let in_order = text.lines().enumerate().all(|(index, line)| line == (index + 1).to_string());
    assert!(in_order, "lines are missing, doubled or reordered");
    assert!(took < Duration::from_secs(30), "it waited for the background child: {took:?}");
    assert_eq!(agent.shell_text(&id, "pgrep -c sleep").unwrap(), "1", "the background child must live on");

    for code in [0, 1, 42, 255] {
        assert_eq!(agent.shell(&id, &format!("exit {code}")).unwrap().code, code);
    }
    assert_eq!(agent.shell(&id, "kill -9 $$").unwrap().code, 137);

    let outcome = agent.shell(&id, "echo out; echo err >&2").unwrap();
    assert_eq!((outcome.text(), outcome.complaint()), ("out".to_owned(), "err".to_owned()));

    let outcome = agent.call(&["exec", &id, "--", "printf", "%s|", "a b", "$HOME", "*"], b"").unwrap();
    assert_eq!(outcome.text(), "a b|$HOME|*|", "arguments are not shell text");

    let outcome = agent.call(&["exec", &id, "--", "/no/such/program"], b"").unwrap();
    assert!(matches!(outcome.code, 126 | 127), "{} {}", outcome.code, outcome.complaint());

    let outcome = agent.call(&["exec", "--timeout-s", "1", "--shell", &id, "sleep 30"], b"").unwrap();
    assert_ne!(outcome.code, 0);
    assert!(outcome.took < Duration::from_secs(15), "the time limit did not hold: {:?}", outcome.took);
    stack.finish().unwrap();
}

#[test]
fn vm_exec_passes_input_through() {
    let stack = Stack::for_test("input").unwrap();
    let agent = stack.agent().unwrap();
    let id = agent.run().unwrap();

    let bytes: Vec<u8> =
        (0..1_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let outcome = agent.call(&["exec", "-i", &id, "--", "cat"], &bytes).unwrap();
    assert_eq!(outcome.code, 0, "{}", outcome.complaint());
    assert!(
        outcome.stdout == bytes,
        "{} of {} bytes came back, or changed",
        outcome.stdout.len(),
        bytes.len()
    );

    let outcome = agent.call(&["exec", &id, "--", "cat"], b"not passed").unwrap();
    assert_eq!((outcome.code, outcome.text().as_str()), (0, ""), "without -i there is no input");
    stack.finish().unwrap();
}
