//! The harness itself: it sees what is left, and a test that panics leaves nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use roost_tests::stack::Stack;
use roost_tests::stack::leftover::{self, Baseline};

#[test]
fn vm_of_a_test_that_panics_is_swept_away() {
    let baseline = Baseline::take();
    let mut place = None;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let stack = Stack::for_test("panic").unwrap();
        stack.agent().unwrap().run().unwrap();
        let seen = leftover::find(stack.place(), &baseline);
        for kind in ["process", "network namespace", "cgroup", "run directory"] {
            assert!(
                seen.iter().any(|line| line.starts_with(kind)),
                "the check does not see a {kind}: {seen:#?}"
            );
        }
        place = Some(stack.place().clone());
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    let place = place.expect("the stack came up");
    let left = leftover::find(&place, &baseline);
    assert!(left.is_empty(), "left after a panic: {left:#?}");
    assert!(place.log("agent").exists(), "the folder of a failed test is kept");
    std::fs::remove_dir_all(&place.root).unwrap();
}
