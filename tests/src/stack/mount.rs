//! A small file system in a stack's folder, to be filled.

use std::path::Path;

use anyhow::Context;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mounts a file system of `mib` MiB.
pub(super) fn tmpfs(at: &Path, mib: u64) -> anyhow::Result<()> {
    std::fs::create_dir_all(at)?;
    let options = format!("size={mib}m,mode=700");
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("mounting {}", at.display()))
}

/// Unmounts it, if it is there.
pub(super) fn remove(at: &Path) {
    let _ = umount2(at, MntFlags::MNT_DETACH);
}
