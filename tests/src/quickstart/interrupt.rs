//! Ctrl-C and SIGTERM, so that a quickstart that is stopped takes its stack down first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::bail;
use tokio::signal::unix::{SignalKind, signal};

/// Whether somebody asked to stop. Clones share one answer.
#[derive(Debug, Clone)]
pub struct Interrupt {
    came: Arc<AtomicBool>,
}

impl Interrupt {
    pub fn catch() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        drop(inside);
        let came = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&came);
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hangup.recv() => {}
                    }
                    flag.store(true, Ordering::Release);
                }
            });
        })?;
        Ok(Self { came })
    }

    pub fn came(&self) -> bool {
        self.came.load(Ordering::Acquire)
    }

    /// An error if somebody asked to stop: between two steps there is no reason to go on.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.came() {
            bail!("interrupted");
        }
        Ok(())
    }
}
