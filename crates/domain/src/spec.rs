//! What a sandbox is made of: sizes, geometry and timers, and which of them are allowed.

use serde::{Deserialize, Serialize};

use crate::text::words;

/// The named sizes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Size {
    #[default]
    Xs,
    Small,
    Medium,
    Large,
    Xl,
}

words!(Size, "size" {
    Xs => "xs",
    Small => "small",
    Medium => "medium",
    Large => "large",
    Xl => "xl",
});

/// CPUs, memory and writable disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Geometry {
    pub vcpus: u32,
    pub memory_mib: u64,
    pub disk_mib: u64,
}

pub const VCPUS_RANGE: std::ops::RangeInclusive<u32> = 1..=32;
pub const MEMORY_MIB_RANGE: std::ops::RangeInclusive<u64> = 128..=65_536;
pub const DISK_MIB_RANGE: std::ops::RangeInclusive<u64> = 64..=1_048_576;

/// Lifetime unless the caller says otherwise; a persistent sandbox is paused after it.
pub const TIMEOUT_S_DEFAULT: u32 = 300;
pub const TIMEOUT_S_MAX: u32 = 30 * 24 * 3600;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("cpu_count is {0}, allowed are 1 to 32")]
    Vcpus(u32),
    #[error("memory_mb is {0}, allowed are 128 to 65536")]
    Memory(u64),
    #[error("disk_size_mb is {0}, allowed are 64 to 1048576")]
    Disk(u64),
    #[error("a geometry of one's own needs cpu_count and memory_mb")]
    Incomplete,
    #[error("size {size} and the geometry given with it differ")]
    Contradiction { size: Size },
    #[error("timeout_sec is {0}, allowed are 1 to {TIMEOUT_S_MAX}")]
    Timeout(u32),
}

impl Size {
    pub const fn geometry(self) -> Geometry {
        let (vcpus, memory_mib, disk_mib) = match self {
            Self::Xs => (1, 2_048, 10_240),
            Self::Small => (2, 4_096, 10_240),
            Self::Medium => (4, 8_192, 20_480),
            Self::Large => (8, 16_384, 40_960),
            Self::Xl => (16, 32_768, 81_920),
        };
        Geometry { vcpus, memory_mib, disk_mib }
    }
}

impl Geometry {
    pub fn check(self) -> Result<Self, Error> {
        if !VCPUS_RANGE.contains(&self.vcpus) {
            return Err(Error::Vcpus(self.vcpus));
        }
        if !MEMORY_MIB_RANGE.contains(&self.memory_mib) {
            return Err(Error::Memory(self.memory_mib));
        }
        if !DISK_MIB_RANGE.contains(&self.disk_mib) {
            return Err(Error::Disk(self.disk_mib));
        }
        Ok(self)
    }

    /// The named size with this geometry, if there is one.
    pub fn find_size(self) -> Option<Size> {
        Size::ALL.iter().copied().find(|size| size.geometry() == self)
    }

    /// What a create call asks for: a size, numbers, both if they agree, or nothing for the default size.
    pub fn choose(
        size: Option<Size>,
        vcpus: Option<u32>,
        memory_mib: Option<u64>,
        disk_mib: Option<u64>,
    ) -> Result<Self, Error> {
        let base = match (size, vcpus, memory_mib) {
            (Some(size), _, _) => size.geometry(),
            (None, None, None) => Size::default().geometry(),
            (None, Some(vcpus), Some(memory_mib)) => {
                // The disk of the smallest size that has both, unless given.
                let fits =
                    |size: &&Size| size.geometry().vcpus >= vcpus && size.geometry().memory_mib >= memory_mib;
                let size = Size::ALL.iter().find(fits).copied().unwrap_or(Size::Xl);
                Self { vcpus, memory_mib, disk_mib: size.geometry().disk_mib }
            }
            (None, _, _) => return Err(Error::Incomplete),
        };
        let differs = vcpus.is_some_and(|vcpus| vcpus != base.vcpus)
            || memory_mib.is_some_and(|memory_mib| memory_mib != base.memory_mib);
        match size {
            Some(size) if differs => Err(Error::Contradiction { size }),
            _ => Self { disk_mib: disk_mib.unwrap_or(base.disk_mib), ..base }.check(),
        }
    }
}

pub fn check_timeout_s(timeout_s: u32) -> Result<u32, Error> {
    if (1..=TIMEOUT_S_MAX).contains(&timeout_s) { Ok(timeout_s) } else { Err(Error::Timeout(timeout_s)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_contract() {
        let table: Vec<_> = Size::ALL
            .iter()
            .map(|size| (size.text(), size.geometry().vcpus, size.geometry().memory_mib))
            .collect();
        assert_eq!(
            table,
            [
                ("xs", 1, 2048),
                ("small", 2, 4096),
                ("medium", 4, 8192),
                ("large", 8, 16384),
                ("xl", 16, 32768)
            ]
        );
        for size in Size::ALL {
            assert_eq!(size.geometry().check(), Ok(size.geometry()));
            assert_eq!(size.geometry().find_size(), Some(*size));
        }
    }

    #[test]
    fn what_a_create_call_may_say() {
        let xs = Size::Xs.geometry();
        assert_eq!(Geometry::choose(None, None, None, None), Ok(xs));
        assert_eq!(Geometry::choose(Some(Size::Large), None, None, None), Ok(Size::Large.geometry()));
        assert_eq!(Geometry::choose(Some(Size::Xs), Some(1), Some(2048), None), Ok(xs));
        let small_test = Geometry { vcpus: 1, memory_mib: 256, disk_mib: 512 };
        assert_eq!(Geometry::choose(None, Some(1), Some(256), Some(512)), Ok(small_test));
        assert_eq!(Geometry::choose(None, Some(4), Some(4096), None).unwrap().disk_mib, 20_480);
        assert_eq!(Geometry::choose(None, None, None, Some(2_000)).unwrap().disk_mib, 2_000);
    }

    #[test]
    fn what_it_may_not() {
        assert_eq!(Geometry::choose(None, Some(1), None, None), Err(Error::Incomplete));
        assert_eq!(
            Geometry::choose(Some(Size::Xs), Some(2), None, None),
            Err(Error::Contradiction { size: Size::Xs })
        );
        assert_eq!(Geometry::choose(None, Some(0), Some(256), None), Err(Error::Vcpus(0)));
        assert_eq!(Geometry::choose(None, Some(33), Some(256), None), Err(Error::Vcpus(33)));
        assert_eq!(Geometry::choose(None, Some(1), Some(64), None), Err(Error::Memory(64)));
        assert_eq!(Geometry::choose(None, Some(1), Some(256), Some(1)), Err(Error::Disk(1)));
        assert_eq!(check_timeout_s(0), Err(Error::Timeout(0)));
        assert_eq!(check_timeout_s(86_400), Ok(86_400));
    }
}
