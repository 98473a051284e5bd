//! Calls into a running sandbox, through the guest gateway on its host.
//!
//! Owns how gateway answers become results and errors. Must not decide who may call (`App::guest` did) and
//! keeps no state: dropping a call ends it on the other side too.

use std::time::Duration;

use roost_proto::host::gateway_client::GatewayClient;
use roost_proto::host::{NOT_ATTACHED, SANDBOX_METADATA};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::Error;

pub mod command;
pub mod file;
pub mod output;
pub mod process;

/// A file chunk has 64 KiB; a directory listing of 10,000 entries is the largest message.
const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// For calls that neither stream nor run anything of the tenant's.
const QUICK_DEADLINE: Duration = Duration::from_secs(30);

/// One running sandbox, reachable.
#[derive(Debug, Clone)]
pub struct Guest {
    client: GatewayClient<Channel>,
    sandbox: MetadataValue<Ascii>,
}

impl Guest {
    pub fn new(client: GatewayClient<Channel>, sandbox_id: &str) -> Result<Self, Error> {
        let sandbox = sandbox_id
            .parse()
            .map_err(|source| Error::internal("name the sandbox to the gateway", source))?;
        Ok(Self { client: client.max_decoding_message_size(MAX_MESSAGE_BYTES), sandbox })
    }

    /// A call that is over in a moment unless something is wrong on the way.
    fn quick<T>(&self, message: T) -> Request<T> {
        let mut request = self.request(message);
        request.set_timeout(QUICK_DEADLINE);
        request
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(SANDBOX_METADATA, self.sandbox.clone());
        request
    }
}

/// What a failed call means to the caller. `path` is the file it was about, if any.
fn refuse(status: Status, path: Option<&str>) -> Error {
    let problem = status.message().to_owned();
    match (status.code(), path) {
        (Code::NotFound, _) if status.message() == NOT_ATTACHED => {
            Error::HostSilent { source: Some(status.into()) }
        }
        (Code::NotFound, Some(path)) => Error::Path {
            path: path.to_owned(),
            problem: "no such file or directory".into(),
            code: PathProblem::Absent,
        },
        (Code::NotFound, None) => Error::HostSilent { source: Some(status.into()) },
        (Code::ResourceExhausted, Some(path)) => {
            Error::Path { path: path.to_owned(), problem, code: PathProblem::NoSpace }
        }
        (
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::AlreadyExists
            | Code::OutOfRange,
            Some(path),
        ) => Error::Path { path: path.to_owned(), problem, code: PathProblem::Refused },
        (
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange | Code::PermissionDenied,
            None,
        ) => Error::invalid("command", problem),
        (Code::ResourceExhausted, None) => Error::GuestBusy { problem },
        _ => Error::GuestSilent { source: Some(status.into()) },
    }
}

/// What is wrong with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathProblem {
    Absent,
    Refused,
    NoSpace,
}
