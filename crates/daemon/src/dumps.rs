//! Keeps what a daemon has in its memory out of files: no core dump, nothing to attach to.

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

#[derive(Debug, thiserror::Error)]
#[error("forbid dumps of memory: {step}")]
pub struct Error {
    step: &'static str,
    source: nix::Error,
}

/// For good, for this process. After a change of uid, which undoes half of it.
pub fn forbid() -> Result<(), Error> {
    let error = |step| move |source| Error { step, source };
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(error("limit core files to nothing"))?;
    // A kernel that pipes core dumps to a program heeds no limit, only this.
    prctl::set_dumpable(false).map_err(error("make the process undumpable"))
}
