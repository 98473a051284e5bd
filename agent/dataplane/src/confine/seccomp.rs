//! The system calls a data-plane process may make; every other one answers EPERM.
//!
//! A list of what is allowed, in groups with their reason. Where a call is both needed and dangerous, its arguments
//! are checked: only stream and datagram sockets of three families, only threads, no executable memory, only one's
//! own name. `clone3` answers ENOSYS, on which the C library falls back to `clone`.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no filter for this processor")]
    Arch(#[source] BackendError),
    #[error("build the filter")]
    Build(#[source] BackendError),
    #[error("load the filter")]
    Load(#[source] seccompiler::Error),
}

/// Filters the system calls of all threads, for good. Sets no_new_privs.
pub fn install() -> Result<(), Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(Error::Arch)?;
    let no_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let no_clone3 =
        SeccompFilter::new(no_clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), arch);
    let allowed = SeccompFilter::new(
        allowed_calls().map_err(Error::Build)?,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        arch,
    );
    // Of two filters that answer an errno the last one loaded decides: the allow list, which lets clone3 through to
    // the first.
    for filter in [no_clone3, allowed] {
        let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(Error::Build)?;
        apply_filter_all_threads(&program).map_err(Error::Load)?;
    }
    Ok(())
}

/// Calls that are allowed whatever their arguments.
const PLAIN: &[&[c_long]] = &[
    // Reading, writing and closing what is held.
    &[
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_pread64,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_pwrite64,
        libc::SYS_lseek,
        libc::SYS_close,
        libc::SYS_close_range,
        libc::SYS_dup,
        libc::SYS_dup3,
        libc::SYS_fcntl,
        libc::SYS_fstat,
        libc::SYS_fstatfs,
        libc::SYS_splice,
        libc::SYS_pipe2,
    ],
    // Files of its own directories: certificates, journals.
    &[
        libc::SYS_openat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_readlinkat,
        libc::SYS_getdents64,
        libc::SYS_mkdirat,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_linkat,
        libc::SYS_unlinkat,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_ftruncate,
        libc::SYS_fallocate,
        libc::SYS_flock,
        libc::SYS_getcwd,
    ],
    // Sockets that exist already, and what socket() below made.
    &[
        libc::SYS_accept4,
        libc::SYS_bind,
        libc::SYS_connect,
        libc::SYS_listen,
        libc::SYS_shutdown,
        libc::SYS_getsockname,
        libc::SYS_getpeername,
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_recvmmsg,
    ],
    // Waiting.
    &[
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_ppoll,
        libc::SYS_eventfd2,
        libc::SYS_nanosleep,
        libc::SYS_clock_nanosleep,
        libc::SYS_restart_syscall,
    ],
    // Threads and memory of this process.
    &[
        libc::SYS_futex,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_membarrier,
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_clone3,
    ],
    // Signals to itself.
    &[libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack],
    // Asking who and when.
    &[
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_getuid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getegid,
        libc::SYS_clock_gettime,
        libc::SYS_clock_getres,
        libc::SYS_gettimeofday,
        libc::SYS_getrandom,
        libc::SYS_getrusage,
        libc::SYS_uname,
        libc::SYS_sysinfo,
    ],
];

/// The older forms of calls above, which only this architecture has.
#[cfg(target_arch = "x86_64")]
const OLD_FORMS: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_unlink,
    libc::SYS_chmod,
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_FORMS: &[c_long] = &[];

type Rules = Vec<SeccompRule>;

fn allowed_calls() -> Result<BTreeMap<c_long, Rules>, BackendError> {
    let plain = PLAIN.iter().copied().flatten().chain(OLD_FORMS);
    let mut calls: BTreeMap<c_long, Rules> = plain.map(|call| (*call, Vec::new())).collect();
    calls.insert(libc::SYS_socket, sockets()?);
    calls.insert(libc::SYS_socketpair, vec![rule(&[equal(0, libc::AF_UNIX as u64)?])?]);
    calls.insert(libc::SYS_clone, vec![rule(&[all_set(0, THREAD_FLAGS)?])?]);
    calls.insert(libc::SYS_mmap, vec![rule(&[none_set(2, libc::PROT_EXEC as u64)?])?]);
    calls.insert(libc::SYS_mprotect, vec![rule(&[none_set(2, libc::PROT_EXEC as u64)?])?]);
    calls.insert(libc::SYS_ioctl, requests(&[libc::FIONBIO, libc::FIONREAD, libc::TCGETS])?);
    calls.insert(libc::SYS_prlimit64, vec![rule(&[long_equal(2, 0)?])?]);
    let own_process = u64::from(std::process::id());
    calls.insert(libc::SYS_tgkill, vec![rule(&[equal(0, own_process)?])?]);
    calls.insert(
        libc::SYS_prctl,
        vec![rule(&[equal(0, libc::PR_SET_NAME as u64)?])?, rule(&[equal(0, libc::PR_GET_NAME as u64)?])?],
    );
    Ok(calls)
}

const THREAD_FLAGS: u64 = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
// What socket() takes in the type beside the type itself: SOCK_NONBLOCK and SOCK_CLOEXEC.
const SOCKET_TYPE_MASK: u64 = 0xf;

/// Streams and datagrams over IP, streams and packets to processes of this host: nothing raw, no netlink.
fn sockets() -> Result<Rules, BackendError> {
    let kinds = [
        (libc::AF_INET, libc::SOCK_STREAM),
        (libc::AF_INET, libc::SOCK_DGRAM),
        (libc::AF_INET6, libc::SOCK_STREAM),
        (libc::AF_INET6, libc::SOCK_DGRAM),
        (libc::AF_UNIX, libc::SOCK_STREAM),
        (libc::AF_UNIX, libc::SOCK_SEQPACKET),
    ];
    let rules = kinds.iter().map(|(family, kind)| {
        let kind = SeccompCondition::new(1, Length::Dword, Is::MaskedEq(SOCKET_TYPE_MASK), *kind as u64)?;
        rule(&[equal(0, *family as u64)?, kind])
    });
    rules.collect()
}

fn requests(allowed: &[libc::Ioctl]) -> Result<Rules, BackendError> {
    allowed.iter().map(|request| rule(&[equal(1, *request)?])).collect()
}

fn rule(conditions: &[SeccompCondition]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.to_vec())
}

fn equal(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Length::Dword, Is::Eq, value)
}

fn long_equal(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Length::Qword, Is::Eq, value)
}

fn all_set(argument: u8, bits: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Length::Qword, Is::MaskedEq(bits), bits)
}

fn none_set(argument: u8, bits: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Length::Qword, Is::MaskedEq(bits), 0)
}
