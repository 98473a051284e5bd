//! System calls that no safe wrapper covers. With `exec::spawn` the only unsafe code of roost-init.
//!
//! Owns nothing: every function does one call (or one ioctl) and reports its error. No policy here.
#![allow(unsafe_code)]

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use bytes::BytesMut;
use tokio::io::unix::AsyncFd;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exited(i32),
    Signalled(i32),
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The next ended child, left unreaped so that its pid stays taken until `reap`.
/// (nix's `waitid` fails on real-time signals, having no name for them.)
pub fn find_ended_child() -> io::Result<Option<(u32, Ended)>> {
    // SAFETY: an all-zero siginfo_t is valid, and waitid only writes into it.
    let info = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        match check(libc::waitid(libc::P_ALL, 0, &mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)) {
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            Err(error) => return Err(error),
            Ok(_) => info,
        }
    };
    // SAFETY: waitid filled the SIGCHLD fields, or left zeroes when no child had ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let ended =
        if info.si_code == libc::CLD_EXITED { Ended::Exited(status) } else { Ended::Signalled(status) };
    Ok(Some((pid.unsigned_abs(), ended)))
}

/// Frees an ended child's pid.
pub fn reap(pid: u32) {
    // SAFETY: a null status pointer is allowed; the child has ended, so the call does not block.
    unsafe { libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), libc::WNOHANG) };
}

/// Sends any signal number, also real-time ones, to a process or (`group`) a process group.
pub fn kill(pid: u32, signal: u32, group: bool) -> io::Result<()> {
    let pid = pid as libc::pid_t;
    // SAFETY: no memory is involved.
    check(unsafe { libc::kill(if group { -pid } else { pid }, signal as libc::c_int) }).map(drop)
}

/// Reads once into the spare capacity of `buffer`; 0 is the end of the file.
pub fn read_into(fd: &impl AsFd, buffer: &mut BytesMut, at_most: usize) -> io::Result<usize> {
    let spare = buffer.spare_capacity_mut();
    let length = spare.len().min(at_most);
    // SAFETY: the kernel writes at most `length` bytes into the spare capacity.
    let count = unsafe { libc::read(fd.as_fd().as_raw_fd(), spare.as_mut_ptr().cast(), length) };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    let count = count.unsigned_abs();
    // SAFETY: exactly these bytes were initialised by the read.
    unsafe { buffer.set_len(buffer.len() + count) };
    Ok(count)
}

/// How many bytes a pipe holds now.
pub fn get_readable_bytes(fd: &impl AsFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &mut count) })?;
    Ok(count.max(0).unsigned_abs() as usize)
}

/// Lets a pipe hold more, if the kernel agrees.
pub fn grow_pipe(fd: &impl AsFd, bytes: i32) {
    // SAFETY: fcntl on a descriptor we hold; no memory is involved. A refusal leaves the pipe as it was.
    unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETPIPE_SZ, bytes) };
}

pub fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: fcntl on a descriptor we hold; no memory is involved.
    let flags = check(unsafe { libc::fcntl(raw, libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(raw, libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

/// Lets the runtime wait for a descriptor.
pub fn watch_descriptor(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, and AsyncFd drops it last.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// A pseudo terminal: the master, non-blocking, and the terminal a process gets; both close on exec.
pub fn open_terminal(columns: u16, rows: u16) -> io::Result<(OwnedFd, OwnedFd)> {
    // SAFETY: plain open; the descriptor is ours from here on.
    let master = unsafe {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
        OwnedFd::from_raw_fd(check(libc::open(c"/dev/ptmx".as_ptr(), flags))?)
    };
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int; TIOCGPTPEER takes flags and returns a new descriptor.
    let terminal = unsafe {
        check(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlock))?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        OwnedFd::from_raw_fd(check(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags))?)
    };
    set_terminal_size(&master, columns, rows)?;
    Ok((master, terminal))
}

pub fn set_terminal_size(master: &impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    check(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &size) }).map(drop)
}

const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Credits `bytes` to the kernel's pool and reseeds its generator from it at once.
pub fn add_entropy(random: &impl AsFd, bytes: &[u8]) -> io::Result<()> {
    // struct rand_pool_info { int entropy_count (bits); int buf_size; u32 buf[]; }
    let length = i32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut info = Vec::with_capacity(8 + bytes.len());
    info.extend_from_slice(&(length * 8).to_ne_bytes());
    info.extend_from_slice(&length.to_ne_bytes());
    info.extend_from_slice(bytes);
    let raw = random.as_fd().as_raw_fd();
    // SAFETY: the structure is complete and only read, during the first call.
    unsafe {
        check(libc::ioctl(raw, RNDADDENTROPY as _, info.as_ptr()))?;
        check(libc::ioctl(raw, RNDRESEEDCRNG as _, 0)).map(drop)
    }
}

/// Gives a network interface its address and brings it up.
pub fn set_interface(name: &str, address: Option<(Ipv4Addr, Ipv4Addr)>) -> io::Result<()> {
    let socket = open_control_socket()?;
    let mut request = interface_request(name);
    if let Some((address, mask)) = address {
        request.ifr_ifru.ifru_addr = socket_address(address);
        // SAFETY: each of these reads one ifreq.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR as _, &request) })?;
        request.ifr_ifru.ifru_netmask = socket_address(mask);
        // SAFETY: as above.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFNETMASK as _, &request) })?;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: as above.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) }).map(drop)
}

/// Sets the default route.
pub fn set_default_route(gateway: Ipv4Addr) -> io::Result<()> {
    let socket = open_control_socket()?;
    // SAFETY: an all-zero rtentry is valid.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: SIOCADDRT reads one rtentry.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as _, &route) }).map(drop)
}

fn open_control_socket() -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor that is ours from here on.
    unsafe {
        let raw = check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(raw))
    }
}

fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: an all-zero ifreq is valid; zip leaves the last byte of the name zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let last = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..last].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let inet = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are 16 bytes, and sockaddr is defined to be viewed as sockaddr_in.
    unsafe { std::mem::transmute(inet) }
}

/// Puts this process before all that have the default priority; what it starts does not inherit it (`exec::spawn`).
pub fn raise_priority() -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) }).map(drop)
}

/// Makes sure that descriptors 0, 1 and 2 are open, on the console if there is one: a child's are put over them.
pub fn ensure_standard_descriptors() -> io::Result<()> {
    for path in [c"/dev/console", c"/dev/null"] {
        // SAFETY: open and dup2 involve no memory but the path, which is static.
        let raw: RawFd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NOCTTY) };
        if raw < 0 {
            continue;
        }
        for number in 0..=2 {
            // SAFETY: as above.
            check(unsafe { libc::dup2(raw, number) })?;
        }
        if raw > 2 {
            // SAFETY: `raw` was opened above and is not used again.
            unsafe { libc::close(raw) };
        }
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
