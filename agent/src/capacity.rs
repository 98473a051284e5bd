//! How much of this machine sandboxes may use.

use std::path::Path;

use crate::config::Config;
use crate::host::file;

/// Kept for the host itself.
const RESERVE_MEMORY_MIB: u64 = 1024;
const RESERVE_DISK_MIB: u64 = 4096;

/// What may be reserved for sandboxes, overcommit applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    pub memory_mib: u64,
    pub disk_mib: u64,
    pub vcpus: u32,
}

/// Why the machine could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading how much memory the machine has")]
    Memory(#[from] nix::errno::Errno),
    #[error("reading how large the state directory's file system is")]
    Disk(#[from] file::Error),
    #[error("[capacity] {key} = {value} is not a factor from 0.1 to 64")]
    Overcommit { key: &'static str, value: f64 },
}

/// What the configuration says, or what is there less a reserve.
pub fn budget(config: &Config) -> Result<Budget, Error> {
    let capacity = &config.capacity;
    let memory_mib = match capacity.memory_mib {
        0 => (nix::sys::sysinfo::sysinfo()?.ram_total() >> 20).saturating_sub(RESERVE_MEMORY_MIB),
        configured => configured,
    };
    let disk_mib = match capacity.disk_mib {
        0 => available_mib(&config.state_dir)?.saturating_sub(RESERVE_DISK_MIB),
        configured => configured,
    };
    Ok(Budget {
        memory_mib: scaled(memory_mib, "memory_overcommit", capacity.memory_overcommit)?,
        disk_mib: scaled(disk_mib, "disk_overcommit", capacity.disk_overcommit)?,
        vcpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
    })
}

fn available_mib(path: &Path) -> Result<u64, Error> {
    Ok(file::space(path)?.available_bytes >> 20)
}

fn scaled(value: u64, key: &'static str, factor: f64) -> Result<u64, Error> {
    if !(0.1..=64.0).contains(&factor) {
        return Err(Error::Overcommit { key, value: factor });
    }
    Ok((value as f64 * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overcommit_is_bounded() {
        assert_eq!(scaled(1000, "memory_overcommit", 8.0).unwrap(), 8000);
        for factor in [0.0, -1.0, 65.0, f64::NAN, f64::INFINITY] {
            assert!(scaled(1, "memory_overcommit", factor).is_err(), "{factor}");
        }
    }
}
