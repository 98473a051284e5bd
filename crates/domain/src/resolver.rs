//! Which secret a logical key means for one sandbox: the six-step walk.
//!
//! ```text
//! binding → user → external_user → external_workspace → workspace → tenant     first match wins
//! ```
//!
//! The walk chooses by identity alone. Whether the chosen secret may go to the host of the request is asked after
//! that ([`admit`]), and a wrong host ends it: falling through to a lower scope would let a guest choose whose key
//! is used. Knows no values.

use crate::external_id::ExternalId;
use crate::host_name::{Host, Pattern};
use crate::id::{SandboxId, SecretId};
use crate::sabotage::Defence;
use crate::text::words;

/// A step of the walk, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    Binding,
    User,
    ExternalUser,
    ExternalWorkspace,
    Workspace,
    Tenant,
}

words!(Step, "resolver step" {
    Binding => "binding",
    User => "user",
    ExternalUser => "external_user",
    ExternalWorkspace => "external_workspace",
    Workspace => "workspace",
    Tenant => "tenant",
});

/// Whose secret it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A platform user; `owner_user_id`.
    User(String),
    ExternalUser(ExternalId),
    ExternalWorkspace(ExternalId),
    /// One of the platform's own workspaces.
    Workspace(String),
    Tenant,
}

impl Owner {
    pub fn step(&self) -> Step {
        match self {
            Self::User(_) => Step::User,
            Self::ExternalUser(_) => Step::ExternalUser,
            Self::ExternalWorkspace(_) => Step::ExternalWorkspace,
            Self::Workspace(_) => Step::Workspace,
            Self::Tenant => Step::Tenant,
        }
    }
}

/// Who asks. Comes from the scheduler's own row of the sandbox, never from the asking host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    pub sandbox: SandboxId,
    pub owner_user_id: Option<String>,
    pub external_user: Option<ExternalId>,
    pub external_workspace: Option<ExternalId>,
    pub workspace_id: String,
}

/// A secret of the asker's tenant with the wanted logical key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub secret: SecretId,
    pub owner: Owner,
    /// Bound to these sandboxes directly.
    pub bound_to: Vec<SandboxId>,
    pub enabled: bool,
    pub expires_us: Option<i64>,
    /// Empty: bound to no host, never swapped.
    pub allowed_hosts: Vec<Pattern>,
}

/// The tenant's switch for credentials of its end-users (DEC-23).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum EndUserCredentials {
    #[default]
    Allowed,
    /// Secrets that belong to an external user do not resolve, bound or not.
    Off,
    /// To the letter: nothing but external workspaces' and the tenant's own secrets resolves.
    Strict,
}

words!(EndUserCredentials, "end-user credentials" {
    Allowed => "allowed",
    Off => "off",
    Strict => "strict",
});

/// Why a step gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Skipped {
    /// The sandbox has no id for this step.
    Blank,
    /// No secret with this key belongs to that id.
    Absent,
    Disabled,
    Expired,
    /// The tenant's switch is off.
    SwitchedOff,
}

words!(Skipped, "reason" {
    Blank => "blank",
    Absent => "absent",
    Disabled => "disabled",
    Expired => "expired",
    SwitchedOff => "switched_off",
});

/// The outcome of the walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution<'a> {
    pub found: Option<(Step, &'a Candidate)>,
    /// Every step before the one that matched, with its reason.
    pub skipped: Vec<(Step, Skipped)>,
}

/// Walks the six steps. `candidates` are the tenant's secrets with the wanted key; the store keeps them unique
/// per owner.
pub fn resolve<'a>(
    asker: &Asker,
    candidates: &'a [Candidate],
    switch: EndUserCredentials,
    now_us: i64,
) -> Resolution<'a> {
    let mut skipped = Vec::new();
    for step in Step::ALL {
        match take_step(*step, asker, candidates, switch, now_us) {
            Ok(candidate) => {
                return Resolution { found: Some((*step, candidate)), skipped };
            }
            Err(reason) => skipped.push((*step, reason)),
        }
    }
    Resolution { found: None, skipped }
}

fn take_step<'a>(
    step: Step,
    asker: &Asker,
    candidates: &'a [Candidate],
    switch: EndUserCredentials,
    now_us: i64,
) -> Result<&'a Candidate, Skipped> {
    if is_blank(step, asker) {
        return Err(Skipped::Blank);
    }
    let matching = candidates.iter().filter(|candidate| matches_step(step, asker, candidate));
    let mut reason = Skipped::Absent;
    for candidate in matching {
        match usable(step, candidate, switch, now_us) {
            Ok(()) => return Ok(candidate),
            Err(unusable) => reason = reason.max(unusable),
        }
    }
    Err(reason)
}

fn is_blank(step: Step, asker: &Asker) -> bool {
    match step {
        Step::User => asker.owner_user_id.as_deref().is_none_or(str::is_empty),
        Step::ExternalUser => asker.external_user.is_none(),
        Step::ExternalWorkspace => asker.external_workspace.is_none(),
        Step::Workspace => asker.workspace_id.is_empty(),
        Step::Binding | Step::Tenant => false,
    }
}

fn matches_step(step: Step, asker: &Asker, candidate: &Candidate) -> bool {
    if step == Step::Binding {
        return candidate.bound_to.contains(&asker.sandbox);
    }
    if candidate.owner.step() != step {
        return false;
    }
    match &candidate.owner {
        Owner::User(id) => asker.owner_user_id.as_ref() == Some(id),
        Owner::ExternalUser(id) => asker.external_user.as_ref() == Some(id),
        Owner::ExternalWorkspace(id) => asker.external_workspace.as_ref() == Some(id),
        Owner::Workspace(id) => asker.workspace_id == *id,
        Owner::Tenant => true,
    }
}

fn usable(step: Step, candidate: &Candidate, switch: EndUserCredentials, now_us: i64) -> Result<(), Skipped> {
    let owner = candidate.owner.step();
    let is_switched_off = match switch {
        EndUserCredentials::Allowed => false,
        EndUserCredentials::Off => owner == Step::ExternalUser,
        EndUserCredentials::Strict => !matches!(step, Step::ExternalWorkspace | Step::Tenant),
    };
    if is_switched_off && !Defence::EndUserSwitch.is_off() {
        Err(Skipped::SwitchedOff)
    } else if !candidate.enabled {
        Err(Skipped::Disabled)
    } else if candidate.expires_us.is_some_and(|expires_us| expires_us <= now_us) {
        Err(Skipped::Expired)
    } else {
        Ok(())
    }
}

/// Whether a resolved secret may go to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    Admitted,
    /// It is bound to other hosts: the request is refused.
    WrongHost,
    /// It is bound to no host: the placeholder goes out as it is.
    Unbound,
}

/// The host gate, after the walk.
pub fn admit(allowed_hosts: &[Pattern], host: &Host) -> Admission {
    if allowed_hosts.is_empty() {
        Admission::Unbound
    } else if allowed_hosts.iter().any(|pattern| pattern.matches(host)) {
        Admission::Admitted
    } else {
        Admission::WrongHost
    }
}

#[cfg(test)]
mod tests;
