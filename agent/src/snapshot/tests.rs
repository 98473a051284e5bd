//! Snapshots in a scratch directory: what was written comes back, what was damaged is refused.

use std::cell::RefCell;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use roost_domain::Ulid;

use super::*;
use crate::host::memory::{self, PAGE_BYTES, Range};

/// Memory as a plain vector; all of it counts as written.
struct Plain(RefCell<Vec<u8>>);

impl Plain {
    fn zeroes(pages: usize) -> Self {
        Self(RefCell::new(vec![0; pages * PAGE_BYTES as usize]))
    }

    fn with_pages(pages: usize, written: &[(usize, u8)]) -> Self {
        let plain = Self::zeroes(pages);
        for (page, value) in written {
            let start = page % pages * PAGE_BYTES as usize;
            plain.0.borrow_mut()[start + 7] = *value;
        }
        plain
    }
}

impl ram::Source for Plain {
    fn bytes(&self) -> u64 {
        self.0.borrow().len() as u64
    }

    fn ranges(&self) -> Result<Vec<Range>, memory::Error> {
        Ok(vec![Range { offset: 0, length: ram::Source::bytes(self) }])
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), memory::Error> {
        let start = offset as usize;
        buffer.copy_from_slice(&self.0.borrow()[start..start + buffer.len()]);
        Ok(())
    }
}

impl ram::Target for Plain {
    fn bytes(&self) -> u64 {
        self.0.borrow().len() as u64
    }

    fn write(&self, offset: u64, contents: &[u8]) -> Result<(), memory::Error> {
        let start = offset as usize;
        self.0.borrow_mut()[start..start + contents.len()].copy_from_slice(contents);
        Ok(())
    }
}

fn key() -> Key {
    Key {
        image: "sha256:aa".to_owned(),
        vcpus: 1,
        memory_mib: 256,
        machine: "qemu-tcg/microvm".to_owned(),
        vmm_version: "7.2.22".to_owned(),
        hardware: "-M microvm".to_owned(),
        command_line: "quiet".to_owned(),
    }
}

fn id(number: u128) -> SnapshotId {
    SnapshotId::from_ulid(Ulid::from(number))
}

fn write_snapshot(snapshots: &Snapshots, memory: &Plain) -> Manifest {
    let draft = snapshots.begin(id(1)).expect("begun");
    draft.device().write_all_at(b"device state", 0).expect("written");
    let ram = draft.write_ram(memory).expect("written");
    draft.commit(key(), ram).expect("committed")
}

proptest! {
    #[test]
    fn memory_comes_back_as_it_was(
        pages in 1usize..600,
        written in prop::collection::vec((0usize..600, 1u8..), 0..40),
    ) {
        let memory = Plain::with_pages(pages, &written);
        let mut file = Vec::new();
        let saved = ram::write(&memory, &mut file).expect("written");
        prop_assert_eq!(saved.bytes, file.len() as u64);
        let restored = Plain::zeroes(pages);
        prop_assert_eq!(ram::read(&file[..], &restored).expect("read"), saved);
        prop_assert!(memory.0 == restored.0, "memory differs");
        let distinct: std::collections::BTreeSet<_> = written.iter().map(|(page, _)| page % pages).collect();
        let overhead = file.len() as u64 - distinct.len() as u64 * PAGE_BYTES;
        prop_assert!(overhead <= 36 + 12 * distinct.len() as u64, "zero pages were stored");
    }

    #[test]
    fn a_flipped_bit_is_always_seen(at in 0usize..8192, bit in 0u8..8) {
        let memory = Plain::with_pages(8, &[(1, 1), (5, 2)]);
        let mut file = Vec::new();
        let saved = ram::write(&memory, &mut file).expect("written");
        let at = at % file.len();
        file[at] ^= 1 << bit;
        let seen = ram::read(&file[..], &Plain::zeroes(8)).map_or(true, |read| read != saved);
        prop_assert!(seen, "byte {} bit {}", at, bit);
    }
}

/// More than all batches of the hashing thread take.
#[test]
fn much_memory_is_hashed_as_the_file_it_is() {
    let pages = 5 * ram::CHUNK_BYTES / PAGE_BYTES as usize + 3;
    let written: Vec<_> = (0..pages).map(|page| (page, 1 + (page % 250) as u8)).collect();
    let memory = Plain::with_pages(pages, &written);
    let mut file = Vec::new();
    let saved = ram::write(&memory, &mut file).expect("written");
    assert_eq!(saved.sha256, hex::encode(Sha256::digest(&file)));
    let restored = Plain::zeroes(pages);
    assert_eq!(ram::read(&file[..], &restored).expect("read"), saved);
    assert!(memory.0 == restored.0, "memory differs");
    let cut = &file[..file.len() - ram::CHUNK_BYTES / 2];
    assert!(matches!(ram::read(cut, &Plain::zeroes(pages)), Err(ram::Error::File(_))));
}

#[test]
fn a_snapshot_comes_back_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let snapshots = Snapshots::new(dir.path());
    let memory = Plain::with_pages(16, &[(3, 9), (15, 1)]);
    let manifest = write_snapshot(&snapshots, &memory);
    let snapshot = snapshots.open(id(1)).expect("opened");
    assert_eq!(snapshot.manifest(), &manifest);
    assert_eq!(io::read_to_string(snapshot.open_device().expect("verified")).expect("read"), "device state");
    let restored = Plain::zeroes(16);
    snapshot.read_ram(&restored).expect("verified");
    assert!(memory.0 == restored.0, "memory differs");
    assert_eq!(snapshots.list().expect("listed"), [id(1)]);
    snapshots.remove(id(1)).expect("removed");
    snapshots.remove(id(1)).expect("removed again");
    assert!(matches!(snapshots.open(id(1)), Err(Error::Absent { .. })));
}

#[test]
fn damage_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let snapshots = Snapshots::new(dir.path());
    write_snapshot(&snapshots, &Plain::with_pages(4, &[(1, 1)]));
    let file = |name: &str| snapshots.directory(&id(1)).join(name);
    let overwrite = |name: &str, at: u64| {
        File::options()
            .write(true)
            .open(file(name))
            .expect("opened")
            .write_all_at(b"X", at)
            .expect("written");
    };
    overwrite(RAM, 24 + 12 + 100);
    let snapshot = snapshots.open(id(1)).expect("opened");
    assert!(matches!(snapshot.read_ram(&Plain::zeroes(4)), Err(Error::Corrupt { .. })));
    overwrite(DEVICE, 0);
    assert!(matches!(snapshot.open_device(), Err(Error::Corrupt { .. })));
    let other_size = snapshot.read_ram(&Plain::zeroes(5)).expect_err("another size");
    assert!(matches!(other_size, Error::Ram { source: ram::Error::Size { .. }, .. }), "{other_size:?}");
    let bytes = fs::read(file(RAM)).expect("read");
    fs::write(file(RAM), &bytes[..bytes.len() - 1]).expect("written");
    assert!(matches!(snapshots.open(id(1)), Err(Error::Corrupt { .. })));
    let text = fs::read_to_string(file(MANIFEST)).expect("read").replace("\"format\":1", "\"format\":2");
    fs::write(file(MANIFEST), text).expect("written");
    assert!(matches!(snapshots.open(id(1)), Err(Error::Format { found: 2, .. })));
}

#[test]
fn an_unfinished_snapshot_is_nobodys() {
    let dir = tempfile::tempdir().expect("a directory");
    let snapshots = Snapshots::new(dir.path());
    drop(snapshots.begin(id(2)).expect("begun"));
    assert_eq!(fs::read_dir(dir.path().join("snapshots")).expect("listed").count(), 0);
    std::mem::forget(snapshots.begin(id(2)).expect("begun"));
    assert_eq!(snapshots.list().expect("listed"), []);
    snapshots.remove_unfinished().expect("cleaned");
    assert_eq!(fs::read_dir(dir.path().join("snapshots")).expect("listed").count(), 0);
}

#[test]
fn every_part_of_the_key_counts() {
    let wanted = key();
    assert_eq!(key().check(&wanted), Ok(()));
    let with = |change: fn(&mut Key)| {
        let mut saved = key();
        change(&mut saved);
        saved.check(&wanted).expect_err("differs")
    };
    assert!(matches!(with(|key| key.image.push('b')), Mismatch::Image { .. }));
    assert!(matches!(with(|key| key.vcpus = 2), Mismatch::Geometry { .. }));
    assert!(matches!(with(|key| key.memory_mib = 512), Mismatch::Geometry { .. }));
    assert!(matches!(with(|key| key.machine.push('b')), Mismatch::Machine { .. }));
    assert!(matches!(with(|key| key.vmm_version.push('b')), Mismatch::VmmVersion { .. }));
    assert!(matches!(with(|key| key.hardware.push('b')), Mismatch::Hardware { .. }));
    assert!(matches!(with(|key| key.command_line.push('b')), Mismatch::CommandLine { .. }));
}
