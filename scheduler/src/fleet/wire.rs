//! Between rows and the messages hosts exchange with us.

use roost_domain::desired::{Cause, Run};
use roost_domain::lifecycle::State;
use roost_proto::host as proto;

use crate::store::host::Host;
use crate::store::sandbox::Sandbox;

/// Longest text of a host that is stored; more is cut.
const TEXT_BYTES_MAX: usize = 256;
const TEMPLATES_MAX: usize = 64;

/// What is wanted of a sandbox, whole.
pub(super) fn ensure_request(row: &Sandbox) -> proto::EnsureRequest {
    let run = match row.desired_run.as_str() {
        "running" => proto::Run::Running,
        "paused" => proto::Run::Paused,
        "stopped" => proto::Run::Stopped,
        _ => proto::Run::Destroyed,
    };
    proto::EnsureRequest {
        sandbox: row.id.clone(),
        spec: Some(proto::SandboxSpec {
            template: row.template.clone(),
            vcpus: u32::try_from(row.vcpus).unwrap_or(u32::MAX),
            memory_mib: row.memory_mib,
            disk_mib: row.disk_mib,
            lineage: row.lineage.clone(),
            environment: row.environment.clone().into_iter().collect(),
            host_name: row.host_name.clone(),
            spec_version: row.spec_version,
        }),
        desired: Some(proto::Desired {
            run: run.into(),
            generation: row.generation,
            placement_epoch: row.placement_epoch,
            adopted_seq: row.adopted_seq,
        }),
    }
}

pub(super) fn state(state: proto::State) -> Option<State> {
    Some(match state {
        proto::State::Unspecified => return None,
        proto::State::Creating => State::Creating,
        proto::State::Running => State::Running,
        proto::State::Pausing => State::Pausing,
        proto::State::Paused => State::Paused,
        proto::State::Resuming => State::Resuming,
        proto::State::Stopping => State::Stopping,
        proto::State::Stopped => State::Stopped,
        proto::State::Destroying => State::Destroying,
        proto::State::Destroyed => State::Destroyed,
        proto::State::Failed => State::Failed,
    })
}

pub(super) fn run(run: proto::Run) -> Option<Run> {
    match run {
        proto::Run::Unspecified => None,
        proto::Run::Running => Some(Run::Running),
        proto::Run::Paused => Some(Run::Paused),
        proto::Run::Stopped => Some(Run::Stopped),
        proto::Run::Destroyed => Some(Run::Destroyed),
    }
}

/// A cause of the closed list; what an unknown build sends becomes the operator's.
pub(super) fn cause(text: &str) -> Cause {
    Cause::find(text).unwrap_or(Cause::Operator)
}

/// Text from a host as it is stored: bounded, without control characters.
pub(super) fn stored_text(text: &str) -> String {
    roost_domain::audit::recorded_text(text, TEXT_BYTES_MAX)
}

/// A host as it describes itself, with nothing reserved.
pub(super) fn host(id: &str, info: &proto::HostInfo, now_us: i64) -> Host {
    Host {
        id: id.to_owned(),
        state: "active".to_owned(),
        version: stored_text(&info.version),
        ensure_address: stored_text(&info.ensure_address),
        gateway_address: stored_text(&info.gateway_address),
        preview_address: stored_text(&info.preview_address),
        memory_mib: info.memory_mib,
        disk_mib: info.disk_mib,
        vcpus: info.vcpus.into(),
        templates: info.templates.iter().take(TEMPLATES_MAX).map(|name| stored_text(name)).collect(),
        vmm: stored_text(&info.vmm),
        memory_reserved_mib: 0,
        disk_reserved_mib: 0,
        joined_us: now_us,
        seen_us: now_us,
        clock_skew_us: 0,
    }
}
