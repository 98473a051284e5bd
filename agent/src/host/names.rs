//! Host names of an execution, and back.
//!
//! Pure. Every object on the host that belongs to an execution carries a name made here, so that whatever is
//! found later maps back to a row of the store, or to none and is removed. Makes nothing itself.

use std::fmt;
use std::path::{Path, PathBuf};

use roost_domain::id::{self, ExecutionId};

/// Longest instance name: it is part of namespace names and of a unix socket's path.
pub const MAX_INSTANCE_BYTES: usize = 24;
/// `sun_path` has 108 bytes; some room is left for a suffix.
pub const MAX_SOCKET_PATH_BYTES: usize = 100;

const EXECUTIONS: &str = "e";
const QMP_SOCKET: &str = "qmp";
const STDERR_PIPE: &str = "stderr";

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error(
        "instance \"{0}\" is not a lower-case letter followed by letters, digits or inner dashes, \
         {MAX_INSTANCE_BYTES} bytes at most"
    )]
    Instance(String),
    #[error("run directory {0} is not an absolute path")]
    RelativeRunDirectory(PathBuf),
    #[error("run directory {path} is {over} bytes too long for the unix sockets below it")]
    LongRunDirectory { path: PathBuf, over: usize },
}

/// One agent on this machine: the prefix of all names, and where its run directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    name: String,
    run_dir: PathBuf,
}

impl Instance {
    pub fn new(name: impl Into<String>, run_dir: impl Into<PathBuf>) -> Result<Self, Error> {
        let (name, run_dir) = (name.into(), run_dir.into());
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let starts = name.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
        if !starts || name.len() > MAX_INSTANCE_BYTES || name.ends_with('-') || !name.bytes().all(legal) {
            return Err(Error::Instance(name));
        }
        if !run_dir.is_absolute() {
            return Err(Error::RelativeRunDirectory(run_dir));
        }
        let longest = run_dir.as_os_str().len() + "/e//".len() + id::ULID_TEXT_BYTES + QMP_SOCKET.len();
        if longest > MAX_SOCKET_PATH_BYTES {
            return Err(Error::LongRunDirectory { path: run_dir, over: longest - MAX_SOCKET_PATH_BYTES });
        }
        Ok(Self { name, run_dir })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Parent of the run directories of all executions.
    pub fn executions_dir(&self) -> PathBuf {
        self.run_dir.join(EXECUTIONS)
    }

    /// An empty directory on which a VMM mounts its own root, in its own mount namespace.
    pub fn jail_dir(&self) -> PathBuf {
        self.run_dir.join("jail")
    }

    /// The execution that a namespace name of this instance stands for.
    pub fn find_execution(&self, netns: &str) -> Option<ExecutionId> {
        find_ulid(netns.strip_prefix(self.name.as_str())?.strip_prefix('-')?)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.name)
    }
}

/// The execution whose ULID alone is the name, as with run directories and cgroups.
pub fn find_ulid(name: &str) -> Option<ExecutionId> {
    id::parse_ulid(name).map(ExecutionId::from_ulid)
}

/// Every host name of one execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub execution: ExecutionId,
    /// Below `/run/netns`.
    pub netns: String,
    /// Below the root of every cgroup hierarchy.
    pub cgroup: String,
    /// What the VMM shows as its own name (`-name`, process list).
    pub vmm: String,
    pub run_dir: PathBuf,
    pub jail_dir: PathBuf,
}

impl Names {
    pub fn of(instance: &Instance, execution: &ExecutionId) -> Self {
        let ulid = execution.ulid_text();
        Self {
            execution: *execution,
            netns: format!("{}-{ulid}", instance.name),
            cgroup: format!("{}/{ulid}", instance.name),
            vmm: format!("{}-{ulid}", instance.name),
            run_dir: instance.executions_dir().join(&ulid),
            jail_dir: instance.jail_dir(),
        }
    }

    /// Control socket of the VMM.
    pub fn qmp_socket(&self) -> PathBuf {
        self.run_dir.join(QMP_SOCKET)
    }

    /// Named pipe that bounds what a VMM can say on standard error.
    pub fn stderr_pipe(&self) -> PathBuf {
        self.run_dir.join(STDERR_PIPE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn instance(name: &str) -> Instance {
        Instance::new(name, "/run/roost").expect("legal instance")
    }

    proptest! {
        #[test]
        fn every_name_leads_back_to_its_execution(
            raw: u128,
            name in "[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,8})?",
        ) {
            let execution = ExecutionId::from_ulid(raw.into());
            let instance = instance(&name);
            let names = Names::of(&instance, &execution);
            prop_assert_eq!(instance.find_execution(&names.netns), Some(execution));
            prop_assert_eq!(find_ulid(names.cgroup.rsplit('/').next().expect("a last part")), Some(execution));
            let run_dir = names.run_dir.file_name().and_then(|name| name.to_str()).expect("a last part");
            prop_assert_eq!(find_ulid(run_dir), Some(execution));
            prop_assert!(names.qmp_socket().as_os_str().len() <= MAX_SOCKET_PATH_BYTES);
        }

        #[test]
        fn foreign_names_lead_nowhere(text in "[a-zA-Z0-9_-]{0,40}") {
            if let Some(execution) = instance("roost").find_execution(&text) {
                prop_assert_eq!(Names::of(&instance("roost"), &execution).netns, text);
            }
        }

        #[test]
        fn an_instance_never_claims_the_names_of_another(raw: u128) {
            let theirs = Names::of(&instance("roost-b"), &ExecutionId::from_ulid(raw.into()));
            prop_assert_eq!(instance("roost").find_execution(&theirs.netns), None);
        }
    }

    #[test]
    fn illegal_instances_are_refused() {
        for name in ["", "Roost", "1a", "-a", "a-", "a_b", "a/b", "a".repeat(25).as_str()] {
            assert_eq!(Instance::new(name, "/run"), Err(Error::Instance(name.to_owned())), "{name}");
        }
        assert!(matches!(Instance::new("a", "run"), Err(Error::RelativeRunDirectory(_))));
        let long = format!("/{}", "d".repeat(80));
        assert!(matches!(Instance::new("a", long), Err(Error::LongRunDirectory { .. })));
    }
}
