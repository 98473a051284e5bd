//! roost-init: PID 1 of a Roost guest.
//!
//! Boots the guest (`boot`, `mount`, `net`), answers the host (`server`, `service`, `guest`, `claim`) and does what
//! it asks (`exec`, `reap`, `file`, `watch`, `forward`). Nothing on the host relies on what it says: root in the
//! guest owns it. It must not resolve names nor look users up through the C library, and must never exit.

pub mod boot;
pub mod claim;
pub mod clock;
pub mod entropy;
pub mod exec;
pub mod file;
pub mod forward;
pub mod guest;
pub mod identity;
pub mod mount;
pub mod net;
pub mod path;
pub mod reap;
mod sabotage;
pub mod server;
pub mod service;
pub mod sys;
pub mod trust;
pub mod user;
pub mod watch;
