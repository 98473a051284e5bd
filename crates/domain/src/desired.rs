//! What is wanted of a sandbox, and how the two sides that may change it never lose a decision.
//!
//! The scheduler alone raises `generation`. The host may change what it works towards by itself (idle, timeout,
//! auto-resume, crash); such a *local transition* holds until the scheduler decides something else, and the
//! scheduler makes it its own by compare-and-set on the generation it was made under. A user's call that races
//! with it has the greater generation and wins. `placement_epoch` fences a host that was given up.
//!
//! Pure: everything here is tested with messages lost, doubled and reordered (`tests/desired_model.rs`).
//!
//! ```text
//!  scheduler row ── Offer{desired, adopted_seq} ──▶ host standing ── Report{local} ──▶ scheduler row
//!      command(): generation+1, adopted_seq 0            transition(): seq+1 on the standing generation
//!      adopt():   generation+1, adopted_seq = seq        receive():  greater generation wins, or rebases (see there)
//! ```

use serde::{Deserialize, Serialize};

use crate::sabotage::Defence;
use crate::text::words;

/// What a sandbox is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Run {
    Running,
    Paused,
    Stopped,
    Destroyed,
}

words!(Run, "run" {
    Running => "running",
    Paused => "paused",
    Stopped => "stopped",
    Destroyed => "destroyed",
});

/// Why a host made a transition by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// No activity for the sandbox's idle timeout.
    Idle,
    /// The sandbox's lifetime is over.
    Timeout,
    /// A preview or a call woke it.
    AutoResume,
    GuestExited,
    VmmCrashed,
    HostRestarted,
    StartFailed,
    /// The guest's memory could not be saved, so it goes on.
    SnapshotFailed,
    DiskFull,
    /// The operator, at the host's own CLI.
    Operator,
}

words!(Cause, "cause" {
    Idle => "idle",
    Timeout => "timeout",
    AutoResume => "auto_resume",
    GuestExited => "guest_exited",
    VmmCrashed => "vmm_crashed",
    HostRestarted => "host_restarted",
    StartFailed => "start_failed",
    SnapshotFailed => "snapshot_failed",
    DiskFull => "disk_full",
    Operator => "operator",
});

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    pub run: Run,
    /// Raised by the scheduler alone, by one per decision.
    pub generation: u64,
    /// Raised each time the sandbox is placed.
    pub placement_epoch: u64,
}

/// A transition a host made by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// The generation it was made under.
    pub base_generation: u64,
    /// Grows with every local transition of the sandbox on this host.
    pub seq: u64,
    pub run: Run,
    pub cause: Cause,
}

/// What the scheduler sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    pub desired: Desired,
    /// When this generation only takes over a local transition: that transition's `seq`. Otherwise 0.
    pub adopted_seq: u64,
}

/// What a host sends while it holds a local transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    pub placement_epoch: u64,
    pub local: Local,
}

/// The host's side: what it was told last, and what it decided since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub desired: Desired,
    pub local: Option<Local>,
    /// Of the latest local transition; never goes back while the host knows the sandbox.
    pub local_seq: u64,
    /// Every placement up to and including this one was given up.
    pub fenced_epoch: u64,
}

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// It is what the host now works towards.
    Applied,
    /// It takes over an earlier local transition; a later one stays in force on top of it.
    Rebased,
    /// Known already.
    Repeated,
    /// Older than what the host knows.
    Stale,
    /// For a placement that was given up.
    Fenced,
    /// Same generation, other content: the sender was restored from an older state and must decide anew.
    Contradicts,
    /// The sandbox was wanted destroyed: nothing comes after that, whatever a restored sender remembers.
    Destroyed,
}

/// Why a host may not make a local transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the sandbox is {0} already")]
    AlreadySo(Run),
    #[error("the sandbox is to be destroyed")]
    Destroyed,
    #[error("the sandbox was placed on another host")]
    Fenced,
}

impl Standing {
    pub fn new(offer: Offer) -> Self {
        Self { desired: offer.desired, local: None, local_seq: 0, fenced_epoch: 0 }
    }

    pub fn is_fenced(&self) -> bool {
        self.desired.placement_epoch <= self.fenced_epoch
    }

    /// What the host works towards; `None` when the sandbox is another host's now: it must not serve or bill it.
    pub fn target(&self) -> Option<Run> {
        if self.is_fenced() {
            return None;
        }
        Some(self.local.map_or(self.desired.run, |local| local.run))
    }

    pub fn receive(&mut self, offer: Offer) -> Receipt {
        let (new, old) = (offer.desired, self.desired);
        if new.placement_epoch <= self.fenced_epoch {
            return Receipt::Fenced;
        }
        if new.placement_epoch != old.placement_epoch {
            if new.placement_epoch < old.placement_epoch && !Defence::PlacementEpoch.is_off() {
                return Receipt::Stale;
            }
            self.desired = new;
            self.local = None;
            return Receipt::Applied;
        }
        if old.run == Run::Destroyed && new.run != Run::Destroyed {
            return Receipt::Destroyed;
        }
        match new.generation.cmp(&old.generation) {
            std::cmp::Ordering::Less if !Defence::WishOrder.is_off() => Receipt::Stale,
            std::cmp::Ordering::Equal if new.run == old.run => Receipt::Repeated,
            std::cmp::Ordering::Equal => Receipt::Contradicts,
            std::cmp::Ordering::Greater | std::cmp::Ordering::Less => {
                self.desired = new;
                // An adoption of seq 1 must not undo seq 2, which the scheduler has not seen. A user's call must.
                match &mut self.local {
                    Some(local) if offer.adopted_seq > 0 && local.seq > offer.adopted_seq => {
                        local.base_generation = new.generation;
                        Receipt::Rebased
                    }
                    local => {
                        *local = None;
                        Receipt::Applied
                    }
                }
            }
        }
    }

    /// Makes a transition by itself. Whether the sandbox's settings allow it is the caller's question.
    pub fn transition(&mut self, run: Run, cause: Cause) -> Result<Local, Refusal> {
        let target = self.target().ok_or(Refusal::Fenced)?;
        if target == Run::Destroyed {
            return Err(Refusal::Destroyed);
        }
        if target == run {
            return Err(Refusal::AlreadySo(run));
        }
        self.local_seq += 1;
        let local = Local { base_generation: self.desired.generation, seq: self.local_seq, run, cause };
        self.local = Some(local);
        Ok(local)
    }

    /// Gives up every placement up to `epoch`. Repeatable; true if this ended the present one.
    pub fn fence(&mut self, epoch: u64) -> bool {
        let was_fenced = self.is_fenced();
        self.fenced_epoch = self.fenced_epoch.max(epoch);
        !was_fenced && self.is_fenced()
    }

    /// What the scheduler should hear, again and again until it answers with a greater generation.
    pub fn report(&self) -> Option<Report> {
        let local = self.local.filter(|_| !self.is_fenced())?;
        Some(Report { placement_epoch: self.desired.placement_epoch, local })
    }
}

/// The scheduler's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub desired: Desired,
    pub adopted_seq: u64,
}

/// What to do with a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adoption {
    /// Write this row, on condition that the generation is still the one decided on.
    Adopt(Row),
    /// The scheduler decided something else since; the host will hear of it.
    Overruled,
    /// From a host that was given up.
    Fenced,
}

impl Row {
    pub fn new(run: Run) -> Self {
        Self { desired: Desired { run, generation: 1, placement_epoch: 1 }, adopted_seq: 0 }
    }

    pub fn offer(&self) -> Offer {
        Offer { desired: self.desired, adopted_seq: self.adopted_seq }
    }

    /// A decision of a user or an operator. Nothing comes after destroyed.
    #[must_use]
    pub fn command(&self, run: Run) -> Self {
        if self.desired.run == Run::Destroyed {
            return *self;
        }
        Self {
            desired: Desired { run, generation: self.desired.generation + 1, ..self.desired },
            adopted_seq: 0,
        }
    }

    /// The row of the next placement. Only when the former host confirmed its fence: see [`Placement`].
    #[must_use]
    pub fn replaced(&self, placement_epoch: u64) -> Self {
        let desired = Desired { generation: self.desired.generation + 1, placement_epoch, ..self.desired };
        Self { desired, adopted_seq: 0 }
    }

    /// The row to write because a host was told more than this scheduler remembers: it was restored from an older
    /// state. What it remembers, and what was called since, is decided anew above what the host knows; only destroyed
    /// is taken over, since nothing comes after it. `None` in every other case.
    pub fn decide_recovery(&self, told: Desired) -> Option<Self> {
        if told.placement_epoch != self.desired.placement_epoch {
            return None;
        }
        if told.run == Run::Destroyed && self.desired.run != Run::Destroyed {
            let generation = told.generation.max(self.desired.generation);
            return Some(Self { desired: Desired { generation, ..told }, adopted_seq: 0 });
        }
        let contradicts = told.generation == self.desired.generation && told.run != self.desired.run;
        if told.generation <= self.desired.generation && !contradicts {
            return None;
        }
        let generation = told.generation.checked_add(1)?;
        Some(Self { desired: Desired { generation, ..self.desired }, adopted_seq: 0 })
    }

    pub fn decide_adoption(&self, report: &Report) -> Adoption {
        if report.placement_epoch != self.desired.placement_epoch {
            return Adoption::Fenced;
        }
        let local = report.local;
        if local.base_generation != self.desired.generation || self.desired.run == Run::Destroyed {
            return Adoption::Overruled;
        }
        let generation = self.desired.generation + 1;
        Adoption::Adopt(Self {
            desired: Desired { run: local.run, generation, ..self.desired },
            adopted_seq: local.seq,
        })
    }
}

/// Where a sandbox is placed, as the scheduler records it. `H` names a host.
///
/// ```text
/// nowhere ──place──▶ on(host, epoch) ──give_up──▶ fencing(host, epoch) ──confirmed──▶ nowhere(epoch)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement<H> {
    /// On no host; `epoch` is that of the last placement.
    Nowhere {
        epoch: u64,
    },
    On {
        host: H,
        epoch: u64,
    },
    /// Given up: no host may get it until `host` confirmed that it stopped, or the operator vouches for that.
    Fencing {
        host: H,
        epoch: u64,
    },
}

impl<H: Copy + PartialEq> Placement<H> {
    /// The next placement, if no host may still be serving the sandbox.
    #[must_use]
    pub fn place(&self, host: H) -> Option<Self> {
        match *self {
            Self::Nowhere { epoch } => Some(Self::On { host, epoch: epoch + 1 }),
            Self::On { .. } | Self::Fencing { .. } => None,
        }
    }

    #[must_use]
    pub fn give_up(&self) -> Self {
        match *self {
            Self::On { host, epoch } => Self::Fencing { host, epoch },
            other => other,
        }
    }

    /// The host says that it stopped serving every placement up to `epoch`.
    #[must_use]
    pub fn confirmed(&self, by: H, up_to_epoch: u64) -> Self {
        match *self {
            Self::Fencing { host, epoch } if host == by && epoch <= up_to_epoch => Self::Nowhere { epoch },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(run: Run, generation: u64, adopted_seq: u64) -> Offer {
        Offer { desired: Desired { run, generation, placement_epoch: 1 }, adopted_seq }
    }

    #[test]
    fn what_idled_is_not_resumed_by_a_repeated_offer() {
        let mut standing = Standing::new(offer(Run::Running, 1, 0));
        standing.transition(Run::Paused, Cause::Idle).unwrap();
        assert_eq!(standing.receive(offer(Run::Running, 1, 0)), Receipt::Repeated);
        assert_eq!(standing.target(), Some(Run::Paused));
    }

    #[test]
    fn a_racing_call_wins_over_a_local_transition() {
        let mut row = Row::new(Run::Running);
        let mut standing = Standing::new(row.offer());
        standing.transition(Run::Paused, Cause::Idle).unwrap();
        let late = standing.report().unwrap();
        row = row.command(Run::Running);
        assert_eq!(standing.receive(row.offer()), Receipt::Applied);
        assert_eq!((standing.target(), standing.report()), (Some(Run::Running), None));
        assert_eq!(row.decide_adoption(&late), Adoption::Overruled);
    }

    #[test]
    fn an_adoption_does_not_undo_a_later_transition() {
        let mut standing = Standing::new(offer(Run::Running, 1, 0));
        standing.transition(Run::Paused, Cause::Idle).unwrap();
        standing.transition(Run::Running, Cause::AutoResume).unwrap();
        assert_eq!(standing.receive(offer(Run::Paused, 2, 1)), Receipt::Rebased);
        assert_eq!(standing.target(), Some(Run::Running));
        let report = standing.report().unwrap();
        assert_eq!((report.local.base_generation, report.local.seq), (2, 2));
        let row = Row { desired: offer(Run::Paused, 2, 1).desired, adopted_seq: 1 };
        let Adoption::Adopt(adopted) = row.decide_adoption(&report) else { panic!("not adopted") };
        assert_eq!(standing.receive(adopted.offer()), Receipt::Applied);
        assert_eq!((standing.target(), standing.report()), (Some(Run::Running), None));
    }

    #[test]
    fn nothing_comes_back_from_destroyed() {
        let row = Row::new(Run::Destroyed).command(Run::Running);
        assert_eq!(row.desired.run, Run::Destroyed);
        let mut standing = Standing::new(row.offer());
        assert_eq!(standing.transition(Run::Running, Cause::AutoResume), Err(Refusal::Destroyed));
    }

    #[test]
    fn a_fenced_host_neither_serves_nor_decides() {
        let mut standing = Standing::new(offer(Run::Running, 1, 0));
        assert!(standing.fence(1));
        assert!(!standing.fence(1));
        assert_eq!(standing.target(), None);
        assert_eq!(standing.receive(offer(Run::Running, 9, 0)), Receipt::Fenced);
        assert_eq!(standing.transition(Run::Paused, Cause::Idle), Err(Refusal::Fenced));
        let again = Offer {
            desired: Desired { run: Run::Running, generation: 10, placement_epoch: 3 },
            adopted_seq: 0,
        };
        assert_eq!(standing.receive(again), Receipt::Applied);
        assert_eq!(standing.target(), Some(Run::Running));
    }

    #[test]
    fn an_older_wish_does_not_undo_a_newer_one() {
        let mut standing = Standing::new(offer(Run::Running, 4, 0));
        assert_eq!(standing.receive(offer(Run::Destroyed, 3, 0)), Receipt::Stale);
        assert_eq!(standing.target(), Some(Run::Running));
    }

    #[test]
    fn an_older_placement_is_not_followed() {
        let placed = |placement_epoch, run| Offer {
            desired: Desired { run, generation: 9, placement_epoch },
            adopted_seq: 0,
        };
        let mut standing = Standing::new(placed(3, Run::Running));
        assert_eq!(standing.receive(placed(2, Run::Destroyed)), Receipt::Stale);
        assert_eq!(standing.target(), Some(Run::Running));
    }

    #[test]
    fn a_restored_scheduler_decides_above_what_a_host_was_told() {
        let row = |run, generation| Row { desired: offer(run, generation, 0).desired, adopted_seq: 0 };
        let told = |run, generation| offer(run, generation, 0).desired;
        let remembered = row(Run::Paused, 3);
        assert_eq!(remembered.decide_recovery(told(Run::Paused, 3)), None);
        assert_eq!(remembered.decide_recovery(told(Run::Running, 2)), None);
        assert_eq!(remembered.decide_recovery(told(Run::Running, 7)), Some(row(Run::Paused, 8)));
        assert_eq!(remembered.decide_recovery(told(Run::Running, 3)), Some(row(Run::Paused, 4)));
        assert_eq!(remembered.decide_recovery(told(Run::Destroyed, 2)), Some(row(Run::Destroyed, 3)));
        assert_eq!(
            row(Run::Destroyed, 3).decide_recovery(told(Run::Running, 9)),
            Some(row(Run::Destroyed, 10))
        );
        let elsewhere = Desired { placement_epoch: 2, ..told(Run::Running, 9) };
        assert_eq!(remembered.decide_recovery(elsewhere), None);
        assert_eq!(remembered.decide_recovery(told(Run::Running, u64::MAX)), None);
    }

    #[test]
    fn a_host_does_not_bring_back_what_was_to_be_destroyed() {
        let mut standing = Standing::new(offer(Run::Destroyed, 3, 0));
        assert_eq!(standing.receive(offer(Run::Running, 4, 0)), Receipt::Destroyed);
        assert_eq!(standing.target(), Some(Run::Destroyed));
    }

    #[test]
    fn the_same_generation_with_other_content_is_not_followed() {
        let mut standing = Standing::new(offer(Run::Running, 4, 0));
        assert_eq!(standing.receive(offer(Run::Destroyed, 4, 0)), Receipt::Contradicts);
        assert_eq!(standing.target(), Some(Run::Running));
    }
}
