//! Previews: what a sandbox serves on a port, for browsers.

mod credential;
mod hygiene;
mod page;
mod verify;
