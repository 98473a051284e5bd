//! The scheduler: tenants, desired state, placement, the vault, usage, and the tenant API over them.
//!
//! `http` (thin) → `app` (one function per operation) → `placement`, `fleet`, `secret`, `usage`, `audit` → `store`.
//! No SQL above `store`, no HTTP below `http`; `secret` is the only module that opens a stored value.

#![forbid(unsafe_code)]

pub mod admin;
pub mod app;
pub mod audit;
pub mod config;
pub mod fleet;
pub mod http;
pub mod listen;
mod metrics;
pub mod pki;
pub mod secret;
pub mod serve;
pub mod store;
pub mod sweep;
pub mod usage;
