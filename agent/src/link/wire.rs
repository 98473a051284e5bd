//! Translates the scheduler's messages into the agent's values, refusing what makes no sense.

use roost_domain::desired::{Desired, Offer};
use roost_domain::id::SandboxId;
use roost_proto::host::{self, EnsureRequest};

use super::Error;
use crate::sandbox::record::{Origin, Spec};
use crate::store::sandbox::Draft;

const VCPUS_MAX: u32 = 64;
const MEMORY_MAX_MIB: u64 = 1024 * 1024;
const DISK_MAX_MIB: u64 = 16 * 1024 * 1024;
const ENVIRONMENT_MAX: usize = 256;

/// What the scheduler wants of one sandbox, as the store takes it.
pub fn draft(request: EnsureRequest) -> Result<Draft, Error> {
    let malformed = |what: &str| Error::Malformed(format!("{what} of sandbox {:?}", request.sandbox));
    let id: SandboxId = request.sandbox.parse().map_err(|_| malformed("the id"))?;
    let desired = request.desired.ok_or_else(|| malformed("the desired state"))?;
    let spec = request.spec.clone().ok_or_else(|| malformed("the spec"))?;
    let run = crate::sandbox::from_run(desired.run()).ok_or_else(|| malformed("the wanted run"))?;
    let lineage = match spec.lineage.as_str() {
        "" => id,
        text => text.parse().map_err(|_| malformed("the lineage"))?,
    };
    Ok(Draft {
        id,
        origin: Origin::Tenant,
        spec: check(spec).ok_or_else(|| malformed("the spec's size"))?,
        lineage,
        offer: Offer {
            desired: Desired {
                run,
                generation: desired.generation,
                placement_epoch: desired.placement_epoch,
            },
            adopted_seq: desired.adopted_seq,
        },
        now_us: roost_daemon::clock::now_us(),
    })
}

fn check(spec: host::SandboxSpec) -> Option<Spec> {
    let fits = (1..=VCPUS_MAX).contains(&spec.vcpus)
        && (64..=MEMORY_MAX_MIB).contains(&spec.memory_mib)
        && (16..=DISK_MAX_MIB).contains(&spec.disk_mib)
        && spec.environment.len() <= ENVIRONMENT_MAX;
    fits.then(|| Spec {
        template: spec.template,
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        disk_mib: spec.disk_mib,
        host_name: spec.host_name,
        environment: spec.environment.into_iter().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> EnsureRequest {
        let id = roost_daemon::ids::fresh::<SandboxId>();
        EnsureRequest {
            sandbox: id.to_string(),
            spec: Some(host::SandboxSpec {
                template: "miosa-sandbox".into(),
                vcpus: 1,
                memory_mib: 256,
                disk_mib: 1024,
                ..Default::default()
            }),
            desired: Some(host::Desired {
                run: host::Run::Running.into(),
                generation: 3,
                placement_epoch: 2,
                adopted_seq: 0,
            }),
        }
    }

    #[test]
    fn a_whole_request_becomes_a_draft() {
        let draft = draft(request()).unwrap();
        assert_eq!(draft.offer.desired.generation, 3);
        assert_eq!(draft.lineage, draft.id);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        type Breakage = fn(&mut EnsureRequest);
        let broken: [(&str, Breakage); 5] = [
            ("the id", |request| request.sandbox = "sbx_nonsense".into()),
            ("the desired state", |request| request.desired = None),
            ("the spec", |request| request.spec = None),
            ("the wanted run", |request| request.desired.as_mut().unwrap().run = 77),
            ("the spec's size", |request| request.spec.as_mut().unwrap().vcpus = 0),
        ];
        for (what, breakage) in broken {
            let mut request = request();
            breakage(&mut request);
            let error = draft(request).unwrap_err().to_string();
            assert!(error.contains(what), "{what}: {error}");
        }
    }
}
