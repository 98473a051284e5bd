//! Quotas: limits of five kinds of subjects, all of which must hold. Says which one does not.
//!
//! The store makes the decision as a conditional write; this is the arithmetic and the words of its answer.

use serde::{Deserialize, Serialize};

use crate::text::words;

/// Whose limit it is. A sandbox counts for every subject it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubjectKind {
    Tenant,
    Workspace,
    Project,
    ExternalWorkspace,
    ExternalUser,
}

words!(SubjectKind, "quota subject" {
    Tenant => "tenant",
    Workspace => "workspace",
    Project => "project",
    ExternalWorkspace => "external_workspace",
    ExternalUser => "external_user",
});

/// Absent means without limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Sandboxes that exist.
    pub max_sandboxes: Option<u64>,
    /// Sandboxes that run.
    pub max_concurrent: Option<u64>,
    pub max_vcpus: Option<u64>,
    pub max_memory_mb: Option<u64>,
}

/// What a subject has, or what a request adds to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    pub sandboxes: u64,
    pub concurrent: u64,
    pub vcpus: u64,
    pub memory_mb: u64,
}

/// Which limit a request would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{quota} of the {subject} is {limit}, {current} are in use")]
pub struct Exceeded {
    pub subject: SubjectKind,
    pub quota: &'static str,
    pub limit: u64,
    pub current: u64,
}

/// Whether a subject may have `added` on top of what it has.
pub fn check(subject: SubjectKind, limits: &Limits, current: &Load, added: &Load) -> Result<(), Exceeded> {
    for (quota, limit, current, added) in [
        ("max_sandboxes", limits.max_sandboxes, current.sandboxes, added.sandboxes),
        ("max_concurrent", limits.max_concurrent, current.concurrent, added.concurrent),
        ("max_vcpus", limits.max_vcpus, current.vcpus, added.vcpus),
        ("max_memory_mb", limits.max_memory_mb, current.memory_mb, added.memory_mb),
    ] {
        // Who is over a lowered limit may still do what adds nothing to it.
        match limit {
            Some(limit) if added > 0 && current.saturating_add(added) > limit => {
                return Err(Exceeded { subject, quota, limit, current });
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_the_limit_that_is_passed() {
        let limits = Limits { max_sandboxes: Some(5), max_concurrent: Some(2), ..Limits::default() };
        let current = Load { sandboxes: 4, concurrent: 2, ..Load::default() };
        let one = Load { sandboxes: 1, concurrent: 1, vcpus: 1, memory_mb: 256 };
        let exceeded = check(SubjectKind::ExternalUser, &limits, &current, &one).unwrap_err();
        assert_eq!((exceeded.quota, exceeded.limit, exceeded.current), ("max_concurrent", 2, 2));
        assert_eq!(exceeded.to_string(), "max_concurrent of the external_user is 2, 2 are in use");
    }

    proptest! {
        #[test]
        fn admitted_one_by_one_never_passes_the_limit(
            limit in 0u64..50,
            requests in proptest::collection::vec(0u64..9, 0..30),
        ) {
            let limits = Limits { max_vcpus: Some(limit), ..Limits::default() };
            let mut current = Load::default();
            for vcpus in requests {
                let added = Load { vcpus, ..Load::default() };
                let fits = current.vcpus + vcpus <= limit || vcpus == 0;
                prop_assert_eq!(check(SubjectKind::Tenant, &limits, &current, &added).is_ok(), fits);
                if fits {
                    current.vcpus += vcpus;
                }
            }
            prop_assert!(current.vcpus <= limit);
        }
    }
}
