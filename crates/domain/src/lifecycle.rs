//! The states of a sandbox and which may follow which. States are named by what is already true.
//!
//! ```text
//!            ┌────────────────────────────────┐ (retry, cold start)
//!            ▼                                │
//!        creating ──▶ running ◀── resuming ◀──┼── paused ◀── pausing ◀── running
//!            │           │            │       │      │          │
//!            └───────────┴── stopping ┴──▶ stopped ◀─┘      running (memory could not be written)
//!   every state but destroyed may fail ──▶ failed ──▶ creating, resuming, stopped
//!   every state but destroyed ──▶ destroying ──▶ destroyed
//! ```

use crate::text::words;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// No guest has run yet, or its disk is being booted anew.
    Creating,
    Running,
    Pausing,
    /// Memory and disk are kept; nothing runs.
    Paused,
    Resuming,
    Stopping,
    /// The disk is kept; nothing runs.
    Stopped,
    Destroying,
    Destroyed,
    /// Needs a decision: see the state's reason. Tenants see it as `error`.
    Failed,
}

words!(State, "state" {
    Creating => "creating",
    Running => "running",
    Pausing => "pausing",
    Paused => "paused",
    Resuming => "resuming",
    Stopping => "stopping",
    Stopped => "stopped",
    Destroying => "destroying",
    Destroyed => "destroyed",
    Failed => "failed",
});

impl State {
    /// The word tenants see.
    pub const fn public_text(self) -> &'static str {
        match self {
            Self::Failed => "error",
            other => other.text(),
        }
    }

    /// Nothing happens until somebody asks: no guest runs and none is being started or ended.
    pub const fn is_resting(self) -> bool {
        matches!(self, Self::Paused | Self::Stopped | Self::Destroyed | Self::Failed)
    }

    /// On its way to another state.
    pub const fn is_transitional(self) -> bool {
        !self.is_resting() && !matches!(self, Self::Running)
    }

    /// Whether the guest can be called (exec, files, previews).
    pub const fn is_serving(self) -> bool {
        matches!(self, Self::Running)
    }

    pub const fn is_final(self) -> bool {
        matches!(self, Self::Destroyed)
    }

    /// Whether this state may be followed by `to`. Staying is always allowed: steps are repeated.
    pub const fn may_become(self, to: Self) -> bool {
        use State::*;
        match (self, to) {
            (Destroyed, Destroyed) => true,
            (Destroyed, _) => false,
            (Destroying, Destroying | Destroyed) => true,
            (Destroying, _) => false,
            (_, Destroying) => true,
            // Without an execution there is nothing to take down first.
            (Creating | Paused | Stopped | Failed, Destroyed) => true,
            (_, Destroyed) => false,
            (_, Failed) => true,
            (Creating, Creating | Running | Stopping | Stopped) => true,
            (Running, Running | Pausing | Stopping) => true,
            (Pausing, Pausing | Paused | Running | Stopping) => true,
            (Paused, Paused | Resuming | Stopping | Stopped) => true,
            (Resuming, Resuming | Running | Paused | Stopping) => true,
            (Stopping, Stopping | Stopped) => true,
            (Stopped, Stopped | Creating | Resuming) => true,
            (Failed, Creating | Resuming | Stopped) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole table, one row per state: what may follow it, itself included.
    const TABLE: &[(State, &str)] = &[
        (State::Creating, "creating running stopping stopped destroying destroyed failed"),
        (State::Running, "running pausing stopping destroying failed"),
        (State::Pausing, "running pausing paused stopping destroying failed"),
        (State::Paused, "paused resuming stopping stopped destroying destroyed failed"),
        (State::Resuming, "running paused resuming stopping destroying failed"),
        (State::Stopping, "stopping stopped destroying failed"),
        (State::Stopped, "creating resuming stopped destroying destroyed failed"),
        (State::Destroying, "destroying destroyed"),
        (State::Destroyed, "destroyed"),
        (State::Failed, "creating resuming stopped destroying destroyed failed"),
    ];

    #[test]
    fn the_table_is_what_it_says() {
        assert_eq!(TABLE.len(), State::ALL.len());
        for (from, allowed) in TABLE {
            let found: Vec<_> =
                State::ALL.iter().filter(|to| from.may_become(**to)).map(|to| to.text()).collect();
            assert_eq!(found.join(" "), *allowed, "from {from}");
        }
    }

    #[test]
    fn every_state_can_still_be_destroyed() {
        for state in State::ALL {
            assert!(state.may_become(State::Destroying) || state.is_final(), "{state}");
        }
    }

    #[test]
    fn words_go_both_ways() {
        for state in State::ALL {
            assert_eq!(state.text().parse::<State>().as_ref(), Ok(state));
        }
        assert_eq!(State::Failed.public_text(), "error");
        let error = "up".parse::<State>().unwrap_err();
        assert!(error.to_string().starts_with("state is not one of: creating, running"), "{error}");
    }
}
