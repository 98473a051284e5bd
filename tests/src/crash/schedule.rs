//! Who is killed when: drawn from a seed before anything starts, so that a seed names a run. Pure.

use std::time::Duration;

/// Wait between a recovery and the next kill.
const PAUSE_MS: std::ops::Range<u64> = 200..1600;
/// One kill in so many strikes while the last one is still being recovered from.
const HASTY_ONE_IN: u32 = 4;

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Agent,
    Egress,
    Edge,
    Scheduler,
    Vmm,
}

impl Target {
    pub const ALL: [Target; 5] =
        [Target::Agent, Target::Egress, Target::Edge, Target::Scheduler, Target::Vmm];

    pub fn name(self) -> &'static str {
        match self {
            Target::Agent => "agent",
            Target::Egress => "egress",
            Target::Edge => "edge",
            Target::Scheduler => "scheduler",
            Target::Vmm => "vmm",
        }
    }

    /// A VM takes a boot to come back, so it is killed less often.
    fn weight(self) -> u32 {
        match self {
            Target::Vmm => 1,
            _ => 2,
        }
    }
}

/// One kill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    pub target: Target,
    /// Which of the VMs, counted round, for [`Target::Vmm`].
    pub victim: usize,
    pub after: Duration,
    /// Whether it does not wait for the last kill to be recovered from.
    pub hasty: bool,
}

/// The same for the same seed, and the first kills of a longer schedule are those of a shorter one.
pub fn draw(seed: u64, kills: usize) -> Vec<Kill> {
    let mut random = fastrand::Rng::with_seed(seed);
    let total: u32 = Target::ALL.map(Target::weight).iter().sum();
    let mut one = || {
        let mut ticket = random.u32(0..total);
        let target = Target::ALL.into_iter().find(|target| {
            let found = ticket < target.weight();
            ticket = ticket.saturating_sub(target.weight());
            found
        });
        Kill {
            target: target.unwrap_or(Target::Agent),
            victim: random.usize(0..1000),
            after: Duration::from_millis(random.u64(PAUSE_MS)),
            hasty: random.u32(0..HASTY_ONE_IN) == 0,
        }
    };
    (0..kills).map(|_| one()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_names_a_schedule_in_which_everything_is_killed() {
        let schedule = draw(7, 60);
        assert_eq!(schedule, draw(7, 60));
        assert_eq!(schedule[..8], draw(7, 8)[..]);
        assert_ne!(schedule, draw(8, 60));
        for target in Target::ALL {
            assert!(schedule.iter().any(|kill| kill.target == target), "{target:?}");
        }
        assert!(schedule.iter().any(|kill| kill.hasty) && schedule.iter().any(|kill| !kill.hasty));
    }
}
