//! A VMM that exists in memory only, for tests of what drives VMMs. Never in a release binary.
//!
//! Its guests survive their [`Vm`] handles, as real ones survive the agent, until [`FakeDriver::end`] or a kill.
//! It fails where it is told to, before or after the effect.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use roost_domain::id::{ExecutionId, SnapshotId};
use tokio::sync::watch;

use super::{AdoptSpec, Driver, End, Error, Geometry, LaunchSpec, Launched, Observed, Vm, check_key};
use crate::host::cgroup::Limits;
use crate::host::memory::{self, Range};
use crate::host::process::VmmProcess;
use crate::image::Image;
use crate::snapshot::{Key, Manifest, Snapshots, ram};

/// An operation that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Launch,
    Adopt,
    Cont,
    Stop,
    Observe,
    Save,
    Kill,
}

/// Whether the operation had its effect before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Before,
    After,
}

#[derive(Debug)]
struct Guest {
    process: VmmProcess,
    key: Key,
    memory_bytes: u64,
    state: watch::Sender<Observed>,
    restored_from: Option<SnapshotId>,
}

#[derive(Debug, Default)]
struct State {
    guests: BTreeMap<ExecutionId, Guest>,
    faults: VecDeque<(Operation, Moment)>,
    launches: u32,
}

/// Shared by all handles; a clone is the same host.
#[derive(Debug, Clone, Default)]
pub struct FakeDriver {
    state: Arc<Mutex<State>>,
}

impl FakeDriver {
    /// Makes the next such operation fail.
    pub fn fail_next(&self, operation: Operation, moment: Moment) {
        self.lock().faults.push_back((operation, moment));
    }

    /// Ends a guest from inside.
    pub fn end(&self, execution: &ExecutionId, end: End) {
        if let Some(guest) = self.lock().guests.get(execution) {
            guest.state.send_replace(Observed::Gone(end));
        }
    }

    /// Guests that are not gone.
    pub fn alive(&self) -> Vec<ExecutionId> {
        let state = self.lock();
        let alive =
            state.guests.iter().filter(|(_, guest)| !matches!(*guest.state.borrow(), Observed::Gone(_)));
        alive.map(|(execution, _)| *execution).collect()
    }

    pub fn launches(&self) -> u32 {
        self.lock().launches
    }

    /// The snapshot a guest was started from.
    pub fn restored_from(&self, execution: &ExecutionId) -> Option<SnapshotId> {
        self.lock().guests.get(execution)?.restored_from
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, operation: Operation, moment: Moment) -> Result<(), Error> {
        let mut state = self.lock();
        match state.faults.front() {
            Some(fault) if *fault == (operation, moment) => {
                state.faults.pop_front();
                Err(Error::Injected)
            }
            _ => Ok(()),
        }
    }

    fn handle(&self, execution: ExecutionId, process: VmmProcess) -> Arc<dyn Vm> {
        Arc::new(FakeVm { driver: self.clone(), execution, process })
    }
}

#[async_trait]
impl Driver for FakeDriver {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn key(&self, image: &Image, geometry: Geometry) -> Key {
        Key {
            image: image.digest.clone(),
            vcpus: geometry.vcpus,
            memory_mib: geometry.memory_mib,
            machine: "fake".to_owned(),
            vmm_version: "1".to_owned(),
            hardware: String::new(),
            command_line: image.command_line.clone(),
        }
    }

    fn limits(&self, geometry: Geometry) -> Limits {
        Limits { memory_bytes: geometry.memory_mib << 20, vcpus: geometry.vcpus, processes: 1 }
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Launched, Error> {
        self.check(Operation::Launch, Moment::Before)?;
        let key = self.key(&spec.image, spec.geometry);
        if let Some(snapshot) = &spec.restore {
            check_key(snapshot, &key)?;
        }
        let execution = spec.names.execution;
        let process = {
            let mut state = self.lock();
            state.launches += 1;
            // Above every real pid, so that a mistaken signal hits nobody.
            let process =
                VmmProcess { pid: 0x4000_0000 + state.launches, start_time: u64::from(state.launches) };
            let guest = Guest {
                process,
                key,
                memory_bytes: spec.geometry.memory_mib << 20,
                state: watch::Sender::new(Observed::Paused),
                restored_from: spec.restore.map(|snapshot| snapshot.id),
            };
            state.guests.insert(execution, guest);
            process
        };
        // A launch that fails leaves nothing running.
        self.check(Operation::Launch, Moment::After).inspect_err(|_| self.end(&execution, End::Killed))?;
        Ok(Launched { process, vm: self.handle(execution, process) })
    }

    async fn adopt(&self, spec: AdoptSpec) -> Result<Option<Arc<dyn Vm>>, Error> {
        self.check(Operation::Adopt, Moment::Before)?;
        let execution = spec.names.execution;
        let state = self.lock();
        let found = state.guests.get(&execution).filter(|guest| guest.process == spec.process);
        let alive = found.filter(|guest| !matches!(*guest.state.borrow(), Observed::Gone(_)));
        Ok(alive.map(|guest| self.handle(execution, guest.process)))
    }
}

#[derive(Debug)]
struct FakeVm {
    driver: FakeDriver,
    execution: ExecutionId,
    process: VmmProcess,
}

impl FakeVm {
    fn observed(&self) -> Observed {
        let state = self.driver.lock();
        state.guests.get(&self.execution).map_or(Observed::Gone(End::Unknown), |guest| *guest.state.borrow())
    }

    fn change(&self, operation: Operation, to: Observed) -> Result<(), Error> {
        self.driver.check(operation, Moment::Before)?;
        if let Observed::Gone(_) = self.observed() {
            return Err(Error::Ended { step: "the test went on", said: String::new() });
        }
        if let Some(guest) = self.driver.lock().guests.get(&self.execution) {
            guest.state.send_replace(to);
        }
        self.driver.check(operation, Moment::After)
    }
}

/// Memory of zeroes: enough for a snapshot that can be opened.
struct Zeroes(u64);

impl ram::Source for Zeroes {
    fn bytes(&self) -> u64 {
        self.0
    }

    fn ranges(&self) -> Result<Vec<Range>, memory::Error> {
        Ok(Vec::new())
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), memory::Error> {
        Ok(())
    }
}

#[async_trait]
impl Vm for FakeVm {
    fn process(&self) -> VmmProcess {
        self.process
    }

    async fn cont(&self) -> Result<(), Error> {
        self.change(Operation::Cont, Observed::Running)
    }

    async fn stop(&self) -> Result<(), Error> {
        self.change(Operation::Stop, Observed::Paused)
    }

    async fn observe(&self) -> Result<Observed, Error> {
        self.driver.check(Operation::Observe, Moment::Before)?;
        Ok(self.observed())
    }

    async fn save(&self, snapshots: &Snapshots, id: SnapshotId) -> Result<Manifest, Error> {
        self.driver.check(Operation::Save, Moment::Before)?;
        if self.observed() != Observed::Paused {
            return Err(Error::State { step: "being stopped", found: "running".to_owned() });
        }
        let found = {
            let state = self.driver.lock();
            state.guests.get(&self.execution).map(|guest| (guest.key.clone(), guest.memory_bytes))
        };
        let (key, bytes) = found.ok_or(Error::Injected)?;
        let draft = snapshots.begin(id).map_err(Error::Save)?;
        let ram = draft.write_ram(&Zeroes(bytes)).map_err(Error::Save)?;
        let manifest = draft.commit(key, ram).map_err(Error::Save)?;
        self.driver.check(Operation::Save, Moment::After)?;
        Ok(manifest)
    }

    async fn kill(&self) -> Result<(), Error> {
        self.driver.check(Operation::Kill, Moment::Before)?;
        if !matches!(self.observed(), Observed::Gone(_)) {
            self.driver.end(&self.execution, End::Killed);
        }
        self.driver.check(Operation::Kill, Moment::After)
    }

    async fn wait_exit(&self) -> End {
        let receiver = self.driver.lock().guests.get(&self.execution).map(|guest| guest.state.subscribe());
        let Some(mut receiver) = receiver else {
            return End::Unknown;
        };
        match receiver.wait_for(|state| matches!(state, Observed::Gone(_))).await.as_deref() {
            Ok(Observed::Gone(end)) => *end,
            _ => End::Unknown,
        }
    }

    async fn console(&self, _: usize) -> Result<Bytes, Error> {
        Ok(Bytes::new())
    }
}

#[cfg(test)]
mod tests {
    use roost_domain::Ulid;

    use super::*;
    use crate::host::cgroup;
    use crate::host::names::{Instance, Names};

    const GEOMETRY: Geometry = Geometry { vcpus: 1, memory_mib: 1 };

    fn names() -> Names {
        let instance = Instance::new("fake", "/run/fake").expect("legal");
        Names::of(&instance, &ExecutionId::from_ulid(Ulid::from(1)))
    }

    fn image() -> Arc<Image> {
        Arc::new(Image::blank("template", "sha256:00").expect("opened"))
    }

    fn spec() -> LaunchSpec {
        LaunchSpec {
            cgroup: cgroup::locate(&names().cgroup).expect("located"),
            names: names(),
            uid: 0,
            geometry: GEOMETRY,
            image: image(),
            disk: "/nonexistent".into(),
            tap: None,
            restore: None,
        }
    }

    #[tokio::test]
    async fn it_fails_where_it_is_told_to_and_leaves_what_a_real_one_would() {
        let driver = FakeDriver::default();
        driver.fail_next(Operation::Launch, Moment::After);
        assert!(matches!(driver.launch(spec()).await, Err(Error::Injected)));
        assert!(driver.alive().is_empty(), "a failed launch leaves nothing running");
        let Launched { vm, .. } = driver.launch(spec()).await.expect("launched");
        driver.fail_next(Operation::Stop, Moment::After);
        vm.cont().await.expect("running");
        assert!(vm.stop().await.is_err());
        assert_eq!(vm.observe().await.expect("asked"), Observed::Paused, "the effect was there");
        driver.end(&names().execution, End::GuestReset);
        assert_eq!(vm.wait_exit().await, End::GuestReset);
    }

    #[tokio::test]
    async fn its_snapshots_and_guests_outlive_their_handles() {
        let dir = tempfile::tempdir().expect("a directory");
        let (driver, snapshots) = (FakeDriver::default(), Snapshots::new(dir.path()));
        let id = SnapshotId::from_ulid(Ulid::from(2));
        let Launched { process, vm } = driver.launch(spec()).await.expect("launched");
        vm.save(&snapshots, id).await.expect("saved");
        drop(vm);
        let adopt = || AdoptSpec { names: names(), process, geometry: GEOMETRY, image: image() };
        let vm = driver.adopt(adopt()).await.expect("asked").expect("alive");
        vm.kill().await.expect("ended");
        assert!(driver.adopt(adopt()).await.expect("asked").is_none());
        let restore = Some(snapshots.open(id).expect("opened"));
        driver.launch(LaunchSpec { restore, ..spec() }).await.expect("restored");
        assert_eq!(driver.restored_from(&names().execution), Some(id));
    }
}
