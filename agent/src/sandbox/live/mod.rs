//! The real host behind the steps: namespaces, VMM, data plane, images, disks.
//!
//! Owns what there is only while the agent lives: the driver, open images, handles to running VMMs. All of it is
//! found again after a restart. Decides nothing.

mod effects;
mod requests;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use roost_domain::id::{ExecutionId, SandboxId, SnapshotId};

use crate::config::Config;
use crate::host::names::{Instance, Names};
use crate::host::room::Room;
use crate::host::{cgroup, off_worker};
use crate::image::{Image, Images};
use crate::plane::Plane;
use crate::sandbox::record::{Execution, Sandbox};
use crate::sandbox::world;
use crate::snapshot::{self, Snapshots};
use crate::vmm::{self, AdoptSpec, Driver, Geometry, Vm};

/// Roots that guests must trust, in the identity directory; not there before the host has joined.
pub const EGRESS_ROOTS_FILE: &str = "egress-roots.pem";
/// How many bytes of a guest's console are shown at most: what one packet to the operator takes, with its frame.
const CONSOLE_MAX_BYTES: usize = roost_daemon::packet::MESSAGE_MAX_BYTES - 1024;

/// What this host is, apart from the data plane. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

struct Inner {
    instance: Instance,
    images: Images,
    driver: Arc<dyn Driver>,
    vmm_name: String,
    boot_id: String,
    disk_dir: PathBuf,
    snapshots: Snapshots,
    cache_dir: PathBuf,
    identity_dir: PathBuf,
    room: Room,
    vms: Mutex<HashMap<ExecutionId, Arc<Slot>>>,
    /// When (boot clock) the end of a VMM was seen.
    ends: Mutex<HashMap<ExecutionId, i64>>,
}

/// The handle to one VMM. Locked while it is being adopted: a VMM talks to one client at a time, so a second attempt
/// would only wait for a greeting that never comes.
#[derive(Default)]
struct Slot {
    vm: tokio::sync::Mutex<Option<Arc<dyn Vm>>>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Host").field("instance", &self.inner.instance).finish_non_exhaustive()
    }
}

impl Host {
    /// Makes the directories, chooses the VMM by a real trial.
    pub async fn prepare(config: &Config, room: Room) -> anyhow::Result<Self> {
        let instance = Instance::new(&config.instance, &config.run_dir)?;
        let place = vmm::choose::Place {
            instance: &instance,
            program: &config.vmm.qemu,
            image_dir: &config.image_dir,
            uid: config.vmm.uid_last,
            execution: roost_daemon::ids::fresh(),
        };
        let choice = vmm::choose::choose(&config.vmm.driver, place).await?;
        Self::with_driver(config, room, choice.driver, choice.name)
    }

    /// Makes the directories, for a VMM that is chosen already.
    pub fn with_driver(
        config: &Config,
        room: Room,
        driver: Arc<dyn Driver>,
        vmm_name: String,
    ) -> anyhow::Result<Self> {
        let instance = Instance::new(&config.instance, &config.run_dir)?;
        let [disk_dir, cache_dir, identity_dir] =
            ["disks", "cache", "identity"].map(|name| config.state_dir.join(name));
        for dir in [&disk_dir, &cache_dir, &identity_dir] {
            std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let boot_id =
            std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("reading the boot id")?;
        let inner = Inner {
            instance,
            images: Images::new(&config.image_dir),
            driver,
            vmm_name,
            boot_id: boot_id.trim().to_owned(),
            disk_dir,
            snapshots: Snapshots::new(&config.state_dir),
            cache_dir,
            identity_dir,
            room,
            vms: Mutex::default(),
            ends: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn instance(&self) -> &Instance {
        &self.inner.instance
    }

    pub fn vmm_name(&self) -> &str {
        &self.inner.vmm_name
    }

    pub fn names(&self, execution: &ExecutionId) -> Names {
        Names::of(&self.inner.instance, execution)
    }

    /// Blocks: an image that is new is hashed.
    fn try_list_templates(&self) -> Result<Vec<String>, crate::image::Error> {
        Ok(self.inner.images.list()?.into_iter().map(|template| template.name).collect())
    }

    pub fn list_templates(&self) -> Vec<String> {
        self.try_list_templates().unwrap_or_else(|error| {
            tracing::warn!(error = %roost_daemon::telemetry::chain(&error), "the templates cannot be listed");
            Vec::new()
        })
    }

    /// Whether new sandboxes can be made of `template`; the error says which ones there are.
    pub async fn find_template(&self, template: &str) -> Result<(), String> {
        let templates = self.try_list_templates().map_err(|error| roost_daemon::telemetry::chain(&error))?;
        match templates.iter().any(|name| name == template) {
            true => Ok(()),
            false => {
                Err(format!("no template {template:?} on this host: there is {}", list_or_none(&templates)))
            }
        }
    }

    /// The last output of a guest's console, raw.
    pub async fn console(
        &self,
        sandbox: &Sandbox,
        execution: &Execution,
    ) -> Result<bytes::Bytes, world::Error> {
        let failed = world::Error::transient("reading the console");
        match self.find_vm(sandbox, execution).await? {
            Some(vm) => vm.console(CONSOLE_MAX_BYTES).await.map_err(failed),
            None => Ok(bytes::Bytes::new()),
        }
    }

    /// Removes every memory snapshot that is not among `named`, and unfinished ones. Blocks.
    pub(super) fn remove_snapshots_but(
        &self,
        named: &BTreeSet<SnapshotId>,
    ) -> Result<usize, snapshot::Error> {
        let snapshots = &self.inner.snapshots;
        snapshots.remove_unfinished()?;
        let spent: Vec<_> = snapshots.list()?.into_iter().filter(|id| !named.contains(id)).collect();
        for id in &spent {
            snapshots.remove(*id)?;
        }
        Ok(spent.len())
    }

    /// Removes what this instance leaves on the host when it has no execution: its empty cgroup. Blocks.
    pub fn tidy(&self) {
        if let Err(error) = cgroup::remove_instance(&self.inner.instance) {
            tracing::debug!(error = %roost_daemon::telemetry::chain(&error), "the instance's cgroup stays");
        }
    }

    fn disk(&self, sandbox: SandboxId) -> PathBuf {
        self.inner.disk_dir.join(format!("{}.ext4", sandbox.ulid_text()))
    }

    fn find_egress_roots(&self) -> Option<Vec<u8>> {
        std::fs::read(self.inner.identity_dir.join(EGRESS_ROOTS_FILE)).ok()
    }

    /// Names the guest has been given addresses for. Belongs to the disk, since a resumed guest remembers them.
    fn dns_map(&self, sandbox: SandboxId) -> PathBuf {
        self.inner.disk_dir.join(format!("{}.dns", sandbox.ulid_text()))
    }

    async fn image(&self, sandbox: &Sandbox, execution: &Execution) -> Result<Arc<Image>, world::Error> {
        let (host, template, digest) = (self.clone(), sandbox.spec.template.clone(), execution.image.clone());
        off_worker(move || host.inner.images.get(&template, &digest))
            .await
            .map_err(world::Error::permanent("opening the image"))
    }

    /// The running VMM of an execution: held, or found again after a restart of the agent.
    async fn find_vm(
        &self,
        sandbox: &Sandbox,
        execution: &Execution,
    ) -> Result<Option<Arc<dyn Vm>>, world::Error> {
        let slot = Arc::clone(self.vms().entry(execution.id).or_default());
        let mut held = slot.vm.lock().await;
        if held.is_some() {
            return Ok(held.clone());
        }
        let launched_now = execution.vmm.filter(|_| execution.boot_id == self.inner.boot_id);
        let Some(process) = launched_now else {
            return Ok(None);
        };
        let spec = AdoptSpec {
            names: self.names(&execution.id),
            process,
            geometry: geometry(sandbox),
            image: self.image(sandbox, execution).await?,
        };
        let adopted =
            self.inner.driver.adopt(spec).await.map_err(world::Error::transient("adopting the VMM"))?;
        *held = adopted.clone();
        Ok(adopted)
    }

    fn hold_vm(&self, execution: ExecutionId, vm: Arc<dyn Vm>) {
        self.vms().insert(execution, Arc::new(Slot { vm: tokio::sync::Mutex::new(Some(vm)) }));
    }

    fn forget_vm(&self, execution: ExecutionId) {
        self.vms().remove(&execution);
    }

    fn ends(&self) -> std::sync::MutexGuard<'_, HashMap<ExecutionId, i64>> {
        self.inner.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vms(&self) -> std::sync::MutexGuard<'_, HashMap<ExecutionId, Arc<Slot>>> {
        self.inner.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn list_or_none(names: &[String]) -> String {
    match names.is_empty() {
        true => "none; images/build makes one".to_owned(),
        false => names.join(", "),
    }
}

/// The host together with the data plane.
#[derive(Debug)]
pub struct Live {
    host: Host,
    plane: Plane,
    config: Arc<Config>,
}

impl Live {
    pub fn new(host: Host, plane: Plane, config: Arc<Config>) -> Self {
        Self { host, plane, config }
    }
}

fn geometry(sandbox: &Sandbox) -> Geometry {
    Geometry { vcpus: sandbox.spec.vcpus, memory_mib: sandbox.spec.memory_mib }
}
