//! The guest's root: a read-only base and a writable disk joined by overlayfs, and the kernel's own file systems.
//!
//! Owns every mount but the few single files of `overmount`'s callers. Disks are told apart by serial number,
//! since their order is not promised.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};

const BASE: &str = "/mnt/base";
const WRITABLE: &str = "/mnt/rw";
const ROOT: &str = "/mnt/root";
const DISK_WAIT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot mount {0}")]
    Mount(String, #[source] nix::Error),
    #[error("cannot make {0}")]
    Make(PathBuf, #[source] io::Error),
    #[error("cannot look for disks")]
    Disks(#[source] io::Error),
    #[error("there is no disk with serial number {0:?}")]
    NoDisk(&'static str),
    #[error("cannot enter the new root")]
    Enter(#[source] nix::Error),
}

fn ensure_mount(source: &str, at: &str, kind: &str, flags: MsFlags, options: &str) -> Result<(), Error> {
    fs::create_dir_all(at).map_err(|error| Error::Make(at.into(), error))?;
    mount(Some(source), at, Some(kind), flags, Some(options)).map_err(|error| Error::Mount(at.into(), error))
}

const QUIET: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// What is needed to find disks and load modules.
pub fn mount_kernel_file_systems() -> Result<(), Error> {
    ensure_mount("proc", "/proc", "proc", QUIET, "")?;
    ensure_mount("sysfs", "/sys", "sysfs", QUIET, "")?;
    ensure_mount("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=0755")
}

/// Joins the disks and makes the result the root of this process and all that follow.
pub fn enter_root() -> Result<(), Error> {
    let (base, writable) = (find_disk("base")?, find_disk("rw")?);
    ensure_mount(&base, BASE, "erofs", MsFlags::MS_RDONLY | MsFlags::MS_NODEV, "")?;
    // `discard` gives deleted blocks back to the host's sparse file; the inode tables need no background writer.
    ensure_mount(
        &writable,
        WRITABLE,
        "ext4",
        MsFlags::MS_NOATIME | MsFlags::MS_NODEV,
        "discard,noinit_itable",
    )?;
    for directory in ["upper", "work"] {
        let path = Path::new(WRITABLE).join(directory);
        fs::create_dir_all(&path).map_err(|error| Error::Make(path, error))?;
    }
    let options = format!("lowerdir={BASE},upperdir={WRITABLE}/upper,workdir={WRITABLE}/work");
    ensure_mount("overlay", ROOT, "overlay", MsFlags::MS_NOATIME, &options)?;
    for kernel in ["proc", "sys", "dev"] {
        let to = format!("{ROOT}/{kernel}");
        fs::create_dir_all(&to).map_err(|error| Error::Make(to.clone().into(), error))?;
        move_mount(&format!("/{kernel}"), &to)?;
    }
    // The initramfs cannot be unmounted; its files are freed so that they do not occupy memory.
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");
    nix::unistd::chdir(ROOT).map_err(Error::Enter)?;
    move_mount(".", "/")?;
    nix::unistd::chroot(".").map_err(Error::Enter)?;
    nix::unistd::chdir("/").map_err(Error::Enter)
}

fn move_mount(from: &str, to: &str) -> Result<(), Error> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(|error| Error::Mount(to.into(), error))
}

/// What programs expect below the root. `/tmp` is on the disk: a guest has little memory, and builds fill it.
pub fn mount_run_time_file_systems() -> Result<(), Error> {
    let options = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    ensure_mount(
        "devpts",
        "/dev/pts",
        "devpts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        "gid=5,mode=620,ptmxmode=666",
    )?;
    ensure_mount("tmpfs", "/dev/shm", "tmpfs", options, "mode=1777")?;
    ensure_mount("tmpfs", "/run", "tmpfs", options, "mode=0755,size=20%")?;
    ensure_mount("cgroup2", "/sys/fs/cgroup", "cgroup2", QUIET, "")?;
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "fd/0"),
        ("/dev/stdout", "fd/1"),
        ("/dev/stderr", "fd/2"),
    ] {
        match std::os::unix::fs::symlink(to, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::Make(link.into(), error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The device of the disk with this serial number; waits a moment, since disks are found in the background.
fn find_disk(serial: &'static str) -> Result<String, Error> {
    let give_up = Instant::now() + DISK_WAIT;
    loop {
        for device in fs::read_dir("/sys/block").map_err(Error::Disks)?.flatten() {
            let found = fs::read_to_string(device.path().join("serial")).unwrap_or_default();
            let path = format!("/dev/{}", device.file_name().to_string_lossy());
            if found.trim_end_matches(['\n', '\0']) == serial && Path::new(&path).exists() {
                return Ok(path);
            }
        }
        if Instant::now() > give_up {
            return Err(Error::NoDisk(serial));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Lays one file over another that may not exist yet.
pub fn overmount(source: &Path, target: &Path) -> Result<(), Error> {
    if !target.exists() {
        // Also replaces a dangling link.
        let _ = fs::remove_file(target);
        fs::write(target, "").map_err(|error| Error::Make(target.into(), error))?;
    }
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|error| Error::Mount(target.display().to_string(), error))
}

/// Lays an empty writable layer over a directory: what is changed there from now on is kept in `layer` only.
pub fn cover_directory(directory: &Path, layer: &Path) -> Result<(), Error> {
    let (upper, work) = (layer.join("upper"), layer.join("work"));
    for path in [&upper, &work] {
        fs::create_dir_all(path).map_err(|error| Error::Make(path.clone(), error))?;
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", directory.display(), upper.display(), work.display());
    ensure_mount("overlay", &directory.to_string_lossy(), "overlay", MsFlags::MS_NOSUID, &options)
}
