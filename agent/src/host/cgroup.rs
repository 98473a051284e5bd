//! Control groups of executions: limits, entry, usage.
//!
//! A VMM's group lies below `<instance>/` at the root of every hierarchy, never below the agent's own group, so
//! that nothing which ends the agent's group ends a VMM. Version 1 and version 2 differ only in here. A group
//! outlives its last process until [`remove`], so the last reading is complete.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cgroups_rs::cgroup_builder::CgroupBuilder;
use cgroups_rs::hierarchies::{V1, V2, is_cgroup2_unified_mode};
use cgroups_rs::{Controllers, Hierarchy, MaxValue};
use roost_domain::id::ExecutionId;

use super::names::{Instance, find_ulid};
use super::process::{Process, VmmProcess};

const CPU_PERIOD_US: u64 = 100_000;
/// A process in uninterruptible I/O takes as long as its device.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
const KILL_POLL: Duration = Duration::from_millis(2);
const V1_CONTROLLERS: [Controllers; 4] =
    [Controllers::Mem, Controllers::Cpu, Controllers::CpuAcct, Controllers::Pids];
/// Enough for `memory.stat`.
const STAT_BYTES: usize = 8192;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the {0} controller is not mounted")]
    Controller(String),
    #[error("making cgroup {path}")]
    Make { path: String, source: cgroups_rs::error::Error },
    #[error("{step} {path}")]
    File { step: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} does not read as expected")]
    Format { path: PathBuf },
    #[error("cgroup {path} still has processes")]
    Busy { path: String },
    #[error("ending a process of cgroup {path}")]
    Kill { path: String, source: super::process::Error },
}

/// What an execution may take of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub memory_bytes: u64,
    pub vcpus: u32,
    pub processes: u32,
}

/// What an execution took: CPU since the group was made, memory now (anonymous and shared).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_us: u64,
    pub memory_bytes: u64,
}

/// How a process comes into the group before it runs anything.
#[derive(Debug)]
pub enum Entrance {
    /// Directory for `clone3(CLONE_INTO_CGROUP)`.
    Clone(OwnedFd),
    /// `cgroup.procs` of every hierarchy, to write `0` to.
    Write(Vec<OwnedFd>),
}

/// A group, made or not.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: String,
    unified: bool,
    memory_dir: PathBuf,
    cpu_dir: PathBuf,
    /// All directories of the group, one in version 2.
    dirs: BTreeSet<PathBuf>,
    /// Those among them that limit nothing: who follows processes there must not find a VMM in another's group.
    followed: Vec<PathBuf>,
}

fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { step, path, source }
}

/// Where the group is or would be, in whatever hierarchies this host has.
pub fn locate(path: &str) -> Result<Cgroup, Error> {
    if is_cgroup2_unified_mode() {
        let dir = V2::new().root().join(path);
        return Ok(Cgroup {
            path: path.to_owned(),
            unified: true,
            memory_dir: dir.clone(),
            cpu_dir: dir.clone(),
            dirs: BTreeSet::from([dir]),
            followed: Vec::new(),
        });
    }
    let hierarchy = V1::new();
    let of = |controller: Controllers| {
        let name = controller.to_string();
        let mounted = hierarchy.get_mount_point(controller);
        mounted.map(|root| root.join(path)).ok_or(Error::Controller(name))
    };
    let followed: Vec<PathBuf> = list_followed()?.into_iter().map(|root| root.join(path)).collect();
    let mut dirs: BTreeSet<PathBuf> = V1_CONTROLLERS.into_iter().map(of).collect::<Result<_, _>>()?;
    dirs.extend(followed.iter().cloned());
    Ok(Cgroup {
        path: path.to_owned(),
        unified: false,
        memory_dir: of(Controllers::Mem)?,
        cpu_dir: of(Controllers::CpuAcct)?,
        dirs,
        followed,
    })
}

/// Hierarchies beside the controllers' of version 1 in which systemd keeps its services: whoever stops the agent
/// stops what is in its group there.
fn list_followed() -> Result<Vec<PathBuf>, Error> {
    let path = Path::new("/proc/self/mounts");
    let text = fs::read_to_string(path).map_err(at("reading", path))?;
    Ok(parse_followed(&text))
}

fn parse_followed(mounts: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(place), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let is_named = kind == "cgroup" && options.split(',').any(|option| option == "name=systemd");
        if is_named || kind == "cgroup2" {
            found.push(PathBuf::from(place));
        }
    }
    found
}

/// Makes the group, or sets the limits of the one that is there.
pub fn ensure(path: &str, limits: &Limits) -> Result<Cgroup, Error> {
    let group = locate(path)?;
    let (hierarchy, controllers): (Box<dyn Hierarchy>, &[&str]) = if group.unified {
        (Box::new(V2::new()), &["cpu", "memory", "pids"])
    } else {
        (Box::new(V1::new()), &["cpu", "cpuacct", "memory", "pids"])
    };
    let quota_us = i64::from(limits.vcpus).saturating_mul(CPU_PERIOD_US as i64);
    CgroupBuilder::new(path)
        .set_specified_controllers(controllers.iter().map(|name| (*name).to_owned()).collect())
        .memory()
        .memory_hard_limit(i64::try_from(limits.memory_bytes).unwrap_or(i64::MAX))
        .done()
        .cpu()
        .period(CPU_PERIOD_US)
        .quota(quota_us)
        .done()
        .pid()
        .maximum_number_of_processes(MaxValue::Value(i64::from(limits.processes)))
        .done()
        .build(hierarchy)
        .map_err(|source| Error::Make { path: path.to_owned(), source })?;
    for dir in &group.followed {
        fs::create_dir_all(dir).map_err(at("making", dir))?;
    }
    // The builder only warns when a version 1 directory cannot be made.
    for dir in &group.dirs {
        fs::metadata(dir).map_err(at("looking at", dir))?;
    }
    group.keep_off_swap()?;
    Ok(group)
}

/// The group, if it is there in any hierarchy.
pub fn find(path: &str) -> Result<Option<Cgroup>, Error> {
    let group = locate(path)?;
    Ok(group.dirs.iter().any(|dir| dir.is_dir()).then_some(group))
}

/// Removes the group with its counters. Fails with [`Error::Busy`] while a process is in it.
pub fn remove(path: &str) -> Result<(), Error> {
    for dir in locate(path)?.dirs {
        match fs::remove_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                return Err(Error::Busy { path: path.to_owned() });
            }
            other => other.map_err(at("removing", &dir))?,
        }
    }
    Ok(())
}

/// Every execution that has a group of this instance, in any hierarchy.
pub fn list(instance: &Instance) -> Result<BTreeSet<ExecutionId>, Error> {
    let mut found = BTreeSet::new();
    for dir in locate(instance.name())?.dirs {
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(at("listing", &dir))?,
        };
        for entry in entries {
            let name = entry.map_err(at("listing", &dir))?.file_name();
            found.extend(name.to_str().and_then(find_ulid));
        }
    }
    Ok(found)
}

/// Whether this process itself is in the instance's group or below it, where no agent may live.
pub fn holds_this_process(instance: &Instance) -> Result<bool, Error> {
    let path = Path::new("/proc/self/cgroup");
    let text = fs::read_to_string(path).map_err(at("reading", path))?;
    let own = Path::new("/").join(instance.name());
    Ok(text
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .any(|path| Path::new(path).starts_with(&own)))
}

impl Cgroup {
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Opens what a new process needs to start inside.
    pub fn entrance(&self) -> Result<Entrance, Error> {
        if self.unified {
            let dir = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&self.memory_dir);
            return Ok(Entrance::Clone(dir.map_err(at("opening", &self.memory_dir))?.into()));
        }
        let open = |dir: &PathBuf| {
            let path = dir.join("cgroup.procs");
            let file = OpenOptions::new().write(true).open(&path).map_err(at("opening", &path))?;
            Ok(OwnedFd::from(file))
        };
        Ok(Entrance::Write(self.dirs.iter().map(open).collect::<Result<_, Error>>()?))
    }

    /// Opens the counters once, so that a reading costs no path look-up.
    pub fn meter(&self) -> Result<Meter, Error> {
        let open = |path: PathBuf| File::open(&path).map_err(at("opening", &path)).map(|file| (path, file));
        Ok(Meter {
            unified: self.unified,
            cpu: open(self.cpu_dir.join(if self.unified { "cpu.stat" } else { "cpuacct.usage" }))?,
            memory: open(self.memory_dir.join("memory.stat"))?,
        })
    }

    /// One reading; [`Cgroup::meter`] is for those who read again.
    pub fn usage(&self) -> Result<Usage, Error> {
        self.meter()?.read()
    }

    /// How often the kernel ended a process of the group for want of memory.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        let name = if self.unified { "memory.events" } else { "memory.oom_control" };
        let path = self.memory_dir.join(name);
        let text = fs::read_to_string(&path).map_err(at("reading", &path))?;
        field(&text, "oom_kill").ok_or(Error::Format { path })
    }

    pub fn processes(&self) -> Result<Vec<u32>, Error> {
        let path = self.memory_dir.join("cgroup.procs");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(at("reading", &path)(error)),
        }
    }

    /// Ends everything inside and returns when it is gone, with every descriptor it held.
    pub fn kill(&self) -> Result<(), Error> {
        let end = Instant::now() + KILL_DEADLINE;
        loop {
            let inside = self.processes()?;
            if inside.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(Error::Busy { path: self.path.clone() });
            }
            for pid in inside {
                self.kill_member(pid)?;
            }
            std::thread::sleep(KILL_POLL);
        }
    }

    fn kill_member(&self, pid: u32) -> Result<(), Error> {
        let failed = |source| Error::Kill { path: self.path.clone(), source };
        let Some(identity) = VmmProcess::of_pid(pid).map_err(failed)? else {
            return Ok(());
        };
        let Some(process) = Process::open(identity).map_err(failed)? else {
            return Ok(());
        };
        // Held by descriptor now: the number cannot change its owner any more, so look once again.
        match self.processes()?.contains(&pid) {
            true => process.kill().map_err(failed),
            false => Ok(()),
        }
    }

    /// Guest memory must not reach a swap device in clear.
    fn keep_off_swap(&self) -> Result<(), Error> {
        let name = if self.unified { "memory.swap.max" } else { "memory.swappiness" };
        let path = self.memory_dir.join(name);
        match fs::write(&path, "0") {
            // A kernel without swap accounting.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(at("writing", &path)),
        }
    }
}

/// Kept-open counters of one group. Works until the group is removed.
#[derive(Debug)]
pub struct Meter {
    unified: bool,
    cpu: (PathBuf, File),
    memory: (PathBuf, File),
}

impl Meter {
    pub fn read(&self) -> Result<Usage, Error> {
        let cpu = read_text(&self.cpu)?;
        let memory = read_text(&self.memory)?;
        let cpu_us = if self.unified {
            field(&cpu, "usage_usec")
        } else {
            cpu.trim().parse::<u64>().ok().map(|nanoseconds| nanoseconds / 1000)
        };
        let anonymous = field(&memory, if self.unified { "anon" } else { "rss" });
        let format = |path: &PathBuf| Error::Format { path: path.clone() };
        Ok(Usage {
            cpu_us: cpu_us.ok_or_else(|| format(&self.cpu.0))?,
            memory_bytes: anonymous
                .zip(field(&memory, "shmem"))
                .map(|(anonymous, shared)| anonymous + shared)
                .ok_or_else(|| format(&self.memory.0))?,
        })
    }
}

fn read_text((path, file): &(PathBuf, File)) -> Result<String, Error> {
    let mut buffer = vec![0u8; STAT_BYTES];
    let length = file.read_at(&mut buffer, 0).map_err(at("reading", path))?;
    buffer.truncate(length);
    String::from_utf8(buffer).map_err(|_| Error::Format { path: path.clone() })
}

/// The value of `name` in lines of `name value`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Removes the instance's own group, once it is empty. For tests and for taking an agent off a host.
pub fn remove_instance(instance: &Instance) -> Result<(), Error> {
    remove(instance.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "anon_thp 7\nanon 4096\nshmem 12\n";
        assert_eq!(field(text, "anon"), Some(4096));
        assert_eq!(field(text, "shmem"), Some(12));
        assert_eq!(field(text, "file"), None);
    }

    #[test]
    fn the_hierarchies_of_systemd_are_told_from_the_controllers() {
        let mounts = "cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                      cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,name=systemd 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0\n\
                      tmpfs /run tmpfs rw 0 0\nodd\n";
        let expected = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        assert_eq!(parse_followed(mounts), expected);
    }

    /// The unified hierarchy, wherever it is mounted beside or instead of the old ones.
    fn unified_root() -> PathBuf {
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        let found = roots.into_iter().find(|root| root.join("cgroup.procs").exists());
        found.expect("this test needs a mounted cgroup2 file system and root")
    }

    #[test]
    fn a_process_is_born_into_a_group_of_the_unified_hierarchy() {
        let path = format!("t{}born", std::process::id());
        let dir = unified_root().join(&path);
        fs::create_dir(&dir).expect("made, as root");
        let group = Cgroup {
            path: path.clone(),
            unified: true,
            memory_dir: dir.clone(),
            cpu_dir: dir.clone(),
            dirs: BTreeSet::from([dir.clone()]),
            followed: Vec::new(),
        };
        let scratch = tempfile::tempdir().expect("a directory");
        let program = Path::new("/bin/sleep").canonicalize().expect("a program");
        let process = crate::host::spawn::spawn(crate::host::spawn::Spawn {
            program: &program,
            arguments: &["60".to_owned()],
            descriptors: Vec::new(),
            stderr: File::options().write(true).open("/dev/null").expect("opened").into(),
            uid: 61_130,
            cgroup: &group,
            jail_dir: &scratch.path().join("jail"),
            kvm: false,
        });
        let process = process.expect("started");
        let inside = group.processes().expect("listed");
        let used = fs::read_to_string(dir.join("cpu.stat")).expect("read");
        group.kill().expect("ended");
        process.wait_blocking().expect("reaped");
        fs::remove_dir(&dir).expect("removed");
        assert_eq!(inside, [process.pid()]);
        assert!(field(&used, "usage_usec").is_some_and(|used| used > 0), "{used}");
    }
}
