//! Randomness from the host: a restored guest continues with the generator of its snapshot until it is reseeded.

use std::fs::OpenOptions;

use crate::sys;

pub const BYTES_MIN: usize = 32;
pub const BYTES_MAX: usize = 512;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the host gave {0} bytes of entropy, not {BYTES_MIN} to {BYTES_MAX}")]
    Length(usize),
    #[error("cannot reseed the kernel's random generator")]
    Reseed(#[source] std::io::Error),
}

pub fn check(bytes: &[u8]) -> Result<(), Error> {
    if (BYTES_MIN..=BYTES_MAX).contains(&bytes.len()) { Ok(()) } else { Err(Error::Length(bytes.len())) }
}

/// Mixes the bytes into the kernel's pool and makes it draw from there at once.
pub fn reseed(bytes: &[u8]) -> Result<(), Error> {
    check(bytes)?;
    let random = OpenOptions::new().write(true).open("/dev/urandom").map_err(Error::Reseed)?;
    sys::add_entropy(&random, bytes).map_err(Error::Reseed)
}
