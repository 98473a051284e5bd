//! Egress over real sockets: a guest in a namespace of its own behind the same rules as a real tap, the real
//! redirected listener and DNS socket, and upstreams that listen on public addresses in a third namespace.
//!
//! Test names begin with the id of the case in the attack checklist.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests are the guest and the upstream, and build namespaces with tools"
)]

mod lab;
#[path = "../support/mod.rs"]
mod support;

mod connection;
mod credentials;
mod dns;
mod fleet;
mod frames;
mod hoard;
mod http;
mod isolation;
mod lifecycle;
mod process;
mod scrub;
mod shipping;
mod smuggling;
mod tls;
mod websocket;
