//! Everything on the host that carries an execution's name: found, removed.
//!
//! Start-up compares what is found with the store and removes what has no row; the end of an execution removes
//! its own. Decides nothing: which executions are over is the caller's knowledge.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use roost_domain::id::ExecutionId;

use super::names::{Instance, Names, find_ulid};
use super::{cgroup, file, netns};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("looking for or removing a network namespace")]
    Netns(#[from] netns::Error),
    #[error("looking for or removing a cgroup")]
    Cgroup(#[from] cgroup::Error),
    #[error("listing {path}")]
    List { path: PathBuf, source: io::Error },
    #[error("removing a run directory")]
    RunDir(#[from] file::Error),
}

/// Every execution of this instance of which something is on the host.
pub fn list(instance: &Instance) -> Result<BTreeSet<ExecutionId>, Error> {
    let mut found = cgroup::list(instance)?;
    found.extend(netns::list(instance)?);
    let path = instance.executions_dir();
    let entries = match fs::read_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        other => other.map_err(|source| Error::List { path: path.clone(), source })?,
    };
    for entry in entries {
        let name = entry.map_err(|source| Error::List { path: path.clone(), source })?.file_name();
        found.extend(name.to_str().and_then(find_ulid));
    }
    Ok(found)
}

/// Whether anything of one execution is on the host.
pub fn is_there(names: &Names) -> Result<bool, Error> {
    Ok(names.run_dir.exists() || netns::is_named(&names.netns) || cgroup::find(&names.cgroup)?.is_some())
}

/// Ends every process of an execution and removes all that carries its name, its counters included. Repeatable.
pub fn remove(names: &Names) -> Result<(), Error> {
    if let Some(group) = cgroup::find(&names.cgroup)? {
        group.kill()?;
    }
    netns::remove(&names.netns)?;
    file::remove_tree(&names.run_dir)?;
    // Last: while it is there, a crash in between is seen.
    cgroup::remove(&names.cgroup)?;
    Ok(())
}
