//! Starts a QEMU with its guest stopped, fresh or restored, or takes hold of one.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::command::{self, Command, Descriptor};
use super::qmp::{self, Farewell, Qmp};
use super::vm::QemuVm;
use super::{Accelerator, Qemu};
use crate::host::memory::{self, GuestMemory};
use crate::host::names::Names;
use crate::host::process::Process;
use crate::host::spawn::{self, Spawn};
use crate::host::{self, file};
use crate::snapshot::{self, Snapshot, ram};
use crate::vmm::{AdoptSpec, Driver, End, Error, LaunchSpec, Launched, Vm, check_key};

/// What is kept of a VMM's last words; the kernel's pipe holds no more anyway.
const MAX_STDERR_BYTES: u64 = 64 * 1024;
/// Loading device state takes 1–2 ms; the rest is for a loaded host.
const LOAD_DEADLINE: Duration = Duration::from_secs(30);
const LOAD_POLL: Duration = Duration::from_micros(500);
const MIB: u64 = 1024 * 1024;

pub(super) async fn launch(qemu: &Qemu, spec: LaunchSpec) -> Result<Launched, Error> {
    let key = qemu.key(&spec.image, spec.geometry);
    if let Some(snapshot) = &spec.restore {
        check_key(snapshot, &key)?;
    }
    let (names, geometry, restore) = (spec.names.clone(), spec.geometry, spec.restore.clone());
    let started = {
        let qemu = qemu.clone();
        host::off_worker(move || start(&qemu, spec)).await?
    };
    let Started { process, stderr } = started;
    let vm = match connect(&names, process).await {
        Ok((qmp, process)) => QemuVm::new(process, qmp, stderr, key, geometry),
        Err((error, process)) => return Err(fail(error, process, stderr, "it was starting").await),
    };
    if let Some(snapshot) = restore
        && let Err(error) = load(&vm, snapshot, geometry.memory_mib * MIB).await
    {
        let error = vm.explain(error, "it loaded a snapshot").await;
        vm.kill().await?;
        let killed = matches!(vm.wait_exit().await, End::Crashed { signal: Some(libc::SIGKILL), .. });
        return Err(blame(error, killed));
    }
    Ok(Launched { process: vm.process(), vm: Arc::new(vm) })
}

/// Takes hold of the VMM of an earlier agent.
pub(super) async fn adopt(qemu: &Qemu, spec: AdoptSpec) -> Result<Option<Arc<dyn Vm>>, Error> {
    let Some(process) = Process::adopt(spec.process, &qemu.program).map_err(Error::Watch)? else {
        return Ok(None);
    };
    let key = qemu.key(&spec.image, spec.geometry);
    let stderr = open_pipe(&spec.names.stderr_pipe())?;
    match connect(&spec.names, process).await {
        Ok((qmp, process)) => Ok(Some(Arc::new(QemuVm::new(process, qmp, stderr, key, spec.geometry)))),
        Err((error, process)) => {
            let still_there = Process::open(process.identity()).map_err(Error::Watch)?.is_some();
            if still_there { Err(error) } else { Ok(None) }
        }
    }
}

struct Started {
    process: Process,
    stderr: File,
}

/// Everything that blocks: directories, descriptors, the process itself.
fn start(qemu: &Qemu, spec: LaunchSpec) -> Result<Started, Error> {
    let names = &spec.names;
    let listener = prepare_run_dir(names)?;
    let stderr = open_pipe(&names.stderr_pipe())?;
    let open = |step: &'static str, path: &Path, write: bool| {
        let file = File::options().read(true).write(write).open(path);
        file.map_err(|source| Error::Prepare { step, path: path.to_owned(), source })
    };
    let share = |file: &File, what: &str| {
        let copy = file.try_clone();
        copy.map(OwnedFd::from).map_err(|source| Error::Prepare {
            step: "sharing",
            path: what.into(),
            source,
        })
    };
    let disk = open("opening", &spec.disk, true)?;
    let disk_read_only = open("opening", &spec.disk, false)?;
    let mut descriptors: Vec<OwnedFd> = vec![
        listener.into(),
        share(&spec.image.kernel, "the kernel")?,
        share(&spec.image.initramfs, "the initramfs")?,
        memory::open_zeroes().map_err(Error::Memory)?.into(),
        share(&spec.image.base, "the base image")?,
        disk.into(),
        disk_read_only.into(),
    ];
    debug_assert_eq!(descriptors.len(), Descriptor::Tap as usize, "the order of `Descriptor`");
    let with_tap = spec.tap.is_some();
    descriptors.extend(spec.tap);
    let arguments = command::arguments(&Command {
        name: &names.vmm,
        accelerator: qemu.accelerator,
        geometry: spec.geometry,
        command_line: &spec.image.command_line,
        with_tap,
        restore: spec.restore.is_some(),
    });
    let for_vmm = share(&stderr, "standard error")?;
    let process = spawn::spawn(Spawn {
        program: &qemu.program,
        arguments: &arguments,
        descriptors,
        stderr: for_vmm,
        uid: spec.uid,
        cgroup: &spec.cgroup,
        jail_dir: &names.jail_dir,
        kvm: qemu.accelerator == Accelerator::Kvm,
    })
    .map_err(Error::Spawn)?;
    Ok(Started { process, stderr })
}

/// Makes the run directory, for root alone, with the control socket that QEMU will find listening.
fn prepare_run_dir(names: &Names) -> Result<UnixListener, Error> {
    let dir = &names.run_dir;
    let failed = |step: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| Error::Prepare { step, path, source }
    };
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).map_err(failed("making", parent))?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("making", dir))?;
    let socket = names.qmp_socket();
    remove_old(&socket)?;
    let pipe = names.stderr_pipe();
    remove_old(&pipe)?;
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| failed("making", &pipe)(errno.into()))?;
    UnixListener::bind(&socket).map_err(failed("binding", &socket))
}

fn remove_old(path: &Path) -> Result<(), Error> {
    file::remove_if_there(path).map(|_| ()).map_err(|source| Error::Prepare {
        step: "replacing",
        path: path.to_owned(),
        source: io::Error::other(source),
    })
}

/// Both ends at once: a VMM never waits for a reader, nor does it ever see its reader go.
fn open_pipe(path: &Path) -> Result<File, Error> {
    let pipe = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
    pipe.map_err(|source| Error::Prepare { step: "opening", path: path.to_owned(), source })
}

/// Connects to a VMM, or finds that it ended.
async fn connect(names: &Names, process: Process) -> Result<((Qmp, Farewell), Process), (Error, Process)> {
    let socket = names.qmp_socket();
    let connected = tokio::select! {
        connected = Qmp::connect(&socket) => connected,
        ended = process.wait() => {
            let error = match ended {
                Ok(_) => Error::Ended { step: "it was starting", said: String::new() },
                Err(source) => Error::Watch(source),
            };
            return Err((error, process));
        }
    };
    match connected {
        Ok(qmp) => Ok((qmp, process)),
        Err(source) => Err((Error::Control { step: "connecting to the VMM", source }, process)),
    }
}

/// Ends a VMM that did not come up, and says what it said.
async fn fail(error: Error, process: Process, stderr: File, step: &'static str) -> Error {
    let dead = match process.kill() {
        Ok(()) => process.wait().await,
        Err(error) => Err(error),
    };
    if let Err(source) = dead {
        return Error::Watch(source);
    }
    match last_words(&stderr) {
        said if said.is_empty() => error,
        said => Error::Ended { step, said },
    }
}

/// What a VMM left on its standard error, on one line. It is the VMM's word, good for a log only.
pub(super) fn last_words(mut stderr: &File) -> String {
    let mut bytes = Vec::new();
    // Ends with WouldBlock: the pipe has a writer for ever, ourselves.
    let _ = stderr.by_ref().take(MAX_STDERR_BYTES).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    // QEMU tries to set the size of the memory file, which a device has not.
    let lines = text.lines().filter(|line| !line.starts_with("ftruncate: "));
    let printable = |line: &str| line.chars().filter(|character| !character.is_control()).collect::<String>();
    lines.map(printable).collect::<Vec<_>>().join("; ")
}

/// Tells a snapshot that the VMM refuses from a host in trouble, where another try may work. The kernel kills for
/// want of memory, a VMM itself never ends by SIGKILL.
fn blame(error: Error, killed: bool) -> Error {
    let by_vmm = match &error {
        Error::Ended { .. } => !killed,
        Error::State { .. } | Error::Control { source: qmp::Error::Refused { .. }, .. } => true,
        _ => false,
    };
    if by_vmm { Error::Refused(Box::new(error)) } else { error }
}

/// Puts memory and device state of a snapshot into a VMM that waits for them.
async fn load(vm: &QemuVm, snapshot: Snapshot, memory_bytes: u64) -> Result<(), Error> {
    let process = vm.process();
    let device = host::off_worker(move || {
        let memory = GuestMemory::find(process, memory_bytes).map_err(Error::Memory)?;
        snapshot.read_ram(&memory).map_err(|error| match error {
            // The VMM is in trouble, not the snapshot.
            snapshot::Error::Ram { source: ram::Error::Memory(source), .. } => Error::Memory(source),
            other => Error::Restore(other),
        })?;
        snapshot.open_device().map_err(Error::Restore)
    })
    .await?;
    let control = |step: &'static str| move |source| Error::Control { step, source };
    let qmp = vm.qmp();
    qmp.execute_with("getfd", json!({ "fdname": "device" }), device.as_fd())
        .await
        .map_err(control("handing over the device state"))?;
    qmp.execute("migrate-incoming", json!({ "uri": "fd:device" }))
        .await
        .map_err(control("loading the device state"))?;
    let end = Instant::now() + LOAD_DEADLINE;
    loop {
        let state =
            qmp.ask_text("query-status", "status").await.map_err(control("loading the device state"))?;
        match state.as_str() {
            "paused" => return Ok(()),
            "inmigrate" if Instant::now() < end => sleep(LOAD_POLL).await,
            "inmigrate" => {
                let late = qmp::Error::Deadline { command: "migrate-incoming", deadline: LOAD_DEADLINE };
                return Err(control("loading the device state")(late));
            }
            _ => return Err(Error::State { step: "loading", found: state }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_vmm_itself_refuses_is_held_against_the_snapshot() {
        let ended = || Error::Ended { step: "loading", said: "unknown section".to_owned() };
        let control = |source| Error::Control { step: "loading", source };
        assert!(blame(ended(), false).is_snapshot_unusable());
        assert!(!blame(ended(), true).is_snapshot_unusable(), "the kernel ended it");
        let refused = qmp::Error::Refused { command: "migrate-incoming", description: String::new() };
        assert!(blame(control(refused), false).is_snapshot_unusable());
        let late = qmp::Error::Deadline { command: "migrate-incoming", deadline: LOAD_DEADLINE };
        assert!(!blame(control(late), false).is_snapshot_unusable());
    }
}
