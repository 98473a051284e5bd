//! What this guest is: who holds it, its processes, and what processes are given by default.
//!
//! Owns the order in which a personalisation is applied. The rules of who may call are in `claim`, transport is in
//! `server`, calls are in `service`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use roost_proto::guest::Personalisation;
use tonic::Status;

use crate::claim::{self, ClaimState, Decision};
use crate::exec::is_variable_name;
use crate::identity::{self, Identity};
use crate::reap::Processes;
use crate::trust::{self, Trust};
use crate::{clock, entropy};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Claim(#[from] claim::Error),
    #[error("there is no personalisation")]
    Missing,
    #[error(transparent)]
    Entropy(#[from] entropy::Error),
    #[error(transparent)]
    Clock(#[from] clock::Error),
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error(transparent)]
    Trust(#[from] trust::Error),
    #[error("{0:?} is not the name of an environment variable")]
    VariableName(String),
}

impl From<claim::Error> for Status {
    fn from(error: claim::Error) -> Self {
        let text = error.to_string();
        match error {
            claim::Error::NotClaimed | claim::Error::NotReady | claim::Error::StaleEpoch => {
                Self::failed_precondition(text)
            }
            claim::Error::WrongToken => Self::unauthenticated(text),
            claim::Error::BadToken => Self::invalid_argument(text),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        use identity::Error as Id;
        match error {
            Error::Claim(error) => error.into(),
            Error::Missing
            | Error::VariableName(_)
            | Error::Clock(clock::Error::BeforeEpoch)
            | Error::Entropy(entropy::Error::Length(_))
            | Error::Identity(Id::HostName | Id::MachineId | Id::BootId)
            | Error::Trust(trust::Error::Malformed) => Self::invalid_argument(error.to_string()),
            error => Self::internal(chain(&error)),
        }
    }
}

/// An error with its sources.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Where personalisations take effect; tests on a host must not change the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effects {
    Guest,
    None,
}

#[derive(Debug)]
pub struct Guest {
    claim: Mutex<ClaimState>,
    /// Held while a personalisation is applied, so that a repeat waits for the first.
    applying: tokio::sync::Mutex<Trust>,
    environment: Mutex<Arc<BTreeMap<String, String>>>,
    pub processes: Arc<Processes>,
    effects: Effects,
}

impl Guest {
    pub fn new(effects: Effects) -> Self {
        Self {
            claim: Mutex::default(),
            applying: tokio::sync::Mutex::default(),
            environment: Mutex::default(),
            processes: Arc::default(),
            effects,
        }
    }

    fn claim_state(&self) -> MutexGuard<'_, ClaimState> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn admit(&self, bearer: Option<&str>) -> Result<(), claim::Error> {
        self.claim_state().admit(bearer)
    }

    pub fn epoch(&self) -> u64 {
        self.claim_state().epoch()
    }

    /// The defaults of processes started from now on.
    pub fn environment(&self) -> Arc<BTreeMap<String, String>> {
        self.environment.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub async fn claim(
        &self,
        token: &str,
        personalisation: Option<Personalisation>,
    ) -> Result<Decision, Error> {
        self.change(personalisation, |state, epoch| state.claim(token, epoch)).await
    }

    pub async fn personalise(
        &self,
        old: &str,
        new: &str,
        personalisation: Option<Personalisation>,
    ) -> Result<Decision, Error> {
        self.change(personalisation, |state, epoch| state.personalise(old, new, epoch)).await
    }

    async fn change(
        &self,
        personalisation: Option<Personalisation>,
        decide: impl FnOnce(&mut ClaimState, u64) -> Result<Decision, claim::Error>,
    ) -> Result<Decision, Error> {
        let personalisation = personalisation.ok_or(Error::Missing)?;
        let identity = check(&personalisation)?;
        let mut trust = self.applying.lock().await;
        let decision = decide(&mut self.claim_state(), personalisation.epoch)?;
        if decision == Decision::Apply {
            if self.effects == Effects::Guest {
                apply(&personalisation, &identity, &mut trust)?;
            }
            let mut environment = trust.environment();
            environment.extend(personalisation.environment);
            *self.environment.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(environment);
            self.claim_state().record_ready();
        }
        Ok(decision)
    }
}

/// Everything that can be refused, before anything is changed.
fn check(personalisation: &Personalisation) -> Result<Identity, Error> {
    entropy::check(&personalisation.entropy)?;
    trust::check(&personalisation.trust_bundle_pem)?;
    if personalisation.time_us <= 0 {
        return Err(clock::Error::BeforeEpoch.into());
    }
    if let Some(name) = personalisation.environment.keys().find(|name| !is_variable_name(name)) {
        return Err(Error::VariableName(name.clone()));
    }
    let Personalisation { host_name, machine_id, boot_id, .. } = personalisation;
    Ok(Identity::new(host_name, machine_id, boot_id)?)
}

/// In this order: what comes later (a name, a certificate) may already use randomness and time.
fn apply(personalisation: &Personalisation, identity: &Identity, trust: &mut Trust) -> Result<(), Error> {
    entropy::reseed(&personalisation.entropy)?;
    clock::set(personalisation.time_us)?;
    identity::apply(identity)?;
    trust.apply(&personalisation.trust_bundle_pem)?;
    Ok(())
}
