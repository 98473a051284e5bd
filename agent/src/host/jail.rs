//! The file system a VMM sees: a tmpfs with the host's programs, read-only, and nothing else.
//!
//! Planned in the agent ([`Jail::plan`], may allocate and look around), built in the new process
//! ([`Jail::enter`], only system calls). Disks, images, memory and sockets come as descriptors, so no path of a
//! sandbox or of the agent exists in there. The process must be in mount and pid namespaces of its own.

#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

/// Where programs and what they load lie. Those that are symbolic links on the host are links in there too.
const PROGRAM_DIRS: [&str; 6] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"];
/// Where libraries are: without it, finding those of QEMU takes longer than all else before its first instruction.
const LIBRARY_CACHE: &str = "/etc/ld.so.cache";
/// Devices, all made anew: name, major, minor.
const DEVICES: [(&CStr, u32, u32); 4] =
    [(c"dev/null", 1, 3), (c"dev/zero", 1, 5), (c"dev/random", 1, 8), (c"dev/urandom", 1, 9)];
const KVM: (&CStr, u32, u32) = (c"dev/kvm", 10, 232);
const ROOT_OPTIONS: &CStr = c"size=64k,nr_inodes=64,mode=755";

#[derive(Debug)]
enum Entry {
    Link { target: CString, name: CString },
    Dir { name: CString },
    Bind { source: CString, name: CString },
    BindFile { source: CString, name: CString },
}

/// What to build, with every string the new process needs.
#[derive(Debug)]
pub(super) struct Jail {
    mount_point: CString,
    entries: Vec<Entry>,
    kvm: bool,
    uid: u32,
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(io::Error::other)
}

/// `/usr/lib` as `usr/lib`.
fn inside(path: &Path) -> io::Result<CString> {
    c_string(path.strip_prefix("/").unwrap_or(path).as_os_str().as_bytes())
}

impl Jail {
    /// Plans a jail on the empty directory `mount_point` in which `program` can run as `uid`.
    pub(super) fn plan(mount_point: &Path, program: &Path, uid: u32, kvm: bool) -> io::Result<Self> {
        fs::create_dir_all(mount_point)?;
        let mut entries = Vec::new();
        let mut bound = BTreeSet::new();
        for dir in PROGRAM_DIRS.map(Path::new) {
            match fs::symlink_metadata(dir) {
                Ok(found) if found.is_symlink() => entries.push(Entry::Link {
                    target: c_string(fs::read_link(dir)?.as_os_str().as_bytes())?,
                    name: inside(dir)?,
                }),
                Ok(found) if found.is_dir() => {
                    bound.insert(dir.to_owned());
                }
                _ => {}
            }
        }
        if let Some(dir) = program.parent().filter(|dir| !bound.iter().any(|known| dir.starts_with(known))) {
            bound.insert(dir.to_owned());
        }
        for source in &bound {
            let mut parents: Vec<PathBuf> = source.ancestors().map(Path::to_owned).collect();
            parents.retain(|parent| parent != Path::new("/"));
            for parent in parents.iter().rev() {
                entries.push(Entry::Dir { name: inside(parent)? });
            }
            entries.push(Entry::Bind {
                source: c_string(source.as_os_str().as_bytes())?,
                name: inside(source)?,
            });
        }
        if Path::new(LIBRARY_CACHE).is_file() {
            entries.push(Entry::Dir { name: c_string(b"etc")? });
            let (source, name) = (c_string(LIBRARY_CACHE.as_bytes())?, inside(Path::new(LIBRARY_CACHE))?);
            entries.push(Entry::BindFile { source, name });
        }
        Ok(Self { mount_point: c_string(mount_point.as_os_str().as_bytes())?, entries, kvm, uid })
    }

    /// Builds the jail and makes it the root of the calling process.
    ///
    /// # Safety
    /// Only in a new process with its own mount and pid namespaces: replaces the root for good. Allocates
    /// nothing and takes no lock, so it may follow a bare `clone3`.
    pub(super) unsafe fn enter(&self) -> Result<(), i32> {
        let (rd, nosuid, nodev) = (libc::MS_RDONLY, libc::MS_NOSUID, libc::MS_NODEV);
        // SAFETY: every pointer is a NUL-terminated string that lives longer than this call.
        unsafe {
            libc::umask(0);
            // Nothing done here may be seen outside.
            mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
            mount(Some(c"tmpfs"), &self.mount_point, Some(c"tmpfs"), nosuid, Some(ROOT_OPTIONS))?;
            check(libc::chdir(self.mount_point.as_ptr()))?;
            for entry in &self.entries {
                self.make(entry)?;
            }
            check(libc::mkdir(c"proc".as_ptr(), 0o555))?;
            mount(Some(c"proc"), c"proc", Some(c"proc"), nosuid | nodev | libc::MS_NOEXEC, None)?;
            check(libc::mkdir(c"dev".as_ptr(), 0o755))?;
            for device in &DEVICES {
                make_device(device, 0o666)?;
            }
            if self.kvm {
                make_device(&KVM, 0o600)?;
                check(libc::chown(KVM.0.as_ptr(), self.uid, self.uid))?;
            }
            // The old root lands on the new one and is taken off, with every mount below it.
            check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) as i32)?;
            check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
            check(libc::chdir(c"/".as_ptr()))?;
            mount(None, c"/", None, libc::MS_REMOUNT | libc::MS_BIND | rd | nosuid, None)?;
            libc::umask(0o077);
        }
        Ok(())
    }

    /// # Safety
    /// As for [`Jail::enter`].
    unsafe fn make(&self, entry: &Entry) -> Result<(), i32> {
        // SAFETY: every pointer is a NUL-terminated string that lives longer than this call.
        unsafe {
            match entry {
                Entry::Link { target, name } => check(libc::symlink(target.as_ptr(), name.as_ptr())),
                Entry::Dir { name } => match check(libc::mkdir(name.as_ptr(), 0o755)) {
                    Err(libc::EEXIST) => Ok(()),
                    other => other,
                },
                Entry::Bind { source, name } => bind_read_only(source, name),
                Entry::BindFile { source, name } => {
                    check(libc::mknod(name.as_ptr(), libc::S_IFREG | 0o444, 0))?;
                    bind_read_only(source, name)
                }
            }
        }
    }
}

pub(super) fn check(result: i32) -> Result<(), i32> {
    if result >= 0 {
        return Ok(());
    }
    // SAFETY: errno is a valid thread-local of the calling thread, also after a bare clone3.
    Err(unsafe { *libc::__errno_location() })
}

/// # Safety
/// As for [`Jail::enter`].
unsafe fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> Result<(), i32> {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is null or a NUL-terminated string that lives longer than this call.
    check(unsafe {
        libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, pointer(options).cast())
    })
}

/// # Safety
/// As for [`Jail::enter`].
unsafe fn bind_read_only(source: &CStr, target: &CStr) -> Result<(), i32> {
    let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;
    // SAFETY: both are NUL-terminated strings that live longer than this call.
    unsafe {
        mount(Some(source), target, None, libc::MS_BIND, None)?;
        mount(None, target, None, flags, None)
    }
}

/// # Safety
/// As for [`Jail::enter`].
unsafe fn make_device((name, major, minor): &(&CStr, u32, u32), mode: u32) -> Result<(), i32> {
    let device = libc::makedev(*major, *minor);
    // SAFETY: the name is a NUL-terminated constant.
    check(unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | mode, device) })
}
