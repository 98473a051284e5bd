//! A guest's init that answers: enough of the protocol to see what the gateway does with it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use roost_proto::guest::guest_server::{Guest, GuestServer};
use roost_proto::guest::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::app::App;

type Reply<T> = Result<Response<T>, Status>;
type Outputs<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the guest saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) token: String,
    pub(crate) claims: Vec<ClaimRequest>,
    pub(crate) personalises: Vec<PersonaliseRequest>,
    pub(crate) quiesced: u32,
    /// How each upload ended: whole, or broken off after so many bytes.
    pub(crate) uploads: Vec<Result<usize, usize>>,
    pub(crate) execs_dropped: u32,
    pub(crate) chunks_produced: u64,
}

#[derive(Clone, Default)]
pub(crate) struct FakeGuest {
    pub(crate) seen: Arc<Mutex<Seen>>,
    loopback: Arc<Mutex<HashMap<u32, App>>>,
}

impl FakeGuest {
    /// Has an application behind a port of the guest's loopback.
    pub(crate) fn forward_to(&self, port: u32, app: App) {
        self.loopback.lock().unwrap().insert(port, app);
    }

    pub(crate) fn serve(&self, listener: TcpListener) -> tokio::task::JoinHandle<()> {
        let service = GuestServer::new(self.clone());
        tokio::spawn(async move {
            // Like the real one: without it each short answer waits for the other side's acknowledgement.
            let incoming = TcpListenerStream::new(listener).map(|stream| {
                let stream = stream?;
                stream.set_nodelay(true)?;
                Ok::<_, std::io::Error>(stream)
            });
            let _ =
                tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await;
        })
    }

    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let expected = format!("Bearer {}", self.seen.lock().unwrap().token);
        let given = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        match given == Some(expected.as_str()) {
            true => Ok(()),
            false => Err(Status::unauthenticated("who are you")),
        }
    }
}

struct DropNote(Arc<Mutex<Seen>>);

impl Drop for DropNote {
    fn drop(&mut self) {
        self.0.lock().unwrap().execs_dropped += 1;
    }
}

fn output(output: exec_output::Output) -> ExecOutput {
    ExecOutput { output: Some(output) }
}

#[tonic::async_trait]
impl Guest for FakeGuest {
    async fn claim(&self, request: Request<ClaimRequest>) -> Reply<ClaimReply> {
        let request = request.into_inner();
        let mut seen = self.seen.lock().unwrap();
        if request.token == "refused" {
            return Err(Status::permission_denied("no, and \u{1b}[31mthis text is the guest's"));
        }
        seen.token = request.token.clone();
        seen.claims.push(request);
        Ok(Response::new(ClaimReply { protocol_generation: 1, ..ClaimReply::default() }))
    }

    async fn personalise(&self, request: Request<PersonaliseRequest>) -> Reply<PersonaliseReply> {
        let request = request.into_inner();
        let mut seen = self.seen.lock().unwrap();
        seen.token = request.new_token.clone();
        seen.personalises.push(request);
        Ok(Response::new(PersonaliseReply { protocol_generation: 1 }))
    }

    async fn quiesce(&self, request: Request<QuiesceRequest>) -> Reply<QuiesceReply> {
        self.check(&request)?;
        self.seen.lock().unwrap().quiesced += 1;
        Ok(Response::new(QuiesceReply {}))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Reply<StatusReply> {
        self.check(&request)?;
        Ok(Response::new(StatusReply { epoch: 1, ..StatusReply::default() }))
    }

    type ExecStream = Outputs<ExecOutput>;

    /// `cat`: gives back what it gets, exits with the number of bytes modulo 256 at the end of the input.
    async fn exec(&self, request: Request<Streaming<ExecInput>>) -> Reply<Self::ExecStream> {
        self.check(&request)?;
        let mut input = request.into_inner();
        let note = DropNote(self.seen.clone());
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let _note = note;
            let mut count = 0;
            loop {
                let next = tokio::select! {
                    next = input.next() => next,
                    () = sender.closed() => return,
                };
                let answer = match next {
                    Some(Ok(ExecInput { input: Some(exec_input::Input::Start(_)) })) => {
                        output(exec_output::Output::Started(ExecStarted { pid: 7 }))
                    }
                    Some(Ok(ExecInput { input: Some(exec_input::Input::Stdin(bytes)) })) => {
                        count += bytes.len();
                        output(exec_output::Output::Stdout(bytes))
                    }
                    Some(Ok(_)) => break,
                    None => break,
                    Some(Err(_)) => return,
                };
                if sender.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
            let exited = ExecExited { exit_code: (count % 256) as i32, ..ExecExited::default() };
            let _ = sender.send(Ok(output(exec_output::Output::Exited(exited)))).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type AttachStream = Outputs<ExecOutput>;

    async fn attach(&self, _: Request<AttachRequest>) -> Reply<Self::AttachStream> {
        Err(Status::unimplemented("attach"))
    }

    async fn list_processes(&self, _: Request<ListProcessesRequest>) -> Reply<ListProcessesReply> {
        // Never answers.
        std::future::pending().await
    }

    async fn signal(&self, _: Request<SignalRequest>) -> Reply<SignalReply> {
        Err(Status::unimplemented("signal"))
    }

    type ReadFileStream = Outputs<FileChunk>;

    /// `limit_bytes` of zeros in chunks of `offset` bytes, counting what was produced.
    async fn read_file(&self, request: Request<ReadFileRequest>) -> Reply<Self::ReadFileStream> {
        self.check(&request)?;
        let request = request.into_inner();
        if request.path == "/missing" {
            return Err(Status::not_found("no such file\r\n\u{7}"));
        }
        let seen = self.seen.clone();
        let chunk = Bytes::from(vec![0; request.offset as usize]);
        let count = request.limit_bytes / request.offset;
        let chunks = futures::stream::iter(0..count).map(move |_| {
            seen.lock().unwrap().chunks_produced += 1;
            Ok(FileChunk { chunk: Some(file_chunk::Chunk::Data(chunk.clone())) })
        });
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn write_file(&self, request: Request<Streaming<WriteFileInput>>) -> Reply<FileEntry> {
        self.check(&request)?;
        let mut input = request.into_inner();
        let mut size = 0;
        while let Some(message) = input.next().await {
            match message {
                Ok(WriteFileInput { input: Some(write_file_input::Input::Data(data)) }) => size += data.len(),
                Ok(_) => {}
                Err(status) => {
                    self.seen.lock().unwrap().uploads.push(Err(size));
                    return Err(status);
                }
            }
        }
        self.seen.lock().unwrap().uploads.push(Ok(size));
        Ok(Response::new(FileEntry { size_bytes: size as u64, ..FileEntry::default() }))
    }

    async fn stat_file(&self, request: Request<StatFileRequest>) -> Reply<FileEntry> {
        self.check(&request)?;
        // Slow on purpose: calls overlap.
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(Response::new(FileEntry { path: request.into_inner().path, ..FileEntry::default() }))
    }

    async fn list_directory(&self, _: Request<ListDirectoryRequest>) -> Reply<ListDirectoryReply> {
        // One answer larger than the gateway takes.
        let entry = FileEntry { path: "x".repeat(4096), ..FileEntry::default() };
        Ok(Response::new(ListDirectoryReply { entries: vec![entry; 2000], truncated: false }))
    }

    async fn make_directory(&self, _: Request<MakeDirectoryRequest>) -> Reply<FileEntry> {
        Err(Status::unimplemented("make_directory"))
    }

    async fn move_path(&self, _: Request<MovePathRequest>) -> Reply<FileEntry> {
        Err(Status::unimplemented("move_path"))
    }

    async fn remove_path(&self, _: Request<RemovePathRequest>) -> Reply<RemovePathReply> {
        Err(Status::unimplemented("remove_path"))
    }

    type WatchStream = Outputs<WatchEvent>;

    async fn watch(&self, _: Request<WatchRequest>) -> Reply<Self::WatchStream> {
        Err(Status::unimplemented("watch"))
    }

    type ForwardStream = Outputs<ForwardFrame>;

    /// To an application that was set up for the port, in place of the guest's loopback.
    async fn forward(&self, request: Request<Streaming<ForwardFrame>>) -> Reply<Self::ForwardStream> {
        use forward_frame::Frame;
        self.check(&request)?;
        let mut input = request.into_inner();
        let first = input.next().await.transpose()?.and_then(|frame| frame.frame);
        let Some(Frame::Open(ForwardOpen { port })) = first else {
            return Err(Status::invalid_argument("open first"));
        };
        let Some(app) = self.loopback.lock().unwrap().get(&port).cloned() else {
            return Err(Status::unavailable("nothing listens"));
        };
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(app.serve_connection(far));
        let (mut read, mut write) = tokio::io::split(near);
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let frame = |frame| Ok(ForwardFrame { frame: Some(frame) });
        sender.send(frame(Frame::Opened(true))).await.unwrap();
        tokio::spawn(async move {
            while let Some(Ok(ForwardFrame { frame: Some(Frame::Data(data)) })) = input.next().await {
                write.write_all(&data).await.unwrap();
            }
            let _ = write.shutdown().await;
        });
        tokio::spawn(async move {
            let mut buffer = vec![0; 32 * 1024];
            while let Ok(count @ 1..) = read.read(&mut buffer).await {
                let data = Bytes::copy_from_slice(&buffer[..count]);
                if sender.send(frame(Frame::Data(data))).await.is_err() {
                    return;
                }
            }
            let _ = sender.send(frame(Frame::CloseWrite(true))).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
