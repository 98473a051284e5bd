//! Real guests on QEMU: boot, hold, save, restore, adopt, end.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use roost_agent::host::{cgroup, file, memory, netns, reclaim, seal, sockets, tap};
use roost_agent::snapshot::{Snapshots, ram};
use roost_agent::vmm::choose::{self, Place};
use roost_agent::vmm::qemu::{Accelerator, Qemu};
use roost_agent::vmm::{AdoptSpec, Driver, End, Error, Geometry, LaunchSpec, Launched, Observed, Vm};
use roost_domain::Ulid;
use roost_domain::id::SnapshotId;

use crate::scratch::{DEADLINE, Scratch, image, image_with_an_empty_base};

const GEOMETRY: Geometry = Geometry { vcpus: 1, memory_mib: 256 };
const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";

struct Host {
    scratch: Scratch,
    qemu: Qemu,
    snapshots: Snapshots,
}

impl Host {
    async fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let qemu = Qemu::probe(Path::new(PROGRAM), Accelerator::Tcg).await;
        let qemu = qemu.unwrap_or_else(|error| panic!("this test needs {PROGRAM}: {error}"));
        let snapshots = Snapshots::new(&scratch.dir);
        Self { scratch, qemu, snapshots }
    }

    fn spec(&self, number: u128) -> LaunchSpec {
        let names = self.scratch.names(number);
        let namespace = netns::ensure(&names.netns).expect("a namespace");
        seal::ensure(&namespace).expect("sealed");
        let disk = self.scratch.dir.join(format!("disk-{number}"));
        file::ensure_empty_disk(&self.scratch.dir, &disk, 256).expect("a disk");
        LaunchSpec {
            uid: 61_110 + number as u32,
            geometry: GEOMETRY,
            image: image(),
            disk,
            tap: Some(tap::open(&namespace).expect("a tap")),
            cgroup: cgroup::ensure(&names.cgroup, &self.qemu.limits(GEOMETRY)).expect("a cgroup"),
            restore: None,
            names,
        }
    }

    /// Returns when init in the guest listens, and how long that took.
    async fn answers(&self, number: u128) -> Duration {
        let began = Instant::now();
        let namespace = netns::find(&self.scratch.names(number).netns).expect("looked").expect("there");
        while began.elapsed() < DEADLINE {
            let socket = sockets::open_dial_sockets(&namespace, 1).expect("made").remove(0);
            let dialled = tokio::task::spawn_blocking(move || {
                let socket = socket2::Socket::from(socket);
                let target: SocketAddr = "10.0.0.2:1021".parse().expect("an address");
                #[expect(clippy::disallowed_methods, reason = "a test dials its own namespace")]
                socket.connect_timeout(&target.into(), Duration::from_millis(50))
            });
            if dialled.await.expect("joined").is_ok() {
                return began.elapsed();
            }
        }
        panic!("the guest did not answer within {DEADLINE:?}");
    }
}

/// The memory in a snapshot.
struct Pages(RefCell<Vec<u8>>);

impl Pages {
    fn of(snapshots: &Snapshots, id: SnapshotId) -> Self {
        let pages = Self(RefCell::new(vec![0; 256 << 20]));
        snapshots.open(id).expect("opened").read_ram(&pages).expect("read");
        pages
    }

    fn different(&self, other: &Self) -> usize {
        let (ours, theirs) = (self.0.borrow(), other.0.borrow());
        ours.chunks(4096).zip(theirs.chunks(4096)).filter(|(a, b)| a != b).count()
    }
}

impl ram::Target for Pages {
    fn bytes(&self) -> u64 {
        self.0.borrow().len() as u64
    }

    fn write(&self, offset: u64, contents: &[u8]) -> Result<(), memory::Error> {
        let start = offset as usize;
        self.0.borrow_mut()[start..start + contents.len()].copy_from_slice(contents);
        Ok(())
    }
}

async fn console(vm: &Arc<dyn Vm>) -> String {
    String::from_utf8_lossy(&vm.console(65_536).await.expect("read")).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_boots_is_held_and_is_ended() {
    let host = Host::new("boot").await;
    let Launched { process, vm } = host.qemu.launch(host.spec(1)).await.expect("launched");
    assert_eq!(vm.observe().await.expect("asked"), Observed::Paused, "nothing runs before it is told to");
    let _listener =
        sockets::open_listener(&netns::find(&host.scratch.names(1).netns).expect("looked").expect("there"));
    vm.cont().await.expect("running");
    println!("answered after {:?}", host.answers(1).await);
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).expect("running");
    for line in [
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Uid:\t61111\t",
    ] {
        assert!(status.contains(line), "{line} while it serves: {status}");
    }
    vm.cont().await.expect("still running");
    assert_eq!(vm.observe().await.expect("asked"), Observed::Running);
    vm.stop().await.expect("stopped");
    vm.stop().await.expect("still stopped");
    assert_eq!(vm.observe().await.expect("asked"), Observed::Paused);
    println!("console: {}", console(&vm).await);
    vm.kill().await.expect("ended");
    vm.kill().await.expect("ended again");
    assert_eq!(vm.observe().await.expect("asked"), Observed::Gone(End::Killed));
    assert_eq!(
        roost_agent::host::process::VmmProcess::of_pid(process.pid).expect("looked"),
        None,
        "no zombie"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_survives_save_kill_and_restore_elsewhere() {
    let host = Host::new("restore").await;
    let Launched { vm, .. } = host.qemu.launch(host.spec(1)).await.expect("launched");
    vm.cont().await.expect("running");
    host.answers(1).await;
    let id = SnapshotId::from_ulid(Ulid::from(7));
    let running = vm.save(&host.snapshots, id).await.expect_err("it runs");
    assert!(matches!(running, Error::State { .. }), "{running:?}");
    vm.stop().await.expect("stopped");
    let began = Instant::now();
    let manifest = vm.save(&host.snapshots, id).await.expect("saved");
    println!("saved {} MiB in {:?}", manifest.ram.bytes >> 20, began.elapsed());
    let again = vm.save(&host.snapshots, id).await.expect("saved again");
    assert_eq!(again.ram, manifest.ram, "a stopped guest changes nothing");
    vm.kill().await.expect("ended");

    for number in [2, 3] {
        let mut spec = host.spec(number);
        file::copy_sparse(&host.scratch.dir.join("disk-1"), &spec.disk).expect("copied");
        spec.restore = Some(host.snapshots.open(id).expect("opened"));
        let _listener =
            sockets::open_listener(&netns::find(&spec.names.netns).expect("looked").expect("there"));
        let began = Instant::now();
        let Launched { vm, .. } = host.qemu.launch(spec).await.expect("restored");
        let loaded = began.elapsed();
        assert_eq!(vm.observe().await.expect("asked"), Observed::Paused);
        // What was loaded is what was saved, but for the few pages that activated devices write.
        let copy = SnapshotId::from_ulid(Ulid::from(100 + number));
        vm.save(&host.snapshots, copy).await.expect("saved");
        let different = Pages::of(&host.snapshots, id).different(&Pages::of(&host.snapshots, copy));
        assert!(different <= 32, "{different} pages differ");
        let written = Pages::of(&host.snapshots, id).different(&Pages(RefCell::new(vec![0; 256 << 20])));
        assert!(written > 1000, "a booted guest has written more than {written} pages");
        vm.cont().await.expect("running");
        println!("loaded in {loaded:?}, answered {:?} after", host.answers(number).await);
        vm.kill().await.expect("ended");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_does_not_fit_is_refused_before_anything_starts() {
    let host = Host::new("misfit").await;
    let Launched { vm, .. } = host.qemu.launch(host.spec(1)).await.expect("launched");
    vm.cont().await.expect("running");
    vm.stop().await.expect("stopped");
    let id = SnapshotId::from_ulid(Ulid::from(7));
    vm.save(&host.snapshots, id).await.expect("saved");
    vm.kill().await.expect("ended");
    let mut spec = host.spec(2);
    spec.geometry.memory_mib = 320;
    spec.restore = Some(host.snapshots.open(id).expect("opened"));
    let error = host.qemu.launch(spec).await.expect_err("another size");
    assert!(error.is_snapshot_unusable() && matches!(error, Error::Incompatible(_)), "{error:?}");

    let ram = host.snapshots.directory(&id).join("ram");
    let mut bytes = std::fs::read(&ram).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&ram, bytes).expect("written");
    let mut spec = host.spec(3);
    let group = spec.cgroup.clone();
    spec.restore = Some(host.snapshots.open(id).expect("opened"));
    let error = host.qemu.launch(spec).await.expect_err("damaged");
    assert!(error.is_snapshot_unusable(), "{error:?}");
    assert!(group.processes().expect("listed").is_empty(), "nothing of it runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_guest_is_taken_over() {
    let host = Host::new("takeover").await;
    let Launched { process, vm } = host.qemu.launch(host.spec(1)).await.expect("launched");
    vm.cont().await.expect("running");
    // The agent is gone: its connection to the VMM closes.
    drop(vm);
    let spec = || AdoptSpec { names: host.scratch.names(1), process, geometry: GEOMETRY, image: image() };
    let vm = host.qemu.adopt(spec()).await.expect("asked").expect("adopted");
    assert_eq!(vm.observe().await.expect("asked"), Observed::Running);
    host.answers(1).await;
    vm.stop().await.expect("stopped");
    vm.save(&host.snapshots, SnapshotId::from_ulid(Ulid::from(1))).await.expect("saved");
    // A parent that was saved to be forked goes on.
    vm.cont().await.expect("running");
    host.answers(1).await;
    let waiting = tokio::spawn({
        let vm = Arc::clone(&vm);
        async move { vm.wait_exit().await }
    });
    vm.kill().await.expect("ended");
    assert_eq!(waiting.await.expect("joined"), End::Killed);
    assert!(host.qemu.adopt(spec()).await.expect("asked").is_none(), "it is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_qemu_says_when_it_fails_is_in_the_error() {
    let host = Host::new("said").await;
    let mut spec = host.spec(1);
    std::fs::write(&spec.disk, b"").expect("written");
    spec.geometry.memory_mib = 1;
    let error = host.qemu.launch(spec).await.expect_err("a guest of 1 MiB");
    println!("{error}");
    assert!(matches!(&error, Error::Ended { said, .. } if !said.is_empty()), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trial_boot_tells_a_working_machine() {
    let host = Host::new("trial").await;
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.roost/images");
    let place = |number: u128| Place {
        instance: &host.scratch.instance,
        program: Path::new(PROGRAM),
        image_dir: &images,
        uid: 61_120,
        execution: host.scratch.names(number).execution,
    };
    choose::try_boot(Accelerator::Tcg, place(1)).await.expect("emulation works everywhere");
    let choice = choose::choose("auto", place(2)).await.expect("something always works");
    println!("{}: {}", choice.name, choice.reasons.join("; "));
    assert!(reclaim::list(&host.scratch.instance).expect("listed").is_empty(), "nothing stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_reboots_is_gone_and_says_so() {
    let host = Host::new("reset").await;
    let mut spec = host.spec(1);
    // Without its base image init gives up, and the kernel panics and reboots.
    let directory = host.scratch.dir.join("images");
    spec.image = image_with_an_empty_base(&directory);
    let Launched { vm, .. } = host.qemu.launch(spec).await.expect("launched");
    vm.cont().await.expect("running");
    let end = tokio::time::timeout(DEADLINE, vm.wait_exit()).await.expect("it ends by itself");
    assert_eq!(end, End::GuestReset);
    assert_eq!(vm.observe().await.expect("asked"), Observed::Gone(End::GuestReset));
}

/// A file system of its own, so small that it can be filled.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).expect("made");
        let none = None::<&str>;
        nix::mount::mount(none, &at, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=24m"))
            .expect("mounted");
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_host_holds_the_guest_until_there_is_room() {
    let host = Host::new("full").await;
    let small = SmallDisk::mount(host.scratch.dir.join("small"));
    let mut spec = host.spec(1);
    let disk = small.0.join("disk");
    file::copy_sparse(&spec.disk, &disk).expect("copied");
    spec.disk = disk;
    let ballast = small.0.join("ballast");
    file::ensure_ballast(&ballast, file::space(&small.0).expect("measured").available_bytes).expect("filled");
    let Launched { vm, .. } = host.qemu.launch(spec).await.expect("launched");
    vm.cont().await.expect("running");
    let end = Instant::now() + DEADLINE;
    while vm.observe().await.expect("asked") != Observed::Stalled {
        assert!(Instant::now() < end, "the guest writes to its disk and is held");
        tokio::task::yield_now().await;
    }
    assert!(file::release_ballast(&ballast).expect("released"));
    vm.cont().await.expect("running");
    host.answers(1).await;
    assert_eq!(vm.observe().await.expect("asked"), Observed::Running);
    vm.kill().await.expect("ended");
}
