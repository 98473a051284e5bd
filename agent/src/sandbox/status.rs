//! A sandbox's committed state as the scheduler hears it.

use roost_domain::desired::Run;
use roost_domain::lifecycle::State;
use roost_proto::host::{self, SandboxStatus};

use super::record::Sandbox;

impl From<&Sandbox> for SandboxStatus {
    fn from(sandbox: &Sandbox) -> Self {
        let standing = &sandbox.standing;
        let local = standing.report().map(|report| report.local);
        Self {
            sandbox: sandbox.id.to_string(),
            state: to_state(sandbox.state).into(),
            state_reason: sandbox.state_reason.clone().unwrap_or_default(),
            generation: standing.desired.generation,
            placement_epoch: standing.desired.placement_epoch,
            execution: sandbox
                .execution
                .as_ref()
                .map(|execution| execution.id.to_string())
                .unwrap_or_default(),
            local_seq: local.map_or(0, |local| local.seq),
            local_cause: local.map(|local| local.cause.text().to_owned()).unwrap_or_default(),
            local_base_generation: local.map_or(0, |local| local.base_generation),
            local_run: local.map_or(host::Run::Unspecified, |local| to_run(local.run)).into(),
            wanted_run: to_run(standing.desired.run).into(),
            changed_us: sandbox.changed_us,
            boot_path: sandbox.boot_path.map(|path| path.text().to_owned()).unwrap_or_default(),
            boot_us: sandbox.boot_us.unwrap_or_default(),
        }
    }
}

fn to_state(state: State) -> host::State {
    match state {
        State::Creating => host::State::Creating,
        State::Running => host::State::Running,
        State::Pausing => host::State::Pausing,
        State::Paused => host::State::Paused,
        State::Resuming => host::State::Resuming,
        State::Stopping => host::State::Stopping,
        State::Stopped => host::State::Stopped,
        State::Destroying => host::State::Destroying,
        State::Destroyed => host::State::Destroyed,
        State::Failed => host::State::Failed,
    }
}

pub(crate) fn to_run(run: Run) -> host::Run {
    match run {
        Run::Running => host::Run::Running,
        Run::Paused => host::Run::Paused,
        Run::Stopped => host::Run::Stopped,
        Run::Destroyed => host::Run::Destroyed,
    }
}

pub(crate) fn from_run(run: host::Run) -> Option<Run> {
    match run {
        host::Run::Unspecified => None,
        host::Run::Running => Some(Run::Running),
        host::Run::Paused => Some(Run::Paused),
        host::Run::Stopped => Some(Run::Stopped),
        host::Run::Destroyed => Some(Run::Destroyed),
    }
}
