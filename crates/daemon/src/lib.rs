//! See the crate name; contents follow.
