//! What a run of tests says about a defence. Pure: judges an exit code and the words of nextest.

/// How a run of nextest ended.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    /// None if a signal ended it.
    pub(super) code: Option<i32>,
    pub(super) output: String,
}

/// nextest's exit code for "tests were run and some failed".
const TESTS_FAILED: i32 = 100;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The test failed by an assertion, which said this.
    Caught { said: String },
    /// The test passes although the defence is off.
    NotCaught,
    /// It did not fail as a test does that notices something: nothing is proven.
    Unclear { why: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    run: usize,
    failed: usize,
}

impl Verdict {
    pub(super) fn of(ended: &Ended) -> Self {
        let unclear = |why: &str| Self::Unclear { why: format!("{why}\n{}", ended.output) };
        match (ended.code, counts(&ended.output)) {
            (Some(0), Some(Counts { run: 1.., failed: 0 })) => Self::NotCaught,
            (Some(TESTS_FAILED), Some(Counts { run: 1.., failed: 1.. })) => match assertion(&ended.output) {
                Some(said) => Self::Caught { said },
                None => unclear("the test failed, but by no assertion"),
            },
            (Some(TESTS_FAILED), Some(_)) => unclear("the test was ended by its time limit or a signal"),
            (Some(code), _) => unclear(&format!("the tests were not run (nextest exited with {code})")),
            (None, _) => unclear("nextest was ended by a signal"),
        }
    }

    pub(super) fn words(&self) -> (&'static str, &str) {
        match self {
            Self::Caught { said } => ("caught", said),
            Self::NotCaught => ("NOT CAUGHT", "the test passes with the defence switched off"),
            Self::Unclear { why } => ("UNCLEAR", why),
        }
    }
}

/// Whether every test was run and passed.
pub(super) fn check_control(ended: &Ended, tests: usize) -> Result<(), String> {
    match (ended.code, counts(&ended.output)) {
        (Some(0), Some(counts)) if counts == (Counts { run: tests, failed: 0 }) => Ok(()),
        (Some(0), counts) => Err(format!("{} of {tests} tests exist", counts.map_or(0, |counts| counts.run))),
        (code, _) => Err(format!("nextest exited with {code:?}")),
    }
}

/// From `Summary [   0.107s] 1 test run: 0 passed, 1 failed, 63 skipped`.
fn counts(output: &str) -> Option<Counts> {
    let line = output.lines().rev().find(|line| line.trim_start().starts_with("Summary ["))?;
    let (_, counted) = line.split_once("] ")?;
    let (run, ends) = counted.split_once(" run: ")?;
    // "2/3 tests" if it stopped early.
    let run = run.split([' ', '/']).next()?.parse().ok()?;
    let failed = ends.split(", ").find_map(|part| part.strip_suffix(" failed")?.parse().ok());
    Some(Counts { run, failed: failed.unwrap_or(0) })
}

/// The message of the first panic.
fn assertion(output: &str) -> Option<String> {
    let mut lines = output.lines().skip_while(|line| !line.contains(" panicked at "));
    let place = lines.next()?.split_once(" panicked at ")?.1.trim().trim_end_matches(':');
    let message: Vec<&str> = lines
        .map(str::trim)
        .skip_while(|line| line.is_empty())
        .take_while(|line| !line.is_empty() && !line.starts_with("note: "))
        .take(3)
        .collect();
    let (text, shown) = (message.join(" "), 160);
    Some(format!("{place}: {}", text.chars().take(shown).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: &str = "     Summary [   0.010s] 1 test run: 1 passed, 63 skipped\n";
    const FAILED: &str = "        FAIL [   0.008s] (1/1) roost-domain address::tests::x\n\
        thread 'address::tests::x' (17) panicked at crates/domain/src/address/tests.rs:7:5:\n\
        assertion failed: refused\n\
        note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n\
        \x20    Summary [   0.107s] 1 test run: 0 passed, 1 failed, 63 skipped\n";

    fn verdict(code: Option<i32>, output: &str) -> Verdict {
        Verdict::of(&Ended { code, output: output.to_owned() })
    }

    #[test]
    fn only_a_failed_assertion_is_a_catch() {
        let said = "crates/domain/src/address/tests.rs:7:5: assertion failed: refused".to_owned();
        assert_eq!(verdict(Some(100), FAILED), Verdict::Caught { said });
        assert_eq!(verdict(Some(0), PASSED), Verdict::NotCaught);
        let no_tests = "     Summary [   0.000s] 0 tests run: 0 passed, 64 skipped\n";
        let timed_out = "     Summary [  60.0s] 1 test run: 0 passed, 1 timed out, 63 skipped\n";
        let aborted = "    SIGABRT [   0.1s] x\n     Summary [   0.1s] 1 test run: 0 passed, 1 failed\n";
        for (code, output) in [
            (Some(0), no_tests),
            (Some(0), ""),
            (Some(4), no_tests),
            (Some(100), timed_out),
            (Some(100), aborted),
            (Some(100), ""),
            (Some(101), "error: could not compile"),
            (None, FAILED),
        ] {
            assert!(matches!(verdict(code, output), Verdict::Unclear { .. }), "{code:?} {output}");
        }
    }

    #[test]
    fn the_control_is_every_test_passed() {
        let control = |code, output: &str, tests| {
            check_control(&Ended { code, output: output.to_owned() }, tests).is_ok()
        };
        assert!(control(Some(0), PASSED, 1));
        assert!(!control(Some(0), PASSED, 2), "a test of the table does not exist");
        assert!(!control(Some(100), FAILED, 1));
        assert!(!control(Some(4), "", 0));
        let many = "     Summary [   1.2s] 44 tests run: 44 passed (1 slow), 9 skipped\n";
        assert!(control(Some(0), many, 44));
    }
}
