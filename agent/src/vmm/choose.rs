//! Which VMM this host gets, and why.
//!
//! KVM only where the CPU says it can and a trial boot of the real guest kernel got as far as its end: a
//! `/dev/kvm` that opens proves nothing. Anything else is emulated. [`decide`] is pure; [`choose`] looks and tries.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use roost_domain::id::ExecutionId;
use tokio::time::{Instant, sleep};

use super::qemu::{Accelerator, Qemu};
use super::{Driver, Geometry, LaunchSpec, Observed, Vm};
use crate::host::names::{Instance, Names};
use crate::host::{cgroup, file, off_worker, reclaim};
use crate::image::{self, Image, Images};

const KVM_DEVICE: &str = "/dev/kvm";
const TRIAL_GEOMETRY: Geometry = Geometry { vcpus: 1, memory_mib: 256 };
const TRIAL_DISK_MIB: u64 = 16;
/// A kernel on real KVM needs a second; one that is interpreted never gets there.
const TRIAL_DEADLINE: Duration = Duration::from_secs(15);
const TRIAL_POLL: Duration = Duration::from_millis(50);
/// No init: a kernel that works ends its boot in a panic, stays, and has said so.
const TRIAL_COMMAND_LINE: &str = "rdinit=/roost-trial root=/dev/roost-trial panic=60";
const TRIAL_PROOF: &[u8] = b"Kernel panic";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no VMM \"{0}\": choose auto, qemu-kvm or qemu-tcg")]
    Unknown(String),
    #[error("KVM is asked for, and cannot be used: {0}")]
    KvmUnusable(String),
    #[error("looking at QEMU")]
    Probe(#[source] super::Error),
}

/// What an operator may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Auto,
    QemuKvm,
    QemuTcg,
}

impl Wish {
    pub fn parse(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => Ok(Self::Auto),
            "qemu-kvm" => Ok(Self::QemuKvm),
            "qemu-tcg" => Ok(Self::QemuTcg),
            _ => Err(Error::Unknown(text.to_owned())),
        }
    }
}

/// What a host has to offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `vmx` or `svm` among the CPU's flags.
    pub has_cpu_flag: bool,
    /// Why the device cannot be opened, if so.
    pub device: Result<(), String>,
    /// Outcome of the trial boot. `None`: not tried, because something before it was missing.
    pub trial: Option<Result<(), String>>,
}

/// The accelerator to use and the reasons, as sentences for an operator.
pub fn decide(wish: Wish, facts: &Facts) -> Result<(Accelerator, Vec<String>), Error> {
    let obstacle = if !facts.has_cpu_flag {
        Some("the CPU shows neither vmx nor svm".to_owned())
    } else if let Err(reason) = &facts.device {
        Some(format!("{KVM_DEVICE} does not open: {reason}"))
    } else {
        match &facts.trial {
            Some(Ok(())) => None,
            Some(Err(reason)) => Some(format!("the guest kernel did not boot on KVM: {reason}")),
            None => Some("no trial boot was made on KVM".to_owned()),
        }
    };
    match (wish, obstacle) {
        (Wish::QemuTcg, _) => {
            Ok((Accelerator::Tcg, vec!["emulation is asked for by the configuration".to_owned()]))
        }
        (_, None) => {
            Ok((Accelerator::Kvm, vec!["a trial boot of the guest kernel on KVM answered".to_owned()]))
        }
        (Wish::QemuKvm, Some(obstacle)) => Err(Error::KvmUnusable(obstacle)),
        (Wish::Auto, Some(obstacle)) => Ok((
            Accelerator::Tcg,
            vec![obstacle, "guests are emulated, which is several times slower".to_owned()],
        )),
    }
}

/// Where and as whom a trial may run.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub instance: &'a Instance,
    pub program: &'a Path,
    pub image_dir: &'a Path,
    pub uid: u32,
    /// Names the trial's objects, so that what a crash leaves is reclaimed like any other.
    pub execution: ExecutionId,
}

/// A driver with the reasons it was chosen for.
#[derive(Debug, Clone)]
pub struct Choice {
    pub driver: Arc<dyn Driver>,
    /// Driver and version, for people.
    pub name: String,
    pub reasons: Vec<String>,
}

/// Looks, tries where it is worth it, and decides.
pub async fn choose(wish: &str, place: Place<'_>) -> Result<Choice, Error> {
    let wish = Wish::parse(wish)?;
    let facts = look(wish, place).await;
    let (accelerator, reasons) = decide(wish, &facts)?;
    let qemu = Qemu::probe(place.program, accelerator).await.map_err(Error::Probe)?;
    let name = format!("{} {}", qemu.name(), qemu.version());
    Ok(Choice { driver: Arc::new(qemu), name, reasons })
}

async fn look(wish: Wish, place: Place<'_>) -> Facts {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let device = fs::File::options().read(true).write(true).open(KVM_DEVICE);
    let mut facts = Facts {
        has_cpu_flag: has_virtualisation(&cpu),
        device: device.map(|_| ()).map_err(|error| error.to_string()),
        trial: None,
    };
    if wish != Wish::QemuTcg && facts.has_cpu_flag && facts.device.is_ok() {
        facts.trial = Some(try_boot(Accelerator::Kvm, place).await);
    }
    facts
}

/// Any CPU line of flags with Intel's or AMD's.
fn has_virtualisation(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags.flat_map(str::split_ascii_whitespace).any(|flag| flag == "vmx" || flag == "svm")
}

/// Boots the kernel of any image of this host to its end. An error says in a sentence how far it came.
pub async fn try_boot(accelerator: Accelerator, place: Place<'_>) -> Result<(), String> {
    let qemu = Qemu::probe(place.program, accelerator).await.map_err(|error| describe(&error))?;
    let names = Names::of(place.instance, &place.execution);
    let result = boot(&qemu, &names, place).await;
    let removed = off_worker(move || reclaim::remove(&names)).await;
    result.and(removed.map_err(|error| describe(&error)))
}

async fn boot(qemu: &Qemu, names: &Names, place: Place<'_>) -> Result<(), String> {
    let (limits, images) = (qemu.limits(TRIAL_GEOMETRY), place.image_dir.to_owned());
    let (looked, scratch) = (names.clone(), names.run_dir.clone());
    let prepared = off_worker(move || {
        let image = find_any_image(&images)?;
        fs::create_dir_all(&scratch).map_err(|error| describe(&error))?;
        let disk = scratch.join("disk");
        file::ensure_empty_disk(&scratch, &disk, TRIAL_DISK_MIB).map_err(|error| describe(&error))?;
        let group = cgroup::ensure(&looked.cgroup, &limits).map_err(|error| describe(&error))?;
        Ok::<_, String>((image, disk, group))
    });
    let (image, disk, cgroup) = prepared.await?;
    let spec = LaunchSpec {
        names: names.clone(),
        uid: place.uid,
        geometry: TRIAL_GEOMETRY,
        image: Arc::new(image),
        disk,
        tap: None,
        cgroup,
        restore: None,
    };
    let launched = qemu.launch(spec).await.map_err(|error| describe(&error))?;
    let proof = await_proof(&*launched.vm).await;
    let killed = launched.vm.kill().await.map_err(|error| describe(&error));
    proof.and(killed)
}

/// The kernel's own words on a console that no tenant has ever written to.
async fn await_proof(vm: &dyn Vm) -> Result<(), String> {
    vm.cont().await.map_err(|error| describe(&error))?;
    let end = Instant::now() + TRIAL_DEADLINE;
    while Instant::now() < end {
        match vm.observe().await.map_err(|error| describe(&error))? {
            Observed::Running => {}
            Observed::Paused | Observed::Stalled => return Err("the VMM stopped the guest".to_owned()),
            Observed::Gone(how) => return Err(format!("the VMM ended: {how:?}")),
        }
        let console = vm.console(64 * 1024).await.map_err(|error| describe(&error))?;
        if console.windows(TRIAL_PROOF.len()).any(|window| window == TRIAL_PROOF) {
            return Ok(());
        }
        sleep(TRIAL_POLL).await;
    }
    Err(format!("it did not get to its end within {TRIAL_DEADLINE:?}"))
}

fn find_any_image(dir: &Path) -> Result<Image, String> {
    let images = Images::new(dir);
    let templates = images.list().map_err(|error| describe(&error))?;
    let first = templates.first().ok_or_else(|| "there is no image to try it with".to_owned())?;
    let image = images.get_current(&first.name).map_err(|error| describe(&error))?;
    let trial: Result<Image, image::Error> = image.with_command_line(TRIAL_COMMAND_LINE);
    trial.map_err(|error| describe(&error))
}

/// An error and its sources on one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += ": ";
        text += &error.to_string();
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Facts = Facts { has_cpu_flag: true, device: Ok(()), trial: Some(Ok(())) };

    fn reason(wish: Wish, facts: &Facts) -> (Accelerator, String) {
        let (accelerator, reasons) = decide(wish, facts).expect("a choice");
        (accelerator, reasons[0].clone())
    }

    #[test]
    fn kvm_needs_all_three() {
        assert_eq!(decide(Wish::Auto, &GOOD).expect("a choice").0, Accelerator::Kvm);
        let no_flag = Facts { has_cpu_flag: false, ..GOOD };
        assert_eq!(
            reason(Wish::Auto, &no_flag),
            (Accelerator::Tcg, "the CPU shows neither vmx nor svm".to_owned())
        );
        let no_device = Facts { device: Err("permission denied".to_owned()), ..GOOD };
        assert_eq!(reason(Wish::Auto, &no_device).0, Accelerator::Tcg);
        let no_boot = Facts { trial: Some(Err("it hung".to_owned())), ..GOOD };
        assert!(reason(Wish::Auto, &no_boot).1.ends_with("did not boot on KVM: it hung"));
        assert_eq!(reason(Wish::Auto, &Facts { trial: None, ..GOOD }).0, Accelerator::Tcg);
    }

    #[test]
    fn what_is_asked_for_is_never_silently_replaced() {
        assert_eq!(reason(Wish::QemuTcg, &GOOD).0, Accelerator::Tcg);
        let no_flag = Facts { has_cpu_flag: false, ..GOOD };
        assert!(matches!(decide(Wish::QemuKvm, &no_flag), Err(Error::KvmUnusable(_))));
        assert_eq!(decide(Wish::QemuKvm, &GOOD).expect("a choice").0, Accelerator::Kvm);
        assert!(matches!(Wish::parse("firecracker"), Err(Error::Unknown(_))));
    }

    #[test]
    fn flags_are_whole_words() {
        assert!(has_virtualisation("processor : 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualisation("flags\t\t: fpu svm\n"));
        assert!(!has_virtualisation("flags\t\t: fpu svm_lock\nvmx flags\t: vnmi\n"));
    }
}
