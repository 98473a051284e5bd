//! What every daemon needs and nothing of the domain: configuration, telemetry, health, shutdown, clock, ids, secrecy
//! of its memory.

#![forbid(unsafe_code)]

pub mod clock;
pub mod config;
pub mod dumps;
pub mod health;
pub mod ids;
pub mod packet;
pub mod shutdown;
pub mod telemetry;
