//! The calls of the guest contract: each takes its message apart, asks the module that knows, and answers.
//!
//! Must not decide who may call (`server`) nor do the work (`exec`, `file`, `watch`, `forward`, `guest`).

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use roost_proto::guest::exec_input::Input;
use roost_proto::guest::guest_server::Guest as GuestCalls;
use roost_proto::guest::{
    AttachRequest, ClaimReply, ClaimRequest, ExecInput, ExecOutput, FileChunk, FileEntry, ForwardFrame,
    ListDirectoryReply, ListDirectoryRequest, ListProcessesReply, ListProcessesRequest, MakeDirectoryRequest,
    MovePathRequest, PROTOCOL_GENERATION, PersonaliseReply, PersonaliseRequest, Process, QuiesceReply,
    QuiesceRequest, ReadFileRequest, RemovePathReply, RemovePathRequest, SignalReply, SignalRequest,
    StatFileRequest, StatusReply, StatusRequest, WatchEvent, WatchRequest, WriteFileInput,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::claim::Decision;
use crate::exec::run::{exited, follow, start};
use crate::file::{self, blocking, list, read, write};
use crate::guest::Guest;
use crate::server::{ConnectionNumber, Connections};
use crate::{clock, forward, reap, watch};

/// Messages waiting for a caller that reads slowly.
const QUEUE_MESSAGES: usize = 8;

#[derive(Debug)]
pub struct GuestService {
    guest: Arc<Guest>,
    connections: Arc<Connections>,
}

impl GuestService {
    pub fn new(guest: Arc<Guest>, connections: Arc<Connections>) -> Self {
        Self { guest, connections }
    }
}

type Answer<T> = Result<Response<T>, Status>;
type AnswerStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn stream<T: Send + 'static>(receiver: mpsc::Receiver<Result<T, Status>>) -> Answer<AnswerStream<T>> {
    Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
}

fn process(process: reap::Process) -> Process {
    Process {
        pid: process.pid,
        name: process.name,
        command: process.command,
        started_us: process.started_us,
        running: process.exit.is_none(),
        exited: process.exit.map(exited),
    }
}

#[tonic::async_trait]
impl GuestCalls for GuestService {
    async fn claim(&self, request: Request<ClaimRequest>) -> Answer<ClaimReply> {
        let ClaimRequest { token, personalisation } = request.into_inner();
        self.guest.claim(&token, personalisation).await?;
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Response::new(ClaimReply {
            protocol_generation: PROTOCOL_GENERATION,
            kernel: kernel.trim_end().to_owned(),
            boot_us: clock::since_boot_us(),
        }))
    }

    async fn personalise(&self, request: Request<PersonaliseRequest>) -> Answer<PersonaliseReply> {
        let connection = request.extensions().get::<ConnectionNumber>().copied();
        let PersonaliseRequest { old_token, new_token, personalisation } = request.into_inner();
        let decision = self.guest.personalise(&old_token, &new_token, personalisation).await?;
        if decision == Decision::Apply {
            self.connections.drop_others(connection);
        }
        Ok(Response::new(PersonaliseReply { protocol_generation: PROTOCOL_GENERATION }))
    }

    async fn quiesce(&self, _: Request<QuiesceRequest>) -> Answer<QuiesceReply> {
        blocking(|| {
            nix::unistd::sync();
            Ok(())
        })
        .await?;
        Ok(Response::new(QuiesceReply {}))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusReply> {
        Ok(Response::new(StatusReply {
            epoch: self.guest.epoch(),
            time_us: clock::now_us(),
            processes: u32::try_from(self.guest.processes.count()).unwrap_or(u32::MAX),
        }))
    }

    type ExecStream = AnswerStream<ExecOutput>;

    async fn exec(&self, request: Request<Streaming<ExecInput>>) -> Answer<Self::ExecStream> {
        let mut input = request.into_inner();
        let Some(ExecInput { input: Some(Input::Start(message)) }) = input.message().await? else {
            return Err(Status::invalid_argument("the first message must be `start`"));
        };
        stream(start(&self.guest.processes, &self.guest.environment(), message, input).await?)
    }

    type AttachStream = AnswerStream<ExecOutput>;

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<Self::AttachStream> {
        let AttachRequest { pid, tail_bytes, follow: wanted } = request.into_inner();
        let Some((process, exit)) = self.guest.processes.find(pid) else {
            return Err(Status::not_found(format!("no process {pid} was started here")));
        };
        let Some(journal) = process.journal else {
            return Err(Status::failed_precondition(format!("the output of process {pid} is not retained")));
        };
        let (sender, receiver) = mpsc::channel(QUEUE_MESSAGES);
        let position = journal.position_of_tail(tail_bytes);
        tokio::spawn(follow(journal, position, wanted, exit, sender));
        stream(receiver)
    }

    async fn list_processes(&self, _: Request<ListProcessesRequest>) -> Answer<ListProcessesReply> {
        let processes = self.guest.processes.list().into_iter().map(process).collect();
        Ok(Response::new(ListProcessesReply { processes }))
    }

    async fn signal(&self, request: Request<SignalRequest>) -> Answer<SignalReply> {
        let SignalRequest { pid, signal, group } = request.into_inner();
        let delivered = self
            .guest
            .processes
            .signal(pid, signal, group)
            .map_err(|error| Status::invalid_argument(format!("cannot send signal {signal}: {error}")))?;
        Ok(Response::new(SignalReply { delivered }))
    }

    type ReadFileStream = AnswerStream<FileChunk>;

    async fn read_file(&self, request: Request<ReadFileRequest>) -> Answer<Self::ReadFileStream> {
        let (reading, head) = read::open(request.into_inner()).await?;
        let (sender, receiver) = mpsc::channel(QUEUE_MESSAGES);
        // The queue is empty and the receiver is in our hands.
        let _ = sender.try_send(Ok(head));
        tokio::spawn(read::stream(reading, sender));
        stream(receiver)
    }

    async fn write_file(&self, request: Request<Streaming<WriteFileInput>>) -> Answer<FileEntry> {
        write::receive(request.into_inner()).await.map(Response::new)
    }

    async fn stat_file(&self, request: Request<StatFileRequest>) -> Answer<FileEntry> {
        on_files(request, list::stat_path).await
    }

    async fn list_directory(&self, request: Request<ListDirectoryRequest>) -> Answer<ListDirectoryReply> {
        on_files(request, list::list).await
    }

    async fn make_directory(&self, request: Request<MakeDirectoryRequest>) -> Answer<FileEntry> {
        on_files(request, list::make).await
    }

    async fn move_path(&self, request: Request<MovePathRequest>) -> Answer<FileEntry> {
        on_files(request, list::rename).await
    }

    async fn remove_path(&self, request: Request<RemovePathRequest>) -> Answer<RemovePathReply> {
        on_files(request, |request| list::remove(request).map(|()| RemovePathReply {})).await
    }

    type WatchStream = AnswerStream<WatchEvent>;

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        stream(watch::start(request.into_inner()).await?)
    }

    type ForwardStream = AnswerStream<ForwardFrame>;

    async fn forward(&self, request: Request<Streaming<ForwardFrame>>) -> Answer<Self::ForwardStream> {
        let mut input = request.into_inner();
        let connection = forward::connect(&mut input).await?;
        let (sender, receiver) = mpsc::channel(QUEUE_MESSAGES);
        tokio::spawn(forward::carry(connection, input, sender));
        stream(receiver)
    }
}

async fn on_files<Q: Send + 'static, A: Send + 'static>(
    request: Request<Q>,
    work: impl FnOnce(&Q) -> Result<A, file::Error> + Send + 'static,
) -> Answer<A> {
    let request = request.into_inner();
    Ok(Response::new(blocking(move || work(&request)).await?))
}
