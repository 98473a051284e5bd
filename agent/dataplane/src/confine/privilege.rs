//! uid, groups, capabilities, core dumps, ptrace: what the kernel lets this process be.

use caps::CapSet;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};
use roost_domain::sabotage::Defence;

use super::Error;

pub(super) fn drop_to(uid: Uid, gid: Gid) -> Result<(), Error> {
    let errno = |step| move |source| Error::Errno { step, source };
    let capabilities = |step| move |source| Error::Capabilities { step, source };
    // Every connection of a guest is two descriptors; what the operator allows at most is meant to be used.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(errno("read the limit of descriptors"))?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(errno("raise the limit of descriptors"))?;
    if geteuid().is_root() {
        // Needs CAP_SETPCAP, so before the uid changes.
        if !Defence::DataplaneBounds.is_off() {
            caps::clear(None, CapSet::Bounding).map_err(capabilities("clear the bounding set"))?;
        }
        setgroups(&[]).map_err(errno("clear the supplementary groups"))?;
        setresgid(gid, gid, gid).map_err(errno("change the gid"))?;
        setresuid(uid, uid, uid).map_err(errno("change the uid"))?;
    } else if geteuid() != uid {
        return Err(Error::OtherUser { actual: geteuid().as_raw(), wanted: uid.as_raw() });
    }
    // A unit may grant ambient capabilities to a process that starts without root.
    caps::clear(None, CapSet::Ambient).map_err(capabilities("clear the ambient set"))?;
    caps::clear(None, CapSet::Effective).map_err(capabilities("clear the effective set"))?;
    caps::clear(None, CapSet::Permitted).map_err(capabilities("clear the permitted set"))?;
    caps::clear(None, CapSet::Inheritable).map_err(capabilities("clear the inheritable set"))?;
    roost_daemon::dumps::forbid()?;
    prctl::set_no_new_privs().map_err(errno("set no_new_privs"))?;
    Ok(())
}
