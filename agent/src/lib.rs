//! The agent of one host: boots, snapshots, meters and reports sandboxes in microVMs.
//!
//! Runs as root and therefore parses no byte that a guest or a browser wrote, and never dials a guest. Depends
//! downwards only: `link → sandbox → {vmm, image, snapshot, meter, plane} → {host, store}`.

pub mod capacity;
pub mod config;
pub mod host;
pub mod image;
pub mod plane;
pub mod snapshot;
pub mod vmm;
