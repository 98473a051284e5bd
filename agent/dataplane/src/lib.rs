//! The unprivileged half of a host: two roles of one binary, each a process of its own with its own uid.
//!
//! `egress` handles bytes *from* guests, `edge` bytes *to* guests; both are given their sockets by the agent over
//! [`control`] and work under [`confine`]. Depends on no agent module and on no store; forbids unsafe code and
//! starts no process.

#![forbid(unsafe_code)]

pub mod config;
pub mod confine;
pub mod control;
pub mod directory;
pub mod edge;
pub mod egress;
mod from_files;
pub mod guest;
pub mod identity;
