//! The checked connector: resolves a host, checks every address against the deny floor, dials only checked ones.
//!
//! The only code that resolves and dials for guests, webhooks and OAuth (a lint bans it elsewhere). Follows
//! nothing, retries nothing, knows no tenant's policy: whoever calls has permitted the host already.
//!
//! ```text
//! host, port ─▶ name allowed? ─▶ resolve ─▶ every address allowed? ─▶ dial in turn ─▶ peer is what was dialled?
//! ```

#![forbid(unsafe_code)]

mod connector;
mod dialler;
mod order;
mod resolver;

pub use connector::{Connector, Error, FixedHost, Settings, Timeouts};
pub use dialler::{Dial, TcpDialler};
pub use resolver::{Resolve, SystemResolver};
