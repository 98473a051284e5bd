//! The edge role: bytes to guests, from the scheduler, the operator and browsers.
//!
//! Holds TLS keys and public token keys, no secrets of tenants.

mod handler;
mod metrics;
mod network;
mod ports;
pub mod preview;
mod run;

pub use handler::EdgeHandler;
pub use ports::Ports;
pub use run::{Error, run};
