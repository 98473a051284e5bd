//! A host kept in memory, whose effects can be made to fail.
//!
//! Owns what each effect does to the objects of the host and in which order it refuses them. Must not decide what is
//! tried: that is the planner's, and the test's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use async_trait::async_trait;
use roost_domain::id::{ExecutionId, SandboxId, SnapshotId};
use roost_domain::usage::Reading;

use crate::host::process::VmmProcess;
use crate::sandbox::plan::{Attachment, Observed, Vmm};
use crate::sandbox::record::{Execution, GuestToken, Sandbox};
use crate::sandbox::world::{Error, World};

/// What happens to one host effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It fails before it did anything.
    Fail,
    /// It happens, and the agent dies before the commit.
    Cut,
    /// It happens twice.
    Repeat,
}

/// A host in memory.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) now_us: i64,
    pub(super) boot: u32,
    pub(super) disks: BTreeSet<SandboxId>,
    pub(super) networks: BTreeSet<ExecutionId>,
    pub(super) vms: BTreeSet<ExecutionId>,
    pub(super) ran: BTreeSet<ExecutionId>,
    pub(super) exited: BTreeSet<ExecutionId>,
    /// When each VM ended, as far as the agent that saw it still lives.
    pub(super) ends: BTreeMap<ExecutionId, i64>,
    pub(super) egress: BTreeSet<ExecutionId>,
    pub(super) edge: BTreeSet<ExecutionId>,
    pub(super) snapshots: BTreeSet<SnapshotId>,
    pub(super) guest: Option<(GuestToken, u64)>,
    pub(super) vms_most: usize,
    pub(super) effects: Vec<&'static str>,
    /// Edge does not answer, for a moment or for long.
    pub(super) edge_away: Option<Attachment>,
    /// Edge comes and goes, and dies of whatever it is asked.
    pub(super) edge_dies: bool,
    pub(super) looks: usize,
    /// The n-th effect from now on meets the fault.
    pub(super) fault: Option<(usize, Fault)>,
}

impl Objects {
    /// What is seen of an edge that is not simply there.
    fn show_edge(&mut self) -> Option<Attachment> {
        self.looks += 1;
        let coming_and_going = [Attachment::Missing, Attachment::Unknown][self.looks % 2];
        self.edge_away.or(self.edge_dies.then_some(coming_and_going))
    }

    fn ask_edge(&self) -> Result<(), Error> {
        match self.edge_away.is_some() || self.edge_dies {
            true => Err(Error::Transient { what: "asking edge", source: "it is away".into() }),
            false => Ok(()),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct MemoryHost(Mutex<Objects>);

impl MemoryHost {
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut Objects) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    /// Carries out an effect under the planned fault.
    fn effect(
        &self,
        name: &'static str,
        act: impl Fn(&mut Objects) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.with(|host| {
            host.now_us += 1000;
            host.effects.push(name);
            let fault = match &mut host.fault {
                Some((0, fault)) => Some(*fault),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            };
            if fault.is_some() {
                host.fault = None;
            }
            let broken = || Error::Transient { what: "planned fault", source: "planned".into() };
            match fault {
                None => act(host)?,
                Some(Fault::Fail) => return Err(broken()),
                Some(Fault::Repeat) => {
                    act(host)?;
                    act(host)?;
                }
                Some(Fault::Cut) => {
                    act(host)?;
                    host.ends.clear();
                    return Err(broken());
                }
            }
            host.vms_most = host.vms_most.max(host.vms.len());
            Ok(())
        })
    }
}

pub(super) fn refuse(reason: &'static str) -> Error {
    Error::Permanent { what: "the memory host refuses", source: reason.into() }
}

#[async_trait]
impl World for MemoryHost {
    fn now_us(&self) -> i64 {
        self.with(|host| host.now_us)
    }

    fn boot_id(&self) -> String {
        self.with(|host| host.boot.to_string())
    }

    async fn find_image(&self, _: &str) -> Result<String, Error> {
        Ok("sha256:0".to_owned())
    }

    async fn observe(&self, sandbox: &Sandbox) -> Result<Observed, Error> {
        let Some(execution) = &sandbox.execution else {
            return Ok(Observed::default());
        };
        let id = execution.id;
        let held = |set: &BTreeSet<ExecutionId>| match set.contains(&id) {
            true => Attachment::Held,
            false => Attachment::Missing,
        };
        Ok(self.with(|host| Observed {
            vmm: match (host.vms.contains(&id), host.exited.contains(&id)) {
                (true, true) => Vmm::GuestExited,
                (true, false) => Vmm::Alive,
                _ => Vmm::Absent,
            },
            host_restarted: host.boot.to_string() != execution.boot_id,
            egress: held(&host.egress),
            edge: host.show_edge().unwrap_or_else(|| held(&host.edge)),
            leftovers: host.networks.contains(&id),
        }))
    }

    async fn vmm_exited(&self, _: &Sandbox, execution: &Execution) {
        if self.with(|host| host.vms.contains(&execution.id) && !host.exited.contains(&execution.id)) {
            std::future::pending().await
        }
    }

    async fn ensure_disk(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let id = sandbox.id;
        self.effect("ensure_disk", |host| {
            host.disks.insert(id);
            Ok(())
        })
    }

    async fn ensure_network(&self, execution: &Execution) -> Result<(), Error> {
        let id = execution.id;
        self.effect("ensure_network", |host| {
            host.networks.insert(id);
            Ok(())
        })
    }

    async fn launch(&self, sandbox: &Sandbox, execution: &Execution) -> Result<VmmProcess, Error> {
        let (id, sandbox, restore) = (execution.id, sandbox.id, execution.restore);
        self.effect("launch", |host| {
            if !host.disks.contains(&sandbox) || !host.networks.contains(&id) {
                return Err(refuse("launched without disk or network"));
            }
            if restore.is_some_and(|snapshot| !host.snapshots.contains(&snapshot)) {
                return Err(Error::SnapshotRefused { source: "no such snapshot".into() });
            }
            if restore.is_none() {
                host.guest = None;
            }
            host.vms.insert(id);
            Ok(())
        })?;
        Ok(VmmProcess { pid: 4711, start_time: 1 })
    }

    async fn attach(&self, _: &Sandbox, execution: &Execution) -> Result<(), Error> {
        let id = execution.id;
        self.effect("attach", |host| {
            host.ask_edge()?;
            host.egress.insert(id);
            host.edge.insert(id);
            Ok(())
        })
    }

    async fn start(&self, _: &Sandbox, execution: &Execution) -> Result<i64, Error> {
        let execution = execution.clone();
        self.effect("start", move |host| {
            if !host.egress.contains(&execution.id) || !host.edge.contains(&execution.id) {
                return Err(refuse("a guest ran before its sockets were held"));
            }
            let wanted = (execution.token.clone(), execution.epoch);
            match (&host.guest, &execution.old_token) {
                // The identical repeat answers ok.
                (Some(guest), _) if *guest == wanted => {}
                (None, None) => {}
                (Some((token, epoch)), Some(old)) if token == old && *epoch < execution.epoch => {}
                _ => return Err(refuse("the guest knows another token or a later epoch")),
            }
            host.guest = Some(wanted);
            host.ran.insert(execution.id);
            Ok(())
        })?;
        Ok(1000)
    }

    async fn quiesce(&self, _: &Execution) -> Result<(), Error> {
        self.effect("quiesce", |host| host.ask_edge())
    }

    async fn save(&self, _: &Sandbox, execution: &Execution) -> Result<(), Error> {
        let snapshot = SnapshotId::from_ulid(execution.id.ulid());
        self.effect("save", |host| {
            host.snapshots.insert(snapshot);
            Ok(())
        })
    }

    async fn resume_in_place(&self, _: &Sandbox, _: &Execution) -> Result<(), Error> {
        self.effect("resume_in_place", |_| Ok(()))
    }

    async fn kill_vmm(&self, _: &Sandbox, execution: &Execution) -> Result<(), Error> {
        let id = execution.id;
        self.effect("kill_vmm", |host| {
            host.vms.remove(&id);
            // What it died of is gone.
            host.edge_dies = false;
            host.ends.entry(id).or_insert(host.now_us);
            Ok(())
        })
    }

    async fn detach(&self, execution: &Execution) -> Result<(), Error> {
        let id = execution.id;
        self.effect("detach", |host| {
            host.egress.remove(&id);
            host.edge.remove(&id);
            Ok(())
        })
    }

    async fn remove_host_objects(&self, execution: &Execution) -> Result<(), Error> {
        let id = execution.id;
        self.effect("remove_host_objects", |host| {
            if host.vms.contains(&id) {
                return Err(refuse("took the network from under a VM"));
            }
            host.networks.remove(&id);
            Ok(())
        })
    }

    async fn remove_disk(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let id = sandbox.id;
        self.effect("remove_disk", |host| {
            host.disks.remove(&id);
            host.snapshots.clear();
            Ok(())
        })
    }

    async fn remove_memory(&self, _: &Sandbox) -> Result<(), Error> {
        self.effect("remove_memory", |host| {
            host.snapshots.clear();
            Ok(())
        })
    }

    async fn remove_spent_snapshots(&self, sandbox: &Sandbox, _: &Execution) -> Result<(), Error> {
        let keep = sandbox.snapshot;
        self.effect("remove_spent_snapshots", |host| {
            host.snapshots.retain(|snapshot| Some(*snapshot) == keep);
            Ok(())
        })
    }

    async fn read_usage(&self, _: &Sandbox, execution: &Execution) -> Result<Option<Reading>, Error> {
        let reading = |host: &mut Objects| {
            let alive_us = host.vms.contains(&execution.id).then_some(host.now_us);
            let boottime_us = host.ends.get(&execution.id).copied().or(alive_us).unwrap_or(0);
            Reading { at_us: host.now_us, boottime_us, ..Reading::default() }
        };
        Ok(Some(self.with(reading)))
    }
}
