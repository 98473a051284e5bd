//! One QEMU process and its guest.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use bytes::Bytes;
use roost_domain::id::SnapshotId;
use serde_json::json;
use std::os::fd::AsFd;
use tokio::sync::watch;
use tokio::time::timeout;

use super::command::{CONSOLE, CONSOLE_BYTES};
use super::launch::last_words;
use super::qmp::{self, Farewell, Qmp, Shutdown};
use crate::host;
use crate::host::memory::GuestMemory;
use crate::host::process::{Exit, Process, VmmProcess};
use crate::snapshot::{Key, Manifest, Snapshots};
use crate::vmm::{End, Error, Geometry, Observed, Vm};

/// Number of the descriptor set that device state is written through; disks have 1 and 2.
const STATE_SET: u32 = 77;
const MIB: u64 = 1024 * 1024;
/// A VMM that closed its control socket, or said that it shuts down, is gone by then.
const ENDING_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct QemuVm {
    process: Arc<Process>,
    qmp: Qmp,
    key: Key,
    memory_bytes: u64,
    stderr: File,
    /// Set once, when the process is gone.
    end: watch::Receiver<Option<End>>,
    killed: Arc<Mutex<bool>>,
    console: tokio::sync::Mutex<Vec<u8>>,
}

impl QemuVm {
    pub(super) fn new(
        process: Process,
        (qmp, farewell): (Qmp, Farewell),
        stderr: File,
        key: Key,
        geometry: Geometry,
    ) -> Self {
        let process = Arc::new(process);
        let killed = Arc::new(Mutex::new(false));
        let (ended, end) = watch::channel(None);
        // Lives as long as the process: it is reaped even if nobody waits for it.
        tokio::spawn({
            let (process, killed) = (Arc::clone(&process), Arc::clone(&killed));
            async move {
                let exit = match process.wait().await {
                    Ok(exit) => exit,
                    Err(error) => {
                        tracing::error!(error = &error as &dyn std::error::Error, "a VMM cannot be watched");
                        Exit::Unknown
                    }
                };
                let by_agent = *killed.lock().unwrap_or_else(PoisonError::into_inner);
                ended.send_replace(Some(choose_end(by_agent, farewell.heard().await, exit)));
            }
        });
        Self {
            process,
            qmp,
            key,
            memory_bytes: geometry.memory_mib * MIB,
            stderr,
            end,
            killed,
            console: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// Replaces an error by the VMM's last words, if it died of it.
    pub(super) async fn explain(&self, error: Error, step: &'static str) -> Error {
        let closed = matches!(
            error,
            Error::Control { source: qmp::Error::Closed { .. } | qmp::Error::Send { .. }, .. }
        );
        if !closed {
            return error;
        }
        match self.ended().await {
            Some(_) => Error::Ended { step, said: last_words(&self.stderr) },
            None => error,
        }
    }

    /// The end of a VMM that seems to be ending.
    async fn ended(&self) -> Option<End> {
        timeout(ENDING_DEADLINE, self.wait_exit()).await.ok()
    }

    async fn command(&self, step: &'static str, command: &'static str) -> Result<(), Error> {
        let done = self.qmp.execute(command, serde_json::Value::Null).await;
        done.map(|_| ()).map_err(|source| Error::Control { step, source })
    }

    async fn status(&self) -> Result<String, Error> {
        let asked = self.qmp.ask_text("query-status", "status").await;
        asked.map_err(|source| Error::Control { step: "asking for the guest's state", source })
    }

    /// Has QEMU write the state of its devices into an open file.
    async fn save_devices(&self, file: &File) -> Result<(), Error> {
        let failed = |source| Error::Control { step: "saving the device state", source };
        let set = json!({ "fdset-id": STATE_SET });
        self.qmp.execute_with("add-fd", set.clone(), file.as_fd()).await.map_err(failed)?;
        let target = json!({ "filename": format!("/dev/fdset/{STATE_SET}"), "live": false });
        let saved = self.qmp.execute("xen-save-devices-state", target).await;
        // Leaves nothing open in QEMU, whether it worked or not.
        let removed = self.qmp.execute("remove-fd", set).await;
        saved.map_err(failed)?;
        removed.map(|_| ()).map_err(failed)
    }
}

/// What is most telling of three sources.
fn choose_end(killed: bool, shutdown: Option<Shutdown>, exit: Exit) -> End {
    match (killed, shutdown, exit) {
        (true, _, _) => End::Killed,
        (_, Some(Shutdown::ByGuest), _) => End::GuestShutdown,
        (_, Some(Shutdown::GuestReset), _) => End::GuestReset,
        (_, Some(Shutdown::ByHost), _) => End::Killed,
        (_, None, Exit::Code(code)) => End::Crashed { code: Some(code), signal: None },
        (_, None, Exit::Signal(signal)) => End::Crashed { code: None, signal: Some(signal) },
        (_, None, Exit::Unknown) => End::Unknown,
    }
}

#[async_trait]
impl Vm for QemuVm {
    fn process(&self) -> VmmProcess {
        self.process.identity()
    }

    async fn cont(&self) -> Result<(), Error> {
        self.command("letting the guest run", "cont").await
    }

    async fn stop(&self) -> Result<(), Error> {
        self.command("stopping the guest", "stop").await
    }

    async fn observe(&self) -> Result<Observed, Error> {
        if let Some(end) = *self.end.borrow() {
            return Ok(Observed::Gone(end));
        }
        let status = match self.status().await {
            Ok(status) => status,
            Err(
                error @ Error::Control { source: qmp::Error::Closed { .. } | qmp::Error::Send { .. }, .. },
            ) => {
                return self.ended().await.map(Observed::Gone).ok_or(error);
            }
            Err(error) => return Err(error),
        };
        match status.as_str() {
            "running" => Ok(Observed::Running),
            "paused" | "prelaunch" => Ok(Observed::Paused),
            "io-error" => Ok(Observed::Stalled),
            // On its way out: the guest ended, the process ends in a moment.
            "shutdown" if let Some(end) = self.ended().await => Ok(Observed::Gone(end)),
            // A guest that neither goes on nor ends.
            "internal-error" | "guest-panicked" => {
                self.process.kill().map_err(Error::Watch)?;
                Ok(Observed::Gone(self.wait_exit().await))
            }
            _ => Err(Error::State { step: "being asked", found: status }),
        }
    }

    async fn save(&self, snapshots: &Snapshots, id: SnapshotId) -> Result<Manifest, Error> {
        let status = self.status().await?;
        if status != "paused" {
            return Err(Error::State { step: "being stopped", found: status });
        }
        let all = snapshots.clone();
        let draft = host::off_worker(move || all.begin(id)).await.map_err(Error::Save)?;
        self.save_devices(draft.device()).await?;
        let (process, memory_bytes, key) = (self.process(), self.memory_bytes, self.key.clone());
        host::off_worker(move || {
            let memory = GuestMemory::find(process, memory_bytes).map_err(Error::Memory)?;
            let ram = draft.write_ram(&memory).map_err(Error::Save)?;
            draft.commit(key, ram).map_err(Error::Save)
        })
        .await
    }

    async fn kill(&self) -> Result<(), Error> {
        if self.end.borrow().is_none() {
            *self.killed.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.process.kill().map_err(Error::Watch)?;
        }
        self.wait_exit().await;
        Ok(())
    }

    async fn wait_exit(&self) -> End {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(known) => known.unwrap_or(End::Unknown),
            // The watching task is gone with its runtime.
            Err(_) => End::Unknown,
        }
    }

    async fn console(&self, max_bytes: usize) -> Result<Bytes, Error> {
        let failed = |source| Error::Control { step: "reading the console", source };
        let mut kept = self.console.lock().await;
        // Reading takes the bytes out of QEMU's ring, so what was read is kept for the next reader.
        let request = json!({ "device": CONSOLE, "size": CONSOLE_BYTES, "format": "base64" });
        let answer = self.qmp.execute("ringbuf-read", request).await.map_err(failed)?;
        let malformed = || failed(qmp::Error::Answer { command: "ringbuf-read" });
        let text = answer.as_str().ok_or_else(malformed)?;
        let fresh = base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| malformed())?;
        kept.extend_from_slice(&fresh);
        let surplus = kept.len().saturating_sub(CONSOLE_BYTES);
        kept.drain(..surplus);
        Ok(Bytes::copy_from_slice(&kept[kept.len().saturating_sub(max_bytes)..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_by_who_knows_best() {
        assert_eq!(choose_end(true, Some(Shutdown::ByGuest), Exit::Signal(9)), End::Killed);
        assert_eq!(choose_end(false, Some(Shutdown::ByGuest), Exit::Code(0)), End::GuestShutdown);
        assert_eq!(choose_end(false, Some(Shutdown::GuestReset), Exit::Unknown), End::GuestReset);
        let crashed = End::Crashed { code: None, signal: Some(6) };
        assert_eq!(choose_end(false, None, Exit::Signal(6)), crashed);
        assert_eq!(choose_end(false, None, Exit::Unknown), End::Unknown);
    }
}
