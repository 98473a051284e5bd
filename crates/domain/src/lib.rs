//! Pure values and functions every component must agree on.
//!
//! No async, no I/O, no clock, no randomness: times and random bytes come in as arguments, so that every
//! rule in here is tested by tables and `proptest` in milliseconds.

#![forbid(unsafe_code)]

pub mod address;
pub mod audit;
pub mod desired;
pub mod duration;
pub mod error_code;
pub mod external_id;
pub mod host_name;
pub mod id;
pub mod lifecycle;
pub mod limits;
pub mod placeholder;
pub mod presets;
pub mod preview_host;
pub mod resolver;
pub mod sabotage;
pub mod slug;
pub mod spec;
pub mod text;
pub mod token;
pub mod usage;

pub use ulid::Ulid;
