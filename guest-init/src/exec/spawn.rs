//! Starts one process: clone, set up, exec.
//!
//! Owns the moment between clone and exec, where only raw system calls are allowed: the child shares our memory
//! (as `posix_spawn` does it), so there is no page table to copy, and a failed step is reported by writing it
//! into a variable of the parent. Does not wait for the process: `reap` does.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Where a process finds a script that is too long for an argument.
pub const SCRIPT_DESCRIPTOR: RawFd = 3;
const STACK_BYTES: usize = 64 << 10;

/// Everything a process is started with.
#[derive(Debug)]
pub struct Program {
    /// Paths to try in order, as `execvp` would.
    pub candidates: Vec<CString>,
    pub argv: Vec<CString>,
    pub environment: Vec<CString>,
    pub working_directory: CString,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    /// Open as `SCRIPT_DESCRIPTOR` in the process.
    pub script: Option<OwnedFd>,
    /// Stdin is a terminal and becomes the controlling one.
    pub terminal: bool,
}

/// What failed between clone and exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Clone,
    Session,
    Terminal,
    Descriptors,
    Identity,
    WorkingDirectory,
    Exec,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot start the process, at step {step:?}")]
pub struct Error {
    pub step: Step,
    pub source: io::Error,
}

/// What the child reads; all pointers live in the parent, which is suspended until exec.
struct Child<'a> {
    program: &'a Program,
    candidates: Vec<*const c_char>,
    argv: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    failed: Option<(Step, c_int)>,
}

/// Starts the process in its own session and returns its pid.
pub fn spawn(program: &Program) -> Result<u32, Error> {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let mut child = Child {
        program,
        candidates: pointers(&program.candidates),
        argv: pointers(&program.argv),
        environment: pointers(&program.environment),
        failed: None,
    };
    let mut stack: Vec<u128> = Vec::with_capacity(STACK_BYTES / size_of::<u128>());
    // SAFETY: `stack` is exclusively the child's until it execs or exits, which CLONE_VFORK waits for; so are the
    // contents of `child`. Signals are blocked across the clone, so no handler of ours runs in the child.
    let pid = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let top = stack.as_mut_ptr().add(stack.capacity());
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let pid = libc::clone(run_child, top.cast(), flags, (&raw mut child).cast());
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        if pid < 0 { Err(Error { step: Step::Clone, source: error }) } else { Ok(pid.unsigned_abs()) }
    }?;
    // SAFETY: the child wrote it through a pointer the compiler does not know of.
    match unsafe { std::ptr::read_volatile(&raw const child.failed) } {
        None => Ok(pid),
        Some((step, number)) => Err(Error { step, source: io::Error::from_raw_os_error(number) }),
    }
}

extern "C" fn run_child(argument: *mut c_void) -> c_int {
    // SAFETY: the parent passed a `Child` and is suspended.
    let child = unsafe { &mut *argument.cast::<Child<'_>>() };
    let Err(failed) = set_up_and_exec(child);
    child.failed = Some(failed);
    // SAFETY: ends the child only; nothing of the parent's is unwound or flushed.
    unsafe { libc::_exit(127) }
}

type Failed = (Step, c_int);

fn checked(step: Step, result: libc::c_long) -> Result<(), Failed> {
    if result >= 0 {
        return Ok(());
    }
    // SAFETY: reads the errno of this thread, which is the suspended parent's.
    let number = unsafe { *libc::__errno_location() };
    Err((step, number))
}

fn set_up_and_exec(child: &Child<'_>) -> Result<std::convert::Infallible, Failed> {
    let program = child.program;
    // SAFETY: raw system calls on values that live in the suspended parent. The identity is changed with
    // `syscall`, since glibc's wrappers would change every thread of the parent.
    unsafe {
        checked(Step::Session, libc::syscall(libc::SYS_setsid))?;
        let standard: [RawFd; 3] =
            [program.stdin.as_raw_fd(), program.stdout.as_raw_fd(), program.stderr.as_raw_fd()];
        for (number, fd) in (0..).zip(standard) {
            checked(Step::Descriptors, libc::dup2(fd, number).into())?;
        }
        if let Some(script) = &program.script {
            checked(Step::Descriptors, libc::dup2(script.as_raw_fd(), SCRIPT_DESCRIPTOR).into())?;
            // Nothing was duplicated, nor the close-on-exec flag dropped, if it had this number already.
            checked(Step::Descriptors, libc::fcntl(SCRIPT_DESCRIPTOR, libc::F_SETFD, 0).into())?;
        }
        if program.terminal {
            checked(Step::Terminal, libc::ioctl(0, libc::TIOCSCTTY, 0).into())?;
        }
        // Ours is higher, so that the host is answered whatever the tenant runs.
        checked(Step::Identity, libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, 0))?;
        let groups = program.groups.as_ptr();
        checked(Step::Identity, libc::syscall(libc::SYS_setgroups, program.groups.len(), groups))?;
        checked(Step::Identity, libc::syscall(libc::SYS_setresgid, program.gid, program.gid, program.gid))?;
        checked(Step::Identity, libc::syscall(libc::SYS_setresuid, program.uid, program.uid, program.uid))?;
        checked(Step::WorkingDirectory, libc::chdir(program.working_directory.as_ptr()).into())?;
        libc::umask(0o022);
        // Rust ignores SIGPIPE and tokio handles SIGCHLD; a fresh process has defaults and nothing blocked.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        exec(child)
    }
}

/// Tries the candidates; a refusal is reported only if none of the others exists.
unsafe fn exec(child: &Child<'_>) -> Result<std::convert::Infallible, Failed> {
    let mut worst = libc::ENOENT;
    for candidate in &child.candidates[..child.candidates.len() - 1] {
        // SAFETY: null-terminated arrays of null-terminated strings; returns only on failure.
        unsafe {
            libc::execve(*candidate, child.argv.as_ptr(), child.environment.as_ptr());
            match *libc::__errno_location() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => worst = libc::EACCES,
                other => return Err((Step::Exec, other)),
            }
        }
    }
    Err((Step::Exec, worst))
}
