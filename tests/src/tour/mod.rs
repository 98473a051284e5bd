//! The tour: what Roost does, shown step by step on a running stack.
//!
//! Each step calls the product as its user does, prints the command, checks what came of it and says what that
//! shows. A step that does not hold ends the tour. No step says more than it checked.

mod local;
mod print;

use crate::quickstart::interrupt::Interrupt;
use crate::stack::Stack;
use print::Steps;

/// Walks every step; the first that does not hold is the error.
pub fn run(stack: &Stack, interrupt: &Interrupt) -> anyhow::Result<()> {
    let mut steps = Steps::new(interrupt.clone());
    local::run(stack, &mut steps)?;
    steps.end();
    Ok(())
}
