//! Everything on the host that carries this instance's names, so that start-up can remove what has no row.

use std::collections::BTreeSet;
use std::io;

use roost_domain::id::ExecutionId;

use super::names::{self, Instance, Names};
use super::{cgroup, file, netns};

/// Why leftovers could not be listed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("looking for network namespaces")]
    Netns(#[from] netns::Error),
    #[error("looking for cgroups")]
    Cgroup(#[from] cgroup::Error),
    #[error("removing the run directory")]
    RunDirectory(#[from] file::Error),
    #[error("listing run directories")]
    List(#[source] io::Error),
}

/// The executions of which anything is on the host.
pub fn list(instance: &Instance) -> Result<BTreeSet<ExecutionId>, Error> {
    let mut found: BTreeSet<ExecutionId> = netns::list(instance)?.into_iter().collect();
    found.extend(cgroup::list(instance)?);
    match std::fs::read_dir(instance.executions_dir()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::List(error)),
        Ok(entries) => {
            for entry in entries {
                let name = entry.map_err(Error::List)?.file_name();
                found.extend(name.to_str().and_then(names::find_ulid));
            }
        }
    }
    Ok(found)
}

/// Whether anything of the execution is on the host.
pub fn is_there(names: &Names) -> Result<bool, Error> {
    Ok(names.run_dir.exists()
        || cgroup::find(&names.cgroup)?.is_some()
        || netns::find(&names.netns)?.is_some())
}

/// Ends the execution's processes and removes all that carries its names. Repeatable.
pub fn remove(names: &Names) -> Result<(), Error> {
    if let Some(cgroup) = cgroup::find(&names.cgroup)? {
        cgroup.kill()?;
    }
    netns::remove(&names.netns)?;
    cgroup::remove(&names.cgroup)?;
    Ok(file::remove_tree(&names.run_dir)?)
}
