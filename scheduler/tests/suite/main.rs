//! The scheduler's component tests: real SQLite, real PostgreSQL, real TLS sockets.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, unreachable_pub)]

mod engines;
mod gate;
mod join;
mod leases;
mod operator;
mod pace;
mod reports;
mod rows;
mod sealing;
mod store;
mod transactions;
mod vault;
mod world;
