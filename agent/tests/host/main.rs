//! The host layer and QEMU on this machine: needs root, QEMU, nftables and a built image.
//!
//! Every test has an instance of its own, so that nothing it makes can be taken for something else's, and a
//! guard that removes all of it, also when the test fails.

#![allow(clippy::expect_used)]

mod scratch;

mod cgroup;
mod network;
mod process;
mod reclaim;
mod vm;
