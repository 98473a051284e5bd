//! The tenant API over a real store (SQLite; what competes runs on PostgreSQL too) and a host that is not there:
//! its two gRPC services answer from this process, over the fleet's own mutual TLS, and run commands in a
//! directory.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, unreachable_pub)]

mod bad_input;
mod conform;
mod damage;
#[path = "../suite/engines.rs"]
mod engines;
mod events;
mod fault;
mod guest;
mod host;
mod idempotency;
mod lease;
mod pair;
mod previews;
mod quota;
mod race;
mod sandboxes;
mod sdk;
mod secrets;
mod states;
mod tenancy;
mod tour;
mod usage;
mod world;
