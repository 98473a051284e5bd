//! Who owns a stack's folder: a locked file. A folder whose lock is free was left by a process that was killed.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};

use super::leftover;
use super::place::Place;

const FILE: &str = "owner";

/// Held for as long as the stack exists.
#[derive(Debug)]
pub(super) struct Owner {
    _lock: File,
}

/// Makes the folder and takes it; what a killed owner left on the host is removed first.
pub(super) fn claim(place: &Place) -> anyhow::Result<Owner> {
    std::fs::create_dir_all(&place.root).with_context(|| format!("cannot make {}", place.root.display()))?;
    let path = place.root.join(FILE);
    let mut lock = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            bail!("another quickstart runs from this clone ({} is locked)", path.display())
        }
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    leftover::sweep(place).context("removing what an earlier run left")?;
    lock.set_len(0)?;
    lock.write_all(place.instance.as_bytes())?;
    Ok(Owner { _lock: lock })
}

/// Removes from the host what killed tests left; their folders stay, to be looked at.
pub(super) fn sweep_abandoned(stacks: &Path, like: &Place) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(stacks).into_iter().flatten().flatten() {
        let path = entry.path().join(FILE);
        let Ok(lock) = File::open(&path) else { continue };
        if lock.try_lock().is_err() {
            continue;
        }
        let instance = std::fs::read_to_string(&path)?;
        if instance.is_empty() {
            continue;
        }
        let gone = Place {
            run_dir: Path::new("/run").join(&instance),
            root: entry.path(),
            instance,
            ..like.clone()
        };
        leftover::sweep(&gone).with_context(|| format!("removing what {} left", gone.root.display()))?;
        std::fs::remove_file(&path)?;
    }
    Ok(())
}
