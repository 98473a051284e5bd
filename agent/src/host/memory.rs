//! The RAM of a guest, seen from outside its VMM.
//!
//! Which pages the guest has written is asked of the kernel (`PAGEMAP_SCAN`), at no cost while the guest runs;
//! their contents are read and written by `process_vm_readv` and `process_vm_writev`. Only meaningful while the
//! VMM is stopped. What the pages hold is copied, never looked into.

use std::fs::{self, File};
use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use super::process::VmmProcess;

pub const PAGE_BYTES: u64 = 4096;
/// A private mapping of it behaves like anonymous memory (a page that was only read takes no room) and still
/// has a name by which it is found in `/proc/PID/maps`.
pub const ZEROES: &str = "/dev/zero";
/// Ranges asked for in one scan.
const SCAN_RANGES: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step} of process {pid}")]
    Step { step: &'static str, pid: u32, source: io::Error },
    #[error("process {pid} has no mapping of {memory_bytes} bytes of guest memory")]
    NoMapping { pid: u32, memory_bytes: u64 },
    #[error("opening {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("the range {offset}+{length} is not inside the guest's memory")]
    OutOfRange { offset: u64, length: u64 },
}

/// Opens the file whose private mapping is a guest's fresh memory.
pub fn open_zeroes() -> Result<File, Error> {
    let options = File::options().read(true).write(true).open(ZEROES);
    options.map_err(|source| Error::Open { path: ZEROES.into(), source })
}

/// Bytes from the start of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub offset: u64,
    pub length: u64,
}

/// Where a VMM keeps its guest's RAM.
#[derive(Debug)]
pub struct GuestMemory {
    process: VmmProcess,
    start: u64,
    bytes: u64,
    pagemap: File,
}

impl GuestMemory {
    /// Finds the private mapping of [`ZEROES`] that is the guest's memory.
    pub fn find(process: VmmProcess, memory_bytes: u64) -> Result<Self, Error> {
        let pid = process.pid;
        let step = |step: &'static str| move |source| Error::Step { step, pid, source };
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).map_err(step("reading the mappings"))?;
        let start = find_mapping(&maps, Path::new(ZEROES), memory_bytes);
        let start = start.ok_or(Error::NoMapping { pid, memory_bytes })?;
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(step("opening the page map"))?;
        // Both files belong to whoever has that number; make sure it is still the one that was meant.
        if VmmProcess::of_pid(pid).ok().flatten() != Some(process) {
            return Err(Error::NoMapping { pid, memory_bytes });
        }
        Ok(Self { process, start, bytes: memory_bytes, pagemap })
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Everything the guest has written since its memory was mapped, in ascending order.
    pub fn written(&self) -> Result<Vec<Range>, Error> {
        let mut ranges = Vec::new();
        let end = self.start + self.bytes;
        let mut from = self.start;
        while from < end {
            let (found, walked) = scan(&self.pagemap, from, end).map_err(|source| Error::Step {
                step: "scanning the memory",
                pid: self.process.pid,
                source,
            })?;
            let inside = |region: &PageRegion| Range {
                offset: region.start - self.start,
                length: region.end - region.start,
            };
            ranges.extend(found.iter().map(inside));
            from = walked.max(from + PAGE_BYTES);
        }
        Ok(ranges)
    }

    /// Copies guest memory at `offset` into `buffer`.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let (mut done, length) = (0, buffer.len());
        let base = self.address_of(offset, length as u64)?;
        while done < length {
            let remote = [RemoteIoVec { base: base + done, len: length - done }];
            let mut local = [IoSliceMut::new(&mut buffer[done..])];
            done += self.moved("reading the memory", process_vm_readv(self.pid(), &mut local, &remote))?;
        }
        Ok(())
    }

    /// Copies `bytes` into guest memory at `offset`.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let (mut done, length) = (0, bytes.len());
        let base = self.address_of(offset, length as u64)?;
        while done < length {
            let remote = [RemoteIoVec { base: base + done, len: length - done }];
            let local = [IoSlice::new(&bytes[done..])];
            done += self.moved("writing the memory", process_vm_writev(self.pid(), &local, &remote))?;
        }
        Ok(())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.process.pid as i32)
    }

    fn address_of(&self, offset: u64, length: u64) -> Result<usize, Error> {
        match offset.checked_add(length) {
            Some(end) if end <= self.bytes => Ok((self.start + offset) as usize),
            _ => Err(Error::OutOfRange { offset, length }),
        }
    }

    fn moved(&self, step: &'static str, result: nix::Result<usize>) -> Result<usize, Error> {
        let source = match result {
            Ok(0) => io::ErrorKind::UnexpectedEof.into(),
            Ok(moved) => return Ok(moved),
            Err(errno) => errno.into(),
        };
        Err(Error::Step { step, pid: self.process.pid, source })
    }
}

/// Start of the mapping of `file` with that size; the kernel may show it in several adjacent pieces.
fn find_mapping(maps: &str, file: &Path, bytes: u64) -> Option<u64> {
    let mut whole: Option<(u64, u64)> = None;
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (addresses, path) = (fields.next()?, fields.nth(4));
        if path.map(Path::new) != Some(file) {
            continue;
        }
        let (start, end) = addresses.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        whole = match whole {
            Some((first, last)) if last == start => Some((first, end)),
            _ => Some((start, end)),
        };
        if let Some((first, last)) = whole
            && last - first == bytes
        {
            return Some(first);
        }
    }
    None
}

/// `struct page_region` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// Pages that are there (or swapped out) and neither shared with a file nor the kernel's page of zeroes.
/// Returns them and how far the scan came.
#[allow(unsafe_code)]
fn scan(pagemap: &File, start: u64, end: u64) -> io::Result<(Vec<PageRegion>, u64)> {
    let mut regions = vec![PageRegion::default(); SCAN_RANGES];
    let mut arguments = ScanArguments {
        size: std::mem::size_of::<ScanArguments>() as u64,
        flags: 0,
        start,
        end,
        walk_end: 0,
        regions: regions.as_mut_ptr() as u64,
        regions_len: regions.len() as u64,
        max_pages: 0,
        category_inverted: PAGE_IS_FILE | PAGE_IS_PFNZERO,
        category_mask: PAGE_IS_FILE | PAGE_IS_PFNZERO,
        category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
    };
    let request = nix::request_code_readwrite!(b'f', 16, std::mem::size_of::<ScanArguments>());
    // SAFETY: the structure is laid out as the kernel reads it, and the region buffer it points to outlives the
    // call and is as long as it says.
    let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), request as libc::Ioctl, &raw mut arguments) };
    if found < 0 {
        return Err(io::Error::last_os_error());
    }
    regions.truncate(found as usize);
    Ok((regions, arguments.walk_end))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]
7f4200000000-7f4200001000 rw-p 00000000 00:06 4                          /dev/zero
7f4210000000-7f4218000000 rw-p 00000000 00:06 4                          /dev/zero
7f4218000000-7f4220000000 rw-p 08000000 00:06 4                          /dev/zero
7f4220000000-7f4220001000 ---p 00000000 00:00 0
";

    #[test]
    fn the_mapping_is_found_in_pieces_and_by_its_size() {
        assert_eq!(find_mapping(MAPS, Path::new(ZEROES), 256 << 20), Some(0x7f42_1000_0000));
        assert_eq!(find_mapping(MAPS, Path::new(ZEROES), 4096), Some(0x7f42_0000_0000));
        assert_eq!(find_mapping(MAPS, Path::new(ZEROES), 512 << 20), None);
    }
}
