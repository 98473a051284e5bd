//! The tour of quickstart holds, step by step, and nothing is left of it.

use roost_tests::quickstart::interrupt::Interrupt;
use roost_tests::stack::{Allowed, Stack, Wish};
use roost_tests::tour;
use roost_tests::upstream::Upstream;

#[test]
fn vm_tour_holds() {
    let upstream = Upstream::start().unwrap();
    let stack =
        Stack::for_test_with("tour", &Wish { upstream: Some(Allowed::from(&upstream)), ..Wish::default() })
            .unwrap();
    tour::run(&stack, &upstream, &Interrupt::catch().unwrap()).unwrap();
    stack.finish().unwrap();
}
