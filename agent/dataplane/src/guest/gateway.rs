//! The Gateway service: each method carried into the guest it is for. What "for" means is fixed per connection.
//!
//! On the scheduler's connections the metadata names the sandbox; a connection for the operator's CLI is bound to
//! one execution, whatever the metadata says.

use std::sync::Arc;

use roost_domain::id::{ExecutionId, SandboxId};
use roost_proto::guest::{
    AttachRequest, ExecInput, ExecOutput, FileChunk, FileEntry, ListDirectoryReply, ListDirectoryRequest,
    ListProcessesReply, ListProcessesRequest, MakeDirectoryRequest, MovePathRequest, ReadFileRequest,
    RemovePathReply, RemovePathRequest, SignalReply, SignalRequest, StatFileRequest, StatusReply,
    StatusRequest, WatchEvent, WatchRequest, WriteFileInput,
};
use roost_proto::host::gateway_server::Gateway;
use roost_proto::host::{NOT_ATTACHED, SANDBOX_METADATA};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::Guests;
use super::link::Link;
use super::relay::{self, Answers};

/// Which guest the calls of a connection are for.
#[derive(Debug, Clone)]
pub enum Scope {
    /// Always this one.
    Execution(ExecutionId),
    /// The current execution of the sandbox that each call's metadata names.
    NamedSandbox,
}

/// The service for one connection.
#[derive(Debug, Clone)]
pub struct GatewayService {
    guests: Arc<Guests>,
    scope: Scope,
}

type Reply<T> = Result<Response<T>, Status>;

impl GatewayService {
    pub fn new(guests: Arc<Guests>, scope: Scope) -> Self {
        Self { guests, scope }
    }

    fn link<T>(&self, request: &Request<T>) -> Result<Arc<Link>, Status> {
        let found = match &self.scope {
            Scope::Execution(execution) => self.guests.find(*execution),
            Scope::NamedSandbox => self.guests.find_by_sandbox(named_sandbox(request)?),
        };
        let guest = found.ok_or_else(|| Status::not_found(NOT_ATTACHED))?;
        Ok(guest.link.clone())
    }
}

fn named_sandbox<T>(request: &Request<T>) -> Result<SandboxId, Status> {
    let name = request.metadata().get(SANDBOX_METADATA);
    let name = name.and_then(|value| value.to_str().ok());
    let name = name.ok_or_else(|| Status::invalid_argument("metadata names no sandbox"))?;
    SandboxId::parse(name).map_err(|error| Status::invalid_argument(error.to_string()))
}

#[async_trait]
impl Gateway for GatewayService {
    type ExecStream = Answers<ExecOutput>;
    type AttachStream = Answers<ExecOutput>;
    type ReadFileStream = Answers<FileChunk>;
    type WatchStream = Answers<WatchEvent>;

    async fn status(&self, request: Request<StatusRequest>) -> Reply<StatusReply> {
        let link = self.link(&request)?;
        relay::ask(&link, request, |mut guest, input| async move { guest.status(input).await }).await
    }

    async fn exec(&self, request: Request<Streaming<ExecInput>>) -> Reply<Self::ExecStream> {
        let link = self.link(&request)?;
        relay::converse(&link, request, |mut guest, input| async move { guest.exec(input).await }).await
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Reply<Self::AttachStream> {
        let link = self.link(&request)?;
        relay::listen(&link, request, |mut guest, input| async move { guest.attach(input).await }).await
    }

    async fn list_processes(&self, request: Request<ListProcessesRequest>) -> Reply<ListProcessesReply> {
        let link = self.link(&request)?;
        relay::ask(&link, request, |mut guest, input| async move { guest.list_processes(input).await }).await
    }

    async fn signal(&self, request: Request<SignalRequest>) -> Reply<SignalReply> {
        let link = self.link(&request)?;
        relay::ask(&link, request, |mut guest, input| async move { guest.signal(input).await }).await
    }

    async fn read_file(&self, request: Request<ReadFileRequest>) -> Reply<Self::ReadFileStream> {
        let link = self.link(&request)?;
        relay::listen(&link, request, |mut guest, input| async move { guest.read_file(input).await }).await
    }

    async fn write_file(&self, request: Request<Streaming<WriteFileInput>>) -> Reply<FileEntry> {
        let link = self.link(&request)?;
        relay::upload(&link, request, |mut guest, input| async move { guest.write_file(input).await }).await
    }

    async fn stat_file(&self, request: Request<StatFileRequest>) -> Reply<FileEntry> {
        let link = self.link(&request)?;
        relay::ask(&link, request, |mut guest, input| async move { guest.stat_file(input).await }).await
    }

    async fn list_directory(&self, request: Request<ListDirectoryRequest>) -> Reply<ListDirectoryReply> {
        let link = self.link(&request)?;
        relay::ask(&link, request, |mut guest, input| async move { guest.list_directory(input).await }).await
    }

    async fn make_directory(&self, request: Request<MakeDirectoryRequest>) -> Reply<FileEntry> {
        let link = self.link(&request)?;
        relay::ask(&link, request, |mut guest, input| async move { guest.make_directory(input).await }).await
    }

    async fn move_path(&self, request: Request<MovePathRequest>) -> Reply<FileEntry> {
        let link = self.link(&request)?;
        relay::ask(&link, request, |mut guest, input| async move { guest.move_path(input).await }).await
    }

    async fn remove_path(&self, request: Request<RemovePathRequest>) -> Reply<RemovePathReply> {
        let link = self.link(&request)?;
        relay::ask(&link, request, |mut guest, input| async move { guest.remove_path(input).await }).await
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Reply<Self::WatchStream> {
        let link = self.link(&request)?;
        relay::listen(&link, request, |mut guest, input| async move { guest.watch(input).await }).await
    }
}
