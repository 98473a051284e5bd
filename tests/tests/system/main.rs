//! The whole system: real binaries, real VMs. One behaviour per file.
//!
//! Needs root, the binaries (`cargo build --workspace --bins`) and an image (`images/build`); `./scripts/test` sees
//! to all of it. Files and tests that boot VMs begin with `vm_`: the test runner runs few of those at once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod bench_egress;
mod cli;
mod vm_bench_create;
mod vm_boot;
mod vm_churn;
mod vm_clients;
mod vm_conform;
mod vm_crash;
mod vm_cut_off;
mod vm_disk_full;
mod vm_egress;
mod vm_exec;
mod vm_hostile;
mod vm_identity;
mod vm_leftover;
mod vm_outage;
mod vm_reboot;
mod vm_refusal;
mod vm_sdk;
mod vm_secret;
mod vm_service;
mod vm_survive;
mod vm_tour;
mod vm_unruly;
