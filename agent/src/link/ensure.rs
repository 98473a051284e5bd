//! Serves the scheduler's `Ensure`: a wish is committed before it is answered, progress comes by upload.

use roost_proto::host::ensure_server::Ensure;
use roost_proto::host::{EnsureReply, EnsureRequest, SandboxStatus};
use tonic::{Request, Response, Status};

use super::wire;
use crate::sandbox::{self, Manager};

/// The URI in the scheduler's certificate; nobody else may call.
pub(super) const SCHEDULER_IDENTITY: &str = "roost://scheduler";

pub(super) struct Service {
    pub(super) manager: Manager,
}

#[tonic::async_trait]
impl Ensure for Service {
    async fn ensure(&self, request: Request<EnsureRequest>) -> Result<Response<EnsureReply>, Status> {
        check_caller(&request)?;
        let draft =
            wire::draft(request.into_inner()).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let sandbox = self.manager.ensure(draft).await.map_err(|error| match error {
            sandbox::Error::Full => Status::resource_exhausted(error.to_string()),
            sandbox::Error::Store(_) => {
                tracing::error!(error = %roost_daemon::telemetry::chain(&error), "a wish was not recorded");
                Status::internal("the wish could not be recorded: see the agent's log")
            }
        })?;
        Ok(Response::new(EnsureReply { status: Some(SandboxStatus::from(&sandbox)) }))
    }
}

/// The handshake proved the certificate is of this fleet; this checks whose it is.
fn check_caller<T>(request: &Request<T>) -> Result<(), Status> {
    let certificates = request.peer_certs();
    let leaf = certificates.as_deref().and_then(|chain| chain.first());
    match leaf.and_then(|certificate| super::identity::find_uri(certificate.as_ref())) {
        Some(uri) if uri == SCHEDULER_IDENTITY => Ok(()),
        Some(uri) => Err(Status::permission_denied(format!("{uri} may not call Ensure"))),
        None => Err(Status::unauthenticated("a certificate of the fleet is needed")),
    }
}
