//! The whole system under one roof: starts the real binaries, looks at what they leave, takes the tour.
//!
//! Used by `scripts/quickstart` (a person's machine) and by the tests in this package (several stacks at once).
//! Speaks to the product only as its users do: the host CLI, REST, browsers. Depends on no part of the product.

#![forbid(unsafe_code)]

pub mod bench;
pub mod browser;
pub mod burden;
pub mod churn;
pub mod conform;
pub mod crash;
pub mod image;
pub mod poll;
pub mod program;
pub mod python;
pub mod quickstart;
pub mod refusal;
pub mod scan;
pub mod sdk;
pub mod stack;
pub mod tour;
pub mod upstream;

pub use stack::place::binary;
