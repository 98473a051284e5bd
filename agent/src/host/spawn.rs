//! Starts a virtual machine monitor with nothing it does not need.
//!
//! Its own session, uid, cgroup (before it runs anything), pid, mount, network, IPC and UTS namespaces, a root
//! file system without any data ([`super::jail`]), no capability, no way to gain one, no core dump, and exactly
//! the descriptors it is given. It outlives this agent.
//!
//! `clone3` is called bare: `std::process::Command` can neither place a child in a cgroup nor in namespaces at
//! birth. Between `clone3` and `execve` the new process makes system calls only.

#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use roost_domain::sabotage::Defence;

use super::cgroup::{self, Cgroup, Entrance};
use super::jail::{Jail, check};
use super::process::{self, Process};

/// The first number that [`Spawn::descriptors`] get; they follow each other.
pub const FIRST_DESCRIPTOR: RawFd = 3;
pub const MAX_DESCRIPTORS: usize = 32;
/// Descriptors wait above this number until the new process moves them to where they belong.
const PARKED_ABOVE: RawFd = 128;
const MAX_OPEN_FILES: u64 = 1024;
const LAST_CAPABILITY: libc::c_int = 63;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("preparing to start {program}")]
    Prepare { program: PathBuf, source: io::Error },
    #[error("entering the cgroup")]
    Cgroup(#[from] cgroup::Error),
    #[error("cloning a process for {program}")]
    Clone { program: PathBuf, source: io::Error },
    #[error("{step:?} before {program} could run")]
    Child { step: Step, program: PathBuf, source: io::Error },
    #[error("taking hold of the new process")]
    Hold(#[from] process::Error),
    #[error("{0} descriptors for one process, {MAX_DESCRIPTORS} at most")]
    TooManyDescriptors(usize),
}

/// What the new process was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Step {
    StartSession,
    JoinCgroup,
    BuildJail,
    PlaceDescriptors,
    SetLimits,
    DropPrivileges,
    Execute,
    /// It was ended before it could say.
    Unknown,
}

const STEPS: [Step; 7] = [
    Step::StartSession,
    Step::JoinCgroup,
    Step::BuildJail,
    Step::PlaceDescriptors,
    Step::SetLimits,
    Step::DropPrivileges,
    Step::Execute,
];

/// A process to start.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// Absolute, without symbolic links.
    pub program: &'a Path,
    /// Without the program's own name.
    pub arguments: &'a [String],
    /// Become [`FIRST_DESCRIPTOR`] and following, in this order.
    pub descriptors: Vec<OwnedFd>,
    /// Its standard error.
    pub stderr: OwnedFd,
    /// Also its only group.
    pub uid: u32,
    pub cgroup: &'a Cgroup,
    /// Empty directory to build its root on.
    pub jail_dir: &'a Path,
    pub kvm: bool,
}

/// Everything the new process needs, allocated before it exists.
struct Prepared {
    program: CString,
    arguments: Vec<*const libc::c_char>,
    environment: [*const libc::c_char; 2],
    jail: Jail,
    /// Standard input, output and error, then the given ones.
    descriptors: Vec<OwnedFd>,
    procs: Vec<OwnedFd>,
    report: OwnedFd,
    uid: u32,
}

/// Starts the process. Returns once it runs its program, or says why it never did.
pub fn spawn(spec: Spawn<'_>) -> Result<Process, Error> {
    if spec.descriptors.len() > MAX_DESCRIPTORS {
        return Err(Error::TooManyDescriptors(spec.descriptors.len()));
    }
    let program = spec.program.to_owned();
    let prepare = |source| Error::Prepare { program: program.clone(), source };
    let (cgroup, procs) = match spec.cgroup.entrance()? {
        Entrance::Clone(directory) => (Some(directory), Vec::new()),
        Entrance::Write(procs) => (None, procs),
    };
    let mut texts = vec![c_string(spec.program.as_os_str()).map_err(prepare)?];
    for argument in spec.arguments {
        texts.push(c_string(OsStr::new(argument)).map_err(prepare)?);
    }
    let (report_in, report_out) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| prepare(errno.into()))?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(prepare)?;
    let mut descriptors = vec![park(&null).map_err(prepare)?, park(&null).map_err(prepare)?];
    descriptors.push(park(&spec.stderr).map_err(prepare)?);
    for descriptor in &spec.descriptors {
        descriptors.push(park(descriptor).map_err(prepare)?);
    }
    let prepared = Prepared {
        program: texts[0].clone(),
        arguments: texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect(),
        environment: [c"LC_ALL=C".as_ptr(), std::ptr::null()],
        jail: Jail::plan(spec.jail_dir, spec.program, spec.uid, spec.kvm).map_err(prepare)?,
        descriptors,
        procs,
        report: park(&report_out).map_err(prepare)?,
        uid: if Defence::VmmUser.is_off() { 0 } else { spec.uid },
    };
    drop(report_out);
    let (pid, pidfd) = clone_into(cgroup.as_ref(), &prepared)
        .map_err(|source| Error::Clone { program: program.clone(), source })?;
    drop(prepared);
    let process = Process::of_child(pid, pidfd)?;
    match read_report(report_in) {
        None => Ok(process),
        Some((step, source)) => {
            // It ends by itself; being reaped is all it still needs.
            process.wait_blocking()?;
            Err(Error::Child { step, program, source })
        }
    }
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(io::Error::other)
}

/// A duplicate far from the numbers that the new process will fill.
fn park(descriptor: &impl std::os::fd::AsFd) -> io::Result<OwnedFd> {
    let number = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(PARKED_ABOVE))?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Nothing was written: the pipe was closed by a successful `execve`.
fn read_report(pipe: OwnedFd) -> Option<(Step, io::Error)> {
    let mut report = Vec::with_capacity(8);
    match File::from(pipe).take(8).read_to_end(&mut report) {
        Ok(0) => None,
        Ok(8) => {
            let word =
                |at: usize| i32::from_ne_bytes([report[at], report[at + 1], report[at + 2], report[at + 3]]);
            let step = usize::try_from(word(0)).ok().and_then(|index| STEPS.get(index).copied());
            Some((step.unwrap_or(Step::Unknown), io::Error::from_raw_os_error(word(4))))
        }
        Ok(_) => Some((Step::Unknown, io::ErrorKind::UnexpectedEof.into())),
        Err(error) => Some((Step::Unknown, error)),
    }
}

/// Makes the process; it never returns from here.
fn clone_into(cgroup: Option<&OwnedFd>, prepared: &Prepared) -> io::Result<(u32, OwnedFd)> {
    let network = if Defence::VmmNetwork.is_off() { 0 } else { libc::CLONE_NEWNET };
    let namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWPID | network;
    let namespaces = namespaces | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let mut pidfd: RawFd = -1;
    // SAFETY: an all-zero clone_args is a valid value of this plain C structure.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = namespaces as u64 | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(directory) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = directory.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has its own copy of everything, so this is a fork. It calls only
    // `run_child`, which allocates nothing, takes no lock and never returns.
    let result = unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut arguments, std::mem::size_of::<libc::clone_args>())
    };
    match result {
        0 => run_child(prepared),
        pid if pid > 0 => {
            // SAFETY: CLONE_PIDFD stored a new descriptor there, which nobody else owns.
            Ok((pid as u32, unsafe { OwnedFd::from_raw_fd(pidfd) }))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The whole life of the new process before its program.
fn run_child(prepared: &Prepared) -> ! {
    let (step, errno) = match prepare_child(prepared) {
        Err(failure) => failure,
        Ok(()) => {
            // SAFETY: all strings live in this process's copy of the agent's memory until execve replaces it.
            unsafe {
                libc::execve(
                    prepared.program.as_ptr(),
                    prepared.arguments.as_ptr(),
                    prepared.environment.as_ptr(),
                );
                (Step::Execute, *libc::__errno_location())
            }
        }
    };
    let mut report = [0u8; 8];
    report[..4].copy_from_slice(&(step as i32).to_ne_bytes());
    report[4..].copy_from_slice(&errno.to_ne_bytes());
    // SAFETY: writes eight bytes from a live buffer, then leaves without running any destructor.
    unsafe {
        libc::write(prepared.report.as_raw_fd(), report.as_ptr().cast(), report.len());
        libc::_exit(127)
    }
}

fn prepare_child(prepared: &Prepared) -> Result<(), (Step, i32)> {
    let at = |step: Step| move |errno: i32| (step, errno);
    // SAFETY: only system calls, on plain numbers and on memory that lives until exec.
    unsafe {
        check(libc::setsid()).map_err(at(Step::StartSession))?;
        reset_signals().map_err(at(Step::StartSession))?;
        for procs in &prepared.procs {
            check(libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) as i32)
                .map_err(at(Step::JoinCgroup))?;
        }
        prepared.jail.enter().map_err(at(Step::BuildJail))?;
        check(libc::sethostname(c"vmm".as_ptr(), 3)).map_err(at(Step::BuildJail))?;
        for (number, descriptor) in (0..).zip(&prepared.descriptors) {
            check(libc::dup2(descriptor.as_raw_fd(), number)).map_err(at(Step::PlaceDescriptors))?;
        }
        let first_free = prepared.descriptors.len() as libc::c_uint;
        let closed =
            libc::syscall(libc::SYS_close_range, first_free, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        check(closed as i32).map_err(at(Step::PlaceDescriptors))?;
        limit(libc::RLIMIT_CORE, 0).map_err(at(Step::SetLimits))?;
        limit(libc::RLIMIT_NOFILE, MAX_OPEN_FILES).map_err(at(Step::SetLimits))?;
        drop_privileges(prepared.uid).map_err(at(Step::DropPrivileges))
    }
}

/// # Safety
/// Only in a new, single-threaded process.
unsafe fn reset_signals() -> Result<(), i32> {
    // SAFETY: the set is initialised before it is used; the calls touch nothing else.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        check(libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()))?;
        // Rust ignores it, and what is ignored stays so across clone and exec.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    Ok(())
}

/// # Safety
/// Only in a new process.
unsafe fn limit(resource: libc::__rlimit_resource_t, value: u64) -> Result<(), i32> {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: reads one live structure.
    check(unsafe { libc::setrlimit(resource, &limit) })
}

/// Gives up every capability, every group, and the way back. Raw calls: glibc's own would signal threads that
/// exist in its copied bookkeeping only.
///
/// # Safety
/// Only in a new, single-threaded process.
unsafe fn drop_privileges(uid: u32) -> Result<(), i32> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header { version: CAPABILITY_VERSION_3, pid: 0 };
    let none = [0u32; 6];
    // SAFETY: plain numbers, and two structures laid out as capset(2) reads them.
    unsafe {
        for capability in 0..=LAST_CAPABILITY {
            match check(libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0)) {
                // Past the last capability this kernel knows.
                Err(libc::EINVAL) => break,
                other => other?,
            }
        }
        check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))?;
        check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) as i32)?;
        check(libc::syscall(libc::SYS_setresgid, uid, uid, uid) as i32)?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid) as i32)?;
        check(libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) as i32)?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    }
}
