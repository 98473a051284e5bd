//! The host effects of each step, on the real host.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use async_trait::async_trait;
use roost_domain::id::SnapshotId;
use roost_domain::usage::{Network, Reading};
use roost_proto::dataplane::from_dataplane::Message as Answer;
use roost_proto::dataplane::to_dataplane::Message as Ask;
use roost_proto::dataplane::{self, Claim, Detach, GuestIdentity, Personalise, Quiesce};
use tracing::warn;

use super::{Live, geometry};
use crate::host::process::VmmProcess;
use crate::host::{cgroup, file, netns, off_worker, reclaim, seal, sockets, tap};
use crate::plane::{ANSWER_DEADLINE, Session};
use crate::sandbox::plan::{Attachment, Observed, Vmm};
use crate::sandbox::record::{Execution, Origin, Phase, Sandbox};
use crate::sandbox::world::{Error, World};
use crate::vmm::{self, End, LaunchSpec, Observed as VmObserved};

/// Dial sockets a sandbox begins with; edge asks for more.
const DIAL_SOCKETS: usize = 8;
const ENTROPY_BYTES: usize = 64;
const QUIESCE_DEADLINE: Duration = Duration::from_secs(5);
/// Added to what edge is given, so that its own answer about a deadline arrives.
const GRACE: Duration = Duration::from_secs(5);

#[async_trait]
impl World for Live {
    fn now_us(&self) -> i64 {
        roost_daemon::clock::now_us()
    }

    fn boot_id(&self) -> String {
        self.host.inner.boot_id.clone()
    }

    async fn find_image(&self, template: &str) -> Result<String, Error> {
        let (host, template) = (self.host.clone(), template.to_owned());
        let image = off_worker(move || host.inner.images.get_current(&template)).await;
        Ok(image.map_err(Error::permanent("choosing the image"))?.digest.clone())
    }

    async fn observe(&self, sandbox: &Sandbox) -> Result<Observed, Error> {
        let Some(execution) = &sandbox.execution else {
            return Ok(Observed::default());
        };
        let names = self.host.names(&execution.id);
        let leftovers = off_worker(move || reclaim::is_there(&names)).await;
        let id = execution.id.to_string();
        Ok(Observed {
            vmm: self.observe_vmm(sandbox, execution).await?,
            host_restarted: self.host.inner.boot_id != execution.boot_id,
            egress: attachment(&self.plane.egress, &id),
            edge: attachment(&self.plane.edge, &id),
            leftovers: leftovers.map_err(Error::transient("looking for host objects"))?,
        })
    }

    async fn vmm_exited(&self, sandbox: &Sandbox, execution: &Execution) {
        if let Ok(Some(vm)) = self.host.find_vm(sandbox, execution).await {
            vm.wait_exit().await;
            self.host.ends().entry(execution.id).or_insert_with(roost_daemon::clock::boottime_us);
        }
    }

    async fn ensure_disk(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let (disk, cache) = (self.host.disk(sandbox.id), self.host.inner.cache_dir.clone());
        let (size_mib, room) = (sandbox.spec.disk_mib, self.host.inner.room.clone());
        off_worker(move || {
            // One that is there is used as it is, however little room there is beside it.
            if !disk.exists() {
                room.check().map_err(Error::permanent("making the disk"))?;
            }
            file::ensure_empty_disk(&cache, &disk, size_mib).map_err(Error::transient("making the disk"))
        })
        .await
    }

    async fn ensure_network(&self, execution: &Execution) -> Result<(), Error> {
        let name = self.host.names(&execution.id).netns;
        off_worker(move || {
            let made = netns::ensure(&name).map_err(Error::transient("making the namespace"))?;
            seal::ensure(&made).map_err(Error::transient("sealing the namespace"))
        })
        .await
    }

    async fn launch(&self, sandbox: &Sandbox, execution: &Execution) -> Result<VmmProcess, Error> {
        let driver = std::sync::Arc::clone(&self.host.inner.driver);
        let names = self.host.names(&execution.id);
        let (limits, looked) = (driver.limits(geometry(sandbox)), names.clone());
        let (cgroup, tap) = off_worker(move || {
            let cgroup =
                cgroup::ensure(&looked.cgroup, &limits).map_err(Error::transient("making the cgroup"))?;
            // A VMM whose launch was not committed never ran its guest: it is replaced.
            cgroup.kill().map_err(Error::transient("ending an earlier launch"))?;
            let netns = netns::find(&looked.netns).map_err(Error::transient("finding the namespace"))?;
            let netns = netns.ok_or_else(|| Error::transient("finding the namespace")("it is gone"))?;
            let tap = tap::open(&netns).map_err(Error::transient("opening the tap"))?;
            Ok::<_, Error>((cgroup, tap))
        })
        .await?;
        self.host.forget_vm(execution.id);
        let restore = match execution.restore {
            Some(id) => Some(self.open_snapshot(id).await?),
            None => None,
        };
        let spec = LaunchSpec {
            names,
            uid: execution.vmm_uid,
            geometry: geometry(sandbox),
            image: self.host.image(sandbox, execution).await?,
            disk: self.host.disk(sandbox.id),
            tap: Some(tap),
            cgroup,
            restore,
        };
        let launched = driver.launch(spec).await.map_err(|error| match error.is_snapshot_unusable() {
            true => Error::SnapshotRefused { source: error.into() },
            false => Error::transient("launching the VMM")(error),
        })?;
        self.host.hold_vm(execution.id, launched.vm);
        Ok(launched.process)
    }

    async fn attach(&self, sandbox: &Sandbox, execution: &Execution) -> Result<(), Error> {
        let id = execution.id.to_string();
        // Before either process can have anything to report of it.
        self.plane.traffic.open(&id, Network::default());
        let is_running = execution.phase == Phase::Running;
        // Edge first: a guest that is to be paused or stopped needs no other.
        for session in [&self.plane.edge, &self.plane.egress] {
            match session.holds(&id) {
                Some(true) => {}
                // A running guest is served by whichever process is there.
                None if is_running => {}
                _ if std::ptr::eq(session, &self.plane.egress) => {
                    self.attach_egress(sandbox, execution).await?
                }
                _ => self.attach_edge(sandbox, execution).await?,
            }
        }
        Ok(())
    }

    async fn start(&self, sandbox: &Sandbox, execution: &Execution) -> Result<i64, Error> {
        let vm = self.host.find_vm(sandbox, execution).await?;
        let vm = vm.ok_or_else(|| Error::permanent("starting the guest")("its VMM is gone"))?;
        vm.cont().await.map_err(Error::transient("starting the guest"))?;
        let deadline = Duration::from_secs(self.config.vmm.start_deadline_s);
        let deadline_ms = deadline.as_millis() as u64;
        let (identity, name) = (Some(self.identity(sandbox, execution)), execution.id.to_string());
        let token = execution.token.0.clone();
        let ask = match (&execution.old_token, execution.restore) {
            (Some(old), Some(_)) => Ask::Personalise(Personalise {
                execution: name,
                old_token: old.0.clone(),
                new_token: token,
                identity,
                deadline_ms,
            }),
            _ => Ask::Claim(Claim { execution: name, token, identity, deadline_ms }),
        };
        let answer = self.plane.edge.request(ask, &[], deadline + GRACE).await;
        let answer = answer.map_err(|error| match error.is_away() {
            // Edge was killed, not the guest: it is asked again, by the next one, and finds what was done.
            true => Error::transient("claiming the guest")(error),
            // Once: a guest that did not answer by the deadline will not by another.
            false => Error::permanent("claiming the guest")(error),
        });
        match answer? {
            Answer::Claimed(_) => Ok((self.now_us() - execution.created_us).max(0)),
            _ => Err(Error::permanent("claiming the guest")("edge answered something else")),
        }
    }

    async fn quiesce(&self, execution: &Execution) -> Result<(), Error> {
        let deadline_ms = QUIESCE_DEADLINE.as_millis() as u64;
        let quiesce = Quiesce { execution: execution.id.to_string(), deadline_ms };
        let told = self.plane.edge.tell(Ask::Quiesce(quiesce), &[], QUIESCE_DEADLINE + GRACE).await;
        told.map_err(|error| match error.is_away() {
            true => Error::transient("flushing the guest")(error),
            // The guest had its time and did not answer.
            false => Error::permanent("flushing the guest")(error),
        })
    }

    async fn save(&self, sandbox: &Sandbox, execution: &Execution) -> Result<(), Error> {
        let vm = self.host.find_vm(sandbox, execution).await?;
        let vm = vm.ok_or_else(|| Error::permanent("saving the guest")("its VMM is gone"))?;
        let room = self.host.inner.room.clone();
        off_worker(move || room.check()).await.map_err(Error::permanent("saving the guest"))?;
        if vm.observe().await.map_err(Error::transient("observing the guest"))? == VmObserved::Running {
            // A guest that does not flush is saved as it is: its memory holds what its disk lacks.
            if let Err(error) = self.quiesce(execution).await {
                warn!(error = %roost_daemon::telemetry::chain(&error), "saving a guest that did not flush");
            }
            vm.stop().await.map_err(Error::transient("stopping the guest"))?;
        }
        let disk = self.host.disk(sandbox.id);
        off_worker(move || std::fs::File::open(disk)?.sync_all())
            .await
            .map_err(Error::transient("writing out the disk"))?;
        let id = SnapshotId::from_ulid(execution.id.ulid());
        vm.save(&self.host.inner.snapshots, id).await.map_err(Error::transient("writing the snapshot"))?;
        Ok(())
    }

    async fn resume_in_place(&self, sandbox: &Sandbox, execution: &Execution) -> Result<(), Error> {
        match self.host.find_vm(sandbox, execution).await? {
            Some(vm) => vm.cont().await.map_err(Error::transient("resuming the guest")),
            None => Ok(()),
        }
    }

    async fn kill_vmm(&self, sandbox: &Sandbox, execution: &Execution) -> Result<(), Error> {
        if let Some(vm) = self.host.find_vm(sandbox, execution).await? {
            vm.kill().await.map_err(Error::transient("ending the VMM"))?;
            self.host.ends().entry(execution.id).or_insert_with(roost_daemon::clock::boottime_us);
        }
        self.host.forget_vm(execution.id);
        Ok(())
    }

    async fn detach(&self, execution: &Execution) -> Result<(), Error> {
        let id = execution.id.to_string();
        for session in [&self.plane.egress, &self.plane.edge] {
            if session.holds(&id) == Some(true) {
                let detach = Detach { execution: id.clone() };
                let told = session.tell(Ask::Detach(detach), &[], ANSWER_DEADLINE).await;
                told.map_err(Error::transient("detaching from the data plane"))?;
            }
        }
        Ok(())
    }

    async fn remove_host_objects(&self, execution: &Execution) -> Result<(), Error> {
        let names = self.host.names(&execution.id);
        off_worker(move || reclaim::remove(&names))
            .await
            .map_err(Error::transient("removing host objects"))?;
        self.host.ends().remove(&execution.id);
        self.host.forget_vm(execution.id);
        self.plane.traffic.forget(&execution.id.to_string());
        Ok(())
    }

    async fn remove_disk(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let (disk, map) = (self.host.disk(sandbox.id), self.host.dns_map(sandbox.id));
        let (host, snapshot) = (self.host.clone(), sandbox.snapshot);
        off_worker(move || {
            file::remove_if_there(&disk).map_err(Error::transient("removing the disk"))?;
            file::remove_if_there(&map).map_err(Error::transient("removing the name map"))?;
            match snapshot {
                Some(id) => {
                    host.inner.snapshots.remove(id).map_err(Error::transient("removing the snapshot"))
                }
                None => Ok(()),
            }
        })
        .await
    }

    async fn remove_memory(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let (host, snapshot) = (self.host.clone(), sandbox.snapshot);
        off_worker(move || snapshot.map_or(Ok(()), |id| host.inner.snapshots.remove(id)))
            .await
            .map_err(Error::transient("removing the snapshot"))
    }

    async fn remove_spent_snapshots(&self, sandbox: &Sandbox, execution: &Execution) -> Result<(), Error> {
        let left = SnapshotId::from_ulid(execution.id.ulid());
        let (host, keep, came_from) = (self.host.clone(), sandbox.snapshot, execution.restore);
        off_worker(move || {
            for id in came_from.into_iter().chain([left]).filter(|id| Some(*id) != keep) {
                host.inner.snapshots.remove(id).map_err(Error::transient("removing a spent snapshot"))?;
            }
            Ok(())
        })
        .await
    }

    async fn read_usage(&self, sandbox: &Sandbox, execution: &Execution) -> Result<Option<Reading>, Error> {
        let ended = self.host.ends().get(&execution.id).copied();
        let boottime_us = match ended {
            Some(ended) => ended,
            None if self.host.find_vm(sandbox, execution).await?.is_some() => {
                roost_daemon::clock::boottime_us()
            }
            // Nobody saw its end.
            None => 0,
        };
        let (name, disk) = (self.host.names(&execution.id).cgroup, self.host.disk(sandbox.id));
        let network = self.plane.traffic.of(&execution.id.to_string());
        let now_us = self.now_us();
        off_worker(move || {
            let Some(cgroup) = cgroup::find(&name).map_err(Error::transient("finding the cgroup"))? else {
                return Ok(None);
            };
            let usage = cgroup.usage().map_err(Error::transient("reading the cgroup"))?;
            let disk = file::allocated_bytes(&disk).map_err(Error::transient("measuring the disk"))?;
            Ok(Some(Reading {
                at_us: now_us,
                boottime_us,
                cpu_us: usage.cpu_us,
                memory_mib: usage.memory_bytes >> 20,
                disk_mib: disk >> 20,
                snapshot_mib: 0,
                network,
            }))
        })
        .await
    }
}

impl Live {
    async fn observe_vmm(&self, sandbox: &Sandbox, execution: &Execution) -> Result<Vmm, Error> {
        let Some(vm) = self.host.find_vm(sandbox, execution).await? else {
            return Ok(Vmm::Absent);
        };
        match vm.observe().await.map_err(Error::transient("observing the VMM"))? {
            VmObserved::Running | VmObserved::Paused => Ok(Vmm::Alive),
            // The host's disk was full. The guest tries again when there is more room than others are to be left.
            VmObserved::Stalled => {
                let room = self.host.inner.room.clone();
                if off_worker(move || room.check()).await.is_err() {
                    return Ok(Vmm::Alive);
                }
                vm.cont().await.map_err(Error::transient("letting a stalled guest go on"))?;
                Ok(Vmm::Alive)
            }
            VmObserved::Gone(End::GuestShutdown | End::GuestReset) if execution.phase < Phase::Ending => {
                Ok(Vmm::GuestExited)
            }
            VmObserved::Gone(_) => {
                self.host.forget_vm(execution.id);
                Ok(Vmm::Absent)
            }
        }
    }

    async fn open_snapshot(&self, id: SnapshotId) -> Result<crate::snapshot::Snapshot, Error> {
        let host = self.host.clone();
        let opened = off_worker(move || host.inner.snapshots.open(id)).await;
        opened.map_err(|error| Error::SnapshotRefused { source: vmm::Error::Restore(error).into() })
    }

    fn identity(&self, sandbox: &Sandbox, execution: &Execution) -> GuestIdentity {
        let mut entropy = vec![0u8; ENTROPY_BYTES];
        getrandom::fill(&mut entropy).expect("the kernel's random source does not fail");
        let boot = format!("{:032x}", execution.id.ulid().0);
        GuestIdentity {
            epoch: execution.epoch,
            entropy: entropy.into(),
            host_name: sandbox.spec.host_name.clone(),
            // The machine is the sandbox, each boot is an execution.
            machine_id: format!("{:032x}", sandbox.id.ulid().0),
            boot_id: [&boot[..8], &boot[8..12], &boot[12..16], &boot[16..20], &boot[20..]].join("-"),
            trust_bundle_pem: self.host.find_egress_roots().unwrap_or_default().into(),
            environment: sandbox.spec.environment.clone().into_iter().collect(),
        }
    }

    async fn attach_egress(&self, sandbox: &Sandbox, execution: &Execution) -> Result<(), Error> {
        let (name, map) = (self.host.names(&execution.id).netns, self.host.dns_map(sandbox.id));
        let made = off_worker(move || {
            let netns = find_netns(&name)?;
            let listener =
                sockets::open_listener(&netns).map_err(Error::transient("opening the listener"))?;
            let dns = sockets::open_dns(&netns).map_err(Error::transient("opening the DNS socket"))?;
            let mut options = std::fs::OpenOptions::new();
            let map = options.read(true).append(true).create(true).mode(0o600).open(map);
            Ok::<_, Error>(vec![listener, dns, map.map_err(Error::transient("opening the name map"))?.into()])
        })
        .await?;
        send_attach(&self.plane.egress, self.attach_message(sandbox, execution), &made).await
    }

    async fn attach_edge(&self, sandbox: &Sandbox, execution: &Execution) -> Result<(), Error> {
        let name = self.host.names(&execution.id).netns;
        let made = off_worker(move || {
            let netns = find_netns(&name)?;
            sockets::open_dial_sockets(&netns, DIAL_SOCKETS).map_err(Error::transient("opening dial sockets"))
        })
        .await?;
        let mut attach = self.attach_message(sandbox, execution);
        if execution.phase == Phase::Running {
            attach.guest_token = execution.token.0.clone();
            attach.protocol_generation = self.host.image(sandbox, execution).await?.guest_protocol;
        }
        send_attach(&self.plane.edge, attach, &made).await
    }

    fn attach_message(&self, sandbox: &Sandbox, execution: &Execution) -> dataplane::Attach {
        let origin = match sandbox.origin {
            Origin::Local => dataplane::Origin::Local,
            Origin::Tenant => dataplane::Origin::Tenant,
        };
        dataplane::Attach {
            execution: execution.id.to_string(),
            sandbox: sandbox.id.to_string(),
            lineage: sandbox.lineage.to_string(),
            // Grows over restarts of the agent as well, which a counter would not.
            attach_generation: roost_daemon::clock::boottime_us().max(1) as u64,
            origin: origin.into(),
            ..dataplane::Attach::default()
        }
    }
}

fn find_netns(name: &str) -> Result<netns::Netns, Error> {
    let found = netns::find(name).map_err(Error::transient("finding the namespace"))?;
    found.ok_or_else(|| Error::permanent("finding the namespace")("it is gone"))
}

async fn send_attach(session: &Session, attach: dataplane::Attach, made: &[OwnedFd]) -> Result<(), Error> {
    let borrowed: Vec<BorrowedFd<'_>> = made.iter().map(AsFd::as_fd).collect();
    let told = session.tell(Ask::Attach(attach), &borrowed, ANSWER_DEADLINE).await;
    told.map_err(Error::transient("attaching to the data plane"))
}

fn attachment(session: &Session, execution: &str) -> Attachment {
    match session.holds(execution) {
        None => Attachment::Unknown,
        Some(true) => Attachment::Held,
        Some(false) => Attachment::Missing,
    }
}
