//! The tenant REST API's types: what a request may hold and what an answer looks like, and the committed
//! document.
//!
//! Owns shapes and their JSON spelling. Must not decide anything: limits, defaults that depend on a tenant
//! and every check live in the scheduler. A request type that grants something refuses unknown fields; the
//! others ignore them, because clients send fields of features this server does not have.

#![forbid(unsafe_code)]

pub mod audit;
pub mod envelope;
pub mod event;
pub mod exec;
pub mod file;
pub mod key;
mod object;
pub mod preview;
pub mod process;
pub mod quota;
pub mod sandbox;
pub mod secret;
pub mod sensitive;
pub mod settings;
pub mod template;
pub mod timestamp;
pub mod usage;
pub mod variable;
pub mod workspace;

pub use envelope::{Data, ErrorBody, ErrorEnvelope, List, Page};
pub use sensitive::{OneTime, Sensitive};
pub use timestamp::Timestamp;

/// The committed OpenAPI document; a test keeps it equal to what the router generates.
pub const OPENAPI_JSON: &str = include_str!("../openapi.json");
