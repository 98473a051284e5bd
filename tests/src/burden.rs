//! What a process holds of the machine: memory and descriptors, as the kernel counts them.

use anyhow::Context;
use nix::unistd::Pid;

/// A reading, to be compared with a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burden {
    pub resident_kib: u64,
    pub descriptors: usize,
}

impl Burden {
    pub fn of(pid: Pid) -> anyhow::Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("process {pid} is not there"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let text =
            line.and_then(|line| line.split_whitespace().next()).context("a process without memory")?;
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok(Self { resident_kib: text.parse()?, descriptors })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_descriptors_are_seen_to_grow() {
        let before = Burden::of(Pid::this()).unwrap();
        let memory = vec![1_u8; 64 << 20];
        let files: Vec<_> = (0..32).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let after = Burden::of(Pid::this()).unwrap();
        assert!(after.resident_kib >= before.resident_kib + (48 << 10), "{before:?} {after:?}");
        assert!(after.descriptors >= before.descriptors + 24, "{before:?} {after:?}");
        drop((memory, files));
    }
}
