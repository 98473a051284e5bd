//! The agent of one host: boots, snapshots, meters and reports sandboxes in microVMs.
//!
//! Runs as root and therefore parses no byte that a guest or a browser wrote, and never dials a guest. Depends
//! downwards only: `link → sandbox → {vmm, image, snapshot, meter, plane} → {host, store}`.

pub mod capacity;
pub mod cli;
pub mod config;
mod doctor;
pub mod host;
pub mod image;
pub mod link;
pub mod meter;
pub mod plane;
pub mod sandbox;
pub mod serve;
pub mod snapshot;
pub mod store;
pub mod telemetry;
pub mod vmm;
