//! Sandboxes of this host: one actor each, driven by what is wanted of them.
//!
//! Owns the table of actors and the one way in (`ensure`). What is wanted is committed first and acted on after, so
//! an answer given is never forgotten.

pub mod actor;
#[cfg(test)]
mod fault;
pub mod live;
pub mod plan;
pub mod record;
pub mod recover;
pub(crate) mod status;
pub mod step;
pub mod world;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use roost_domain::desired::{Desired, Offer, Run};
use roost_domain::id::SandboxId;
use tokio::sync::{Notify, watch};

use self::record::{GuestToken, Sandbox};
pub(crate) use self::status::from_run;
use self::world::World;
use crate::store::{self, Store};

/// Sandboxes one host takes at most, destroyed ones not counted.
pub const SANDBOXES_MAX: usize = 10_000;

/// Why a wish was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the wish could not be recorded")]
    Store(#[from] store::Error),
    #[error("this host holds {SANDBOXES_MAX} sandboxes, its limit")]
    Full,
}

/// A cheap handle to all sandboxes of this host.
#[derive(Clone)]
pub struct Manager {
    context: actor::Context,
    actors: Arc<Mutex<HashMap<SandboxId, actor::Handle>>>,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Manager").finish_non_exhaustive()
    }
}

impl Manager {
    pub fn new(
        world: Arc<dyn World>,
        store: Store,
        settings: step::Settings,
        dataplane: watch::Receiver<u64>,
    ) -> Self {
        let committed = Arc::new(Notify::new());
        let context = actor::Context { world, store, settings, dataplane, committed };
        Self { context, actors: Arc::default() }
    }

    /// Told after every commit of any sandbox.
    pub fn committed(&self) -> Arc<Notify> {
        Arc::clone(&self.context.committed)
    }

    /// Commits what is wanted of a sandbox, creating its row if it is new, and sets its actor to work.
    /// A wish that is not newer than the last one changes nothing.
    pub async fn ensure(&self, draft: store::sandbox::Draft) -> Result<Sandbox, Error> {
        if self.lock().len() >= SANDBOXES_MAX && !self.lock().contains_key(&draft.id) {
            return Err(Error::Full);
        }
        let id = draft.id;
        let sandbox = self.context.store.write(move |tx| store::sandbox::accept(tx, &draft)).await?;
        self.wake(id);
        Ok(sandbox)
    }

    /// Asks for `run` on top of what is wanted now: for wishes of this host's own operator about local sandboxes.
    pub async fn request(&self, id: SandboxId, run: Run) -> Result<Sandbox, Error> {
        let sandbox = self
            .context
            .store
            .write(move |tx| {
                let now = store::sandbox::get(tx, id)?.standing.desired;
                let desired = Desired { run, generation: now.generation + 1, ..now };
                store::sandbox::receive(tx, id, Offer { desired, adopted_seq: 0 })?;
                store::sandbox::get(tx, id)
            })
            .await?;
        self.wake(id);
        Ok(sandbox)
    }

    /// Starts the actors of every sandbox the store knows; called once, after recovery.
    pub async fn resume_all(&self) -> Result<usize, Error> {
        let sandboxes = self.context.store.write(store::sandbox::list).await?;
        for sandbox in &sandboxes {
            self.wake(sandbox.id);
        }
        Ok(sandboxes.len())
    }

    pub async fn find(&self, id: SandboxId) -> Result<Option<Sandbox>, Error> {
        Ok(self.context.store.write(move |tx| store::sandbox::find(tx, id)).await?)
    }

    pub async fn list(&self) -> Result<Vec<Sandbox>, Error> {
        Ok(self.context.store.write(store::sandbox::list).await?)
    }

    /// Changes after each commit of this sandbox.
    pub fn commits(&self, id: SandboxId) -> watch::Receiver<u64> {
        self.handle(id).commits
    }

    fn wake(&self, id: SandboxId) {
        self.handle(id).poke.notify_one();
    }

    /// The actor's handle; a sandbox without one (new, or at start-up) gets its actor here.
    fn handle(&self, id: SandboxId) -> actor::Handle {
        let mut actors = self.lock();
        if let Some(handle) = actors.get(&id) {
            return handle.clone();
        }
        let table = Arc::clone(&self.actors);
        let handle = actor::start(id, self.context.clone(), move || {
            table.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        });
        actors.insert(id, handle.clone());
        handle
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, actor::Handle>> {
        self.actors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fresh bearer token for a guest RPC: 256 random bits.
fn fresh_token() -> GuestToken {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).expect("the kernel's random source does not fail");
    GuestToken(hex::encode(bytes))
}
