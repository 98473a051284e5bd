//! A tiny sandbox behind the `Gateway` service: a directory for files, `/bin/sh` for commands.
//!
//! `/workspace` is the directory, both in paths and as the working directory; commands get nothing of this
//! process's environment but `PATH`.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use roost_proto::guest::exec_input::Input;
use roost_proto::guest::exec_output::Output;
use roost_proto::guest::file_entry::Kind;
use roost_proto::guest::*;
use roost_proto::host::SANDBOX_METADATA;
use roost_proto::host::gateway_server::Gateway;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::fault::plan::{Plan, Step};

/// A process of a sandbox.
type Name = (String, u32);
type Answers<T> = ReceiverStream<Result<T, Status>>;

#[derive(Debug, Clone)]
pub struct Guest {
    root: PathBuf,
    processes: Arc<Mutex<HashMap<Name, Process>>>,
    output: Arc<Mutex<HashMap<Name, Vec<u8>>>>,
    plan: Plan,
}

impl Guest {
    pub fn new(root: PathBuf, plan: Plan) -> Guest {
        Guest { root, processes: Arc::default(), output: Arc::default(), plan }
    }

    pub fn remove(&self, sandbox: &str) {
        let _ = std::fs::remove_dir_all(self.root.join(sandbox));
    }

    fn home<T>(&self, request: &Request<T>) -> Result<(String, PathBuf), Status> {
        let sandbox = request.metadata().get(SANDBOX_METADATA).and_then(|value| value.to_str().ok());
        let sandbox = sandbox.ok_or_else(|| Status::not_found("no sandbox is named"))?;
        let home = self.root.join(sandbox);
        std::fs::create_dir_all(&home).unwrap();
        Ok((sandbox.to_owned(), home))
    }
}

fn local(home: &Path, path: &str) -> PathBuf {
    home.join(path.strip_prefix("/workspace").unwrap_or(path).trim_start_matches('/'))
}

fn entry(home: &Path, file: &Path) -> Result<FileEntry, Status> {
    let metadata = std::fs::symlink_metadata(file).map_err(|_| Status::not_found("no such file"))?;
    let kind = if metadata.is_dir() { Kind::Directory } else { Kind::File };
    let modified = metadata.modified().unwrap().duration_since(UNIX_EPOCH).unwrap();
    let below = file.strip_prefix(home).unwrap().to_str().unwrap();
    let path = if below.is_empty() { "/workspace".into() } else { format!("/workspace/{below}") };
    Ok(FileEntry {
        path,
        kind: kind.into(),
        size_bytes: metadata.len(),
        mode: 0o644,
        owner: "user".into(),
        group: "user".into(),
        modified_us: i64::try_from(modified.as_micros()).unwrap(),
        link_target: String::new(),
    })
}

fn walk(home: &Path, directory: &Path, depth: u32, entries: &mut Vec<FileEntry>) {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    for file in files {
        entries.push(entry(home, &file).unwrap());
        if file.is_dir() && depth > 1 {
            walk(home, &file, depth - 1, entries);
        }
    }
}

async fn pump(mut from: impl AsyncReadExt + Unpin, to: mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0u8; 8192];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.send(buffer[..count].to_vec()).await.is_err() {
            return;
        }
    }
}

/// One process on its way, and where its output goes.
struct Running {
    guest: Guest,
    name: Name,
    out: mpsc::Sender<Result<ExecOutput, Status>>,
}

impl Running {
    async fn say(&self, output: Output) {
        let _ = self.out.send(Ok(ExecOutput { output: Some(output) })).await;
    }

    async fn wrote(&self, bytes: Vec<u8>, output: fn(Bytes) -> Output) {
        self.guest.output.lock().unwrap().entry(self.name.clone()).or_default().extend_from_slice(&bytes);
        self.say(output(bytes.into())).await;
    }

    /// Passes on what the process writes until it ends or its time is over.
    async fn follow(&self, mut child: Child, deadline_ms: u64) -> Option<ExitStatus> {
        let (stdout_to, mut stdout) = mpsc::channel(64);
        let (stderr_to, mut stderr) = mpsc::channel(64);
        tokio::spawn(pump(child.stdout.take().unwrap(), stdout_to));
        tokio::spawn(pump(child.stderr.take().unwrap(), stderr_to));
        let deadline = Duration::from_millis(if deadline_ms == 0 { 3_600_000 } else { deadline_ms });
        let waited = tokio::time::timeout(deadline, async {
            loop {
                tokio::select! {
                    Some(bytes) = stdout.recv() => self.wrote(bytes, Output::Stdout).await,
                    Some(bytes) = stderr.recv() => self.wrote(bytes, Output::Stderr).await,
                    status = child.wait() => return status.unwrap(),
                }
            }
        });
        let ended = waited.await.ok();
        if ended.is_none() {
            child.kill().await.unwrap();
        }
        // What a shell wrote before it ended is on its way; what its children still write is not waited for.
        const REST: Duration = Duration::from_millis(20);
        while let Ok(Some(bytes)) = tokio::time::timeout(REST, stdout.recv()).await {
            self.wrote(bytes, Output::Stdout).await;
        }
        while let Ok(Some(bytes)) = tokio::time::timeout(REST, stderr.recv()).await {
            self.wrote(bytes, Output::Stderr).await;
        }
        ended
    }

    async fn exited(&self, ended: Option<ExitStatus>, duration: Duration) {
        let signal = ended.map_or(15, |status| status.signal().unwrap_or(0));
        let exited = ExecExited {
            exit_code: ended.and_then(|status| status.code()).unwrap_or(128 + signal),
            signal: signal.unsigned_abs(),
            timed_out: ended.is_none(),
            duration_us: i64::try_from(duration.as_micros()).unwrap(),
        };
        if let Some(process) = self.guest.processes.lock().unwrap().get_mut(&self.name) {
            process.running = false;
            process.exited = Some(exited);
        }
        self.say(Output::Exited(exited)).await;
    }
}

fn spawn(home: &Path, start: &ExecStart) -> Child {
    let argv = match start.shell.as_str() {
        "" => start.argv.clone(),
        text => vec!["/bin/sh".into(), "-c".into(), text.into()],
    };
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).current_dir(home);
    command.env_clear().env("PATH", "/usr/bin:/bin").envs(&start.environment);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().unwrap()
}

async fn run(running: Running, mut child: Child, start: ExecStart, mut inputs: Streaming<ExecInput>) {
    let began = Instant::now();
    let mut stdin = child.stdin.take().unwrap();
    let feed = start.stdin;
    tokio::spawn(async move {
        while feed && let Ok(Some(input)) = inputs.message().await {
            let Some(Input::Stdin(bytes)) = input.input else { return };
            if stdin.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    running.say(Output::Started(ExecStarted { pid: running.name.1 })).await;
    let ended = running.follow(child, start.deadline_ms).await;
    running.exited(ended, began.elapsed()).await;
}

fn answers<T>(items: Vec<T>) -> Response<Answers<T>>
where
    T: Send + 'static,
{
    let (sender, receiver) = mpsc::channel(items.len().max(1));
    for item in items {
        sender.try_send(Ok(item)).unwrap_or_else(|_| panic!("the channel holds them all"));
    }
    Response::new(ReceiverStream::new(receiver))
}

#[tonic::async_trait]
impl Gateway for Guest {
    type ExecStream = Answers<ExecOutput>;
    type AttachStream = Answers<ExecOutput>;
    type ReadFileStream = Answers<FileChunk>;
    type WatchStream = Answers<WatchEvent>;

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(StatusReply::default()))
    }

    async fn exec(
        &self,
        request: Request<Streaming<ExecInput>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let (sandbox, home) = self.home(&request)?;
        let mut inputs = request.into_inner();
        let Some(Input::Start(start)) = inputs.message().await?.and_then(|input| input.input) else {
            return Err(Status::invalid_argument("the first message starts"));
        };
        let (out, receiver) = mpsc::channel(256);
        let child = self.plan.around(Step::Exec, || spawn(&home, &start))?;
        let name = (sandbox, child.id().unwrap());
        let text = if start.shell.is_empty() { start.argv.join(" ") } else { start.shell.clone() };
        let process = Process {
            pid: name.1,
            name: start.name.clone(),
            command: text,
            started_us: roost_daemon::clock::now_us(),
            running: true,
            exited: None,
        };
        self.processes.lock().unwrap().insert(name.clone(), process);
        tokio::spawn(run(Running { guest: self.clone(), name, out }, child, start, inputs));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<Self::AttachStream>, Status> {
        let (sandbox, _) = self.home(&request)?;
        let key = (sandbox, request.get_ref().pid);
        while request.get_ref().follow && self.processes.lock().unwrap()[&key].running {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let bytes = self.output.lock().unwrap().get(&key).cloned().unwrap_or_default();
        let mut outputs = vec![ExecOutput { output: Some(Output::Stdout(bytes.into())) }];
        if let Some(exited) = self.processes.lock().unwrap()[&key].exited {
            outputs.push(ExecOutput { output: Some(Output::Exited(exited)) });
        }
        Ok(answers(outputs))
    }

    async fn list_processes(
        &self,
        request: Request<ListProcessesRequest>,
    ) -> Result<Response<ListProcessesReply>, Status> {
        let (sandbox, _) = self.home(&request)?;
        let all = self.processes.lock().unwrap();
        let processes = all
            .iter()
            .filter(|((owner, _), _)| *owner == sandbox)
            .map(|(_, process)| process.clone())
            .collect();
        Ok(Response::new(ListProcessesReply { processes }))
    }

    async fn signal(&self, request: Request<SignalRequest>) -> Result<Response<SignalReply>, Status> {
        let (_, _) = self.home(&request)?;
        let asked = request.into_inner();
        let status = std::process::Command::new("/bin/kill")
            .arg(format!("-{}", asked.signal))
            .arg(asked.pid.to_string())
            .status();
        Ok(Response::new(SignalReply { delivered: status.unwrap().success() }))
    }

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        let (_, home) = self.home(&request)?;
        let file = local(&home, &request.get_ref().path);
        let head = entry(&home, &file)?;
        let mut chunks = vec![FileChunk { chunk: Some(file_chunk::Chunk::Head(head.clone())) }];
        if head.kind() == Kind::File {
            let bytes = Bytes::from(std::fs::read(&file).unwrap());
            let starts = (0..bytes.len()).step_by(64 * 1024);
            chunks.extend(starts.map(|at| {
                let data = bytes.slice(at..(at + 64 * 1024).min(bytes.len()));
                FileChunk { chunk: Some(file_chunk::Chunk::Data(data)) }
            }));
        }
        Ok(answers(chunks))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<WriteFileInput>>,
    ) -> Result<Response<FileEntry>, Status> {
        let (_, home) = self.home(&request)?;
        let mut inputs = request.into_inner();
        let Some(write_file_input::Input::Head(head)) = inputs.message().await?.and_then(|input| input.input)
        else {
            return Err(Status::invalid_argument("the first message is the head"));
        };
        let file = local(&home, &head.path);
        if file.is_dir() {
            return Err(Status::failed_precondition("is a directory"));
        }
        let mut bytes = Vec::new();
        while let Some(input) = inputs.message().await? {
            if let Some(write_file_input::Input::Data(data)) = input.input {
                bytes.extend_from_slice(&data);
            }
        }
        self.plan.around(Step::Upload, || {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, &bytes).unwrap();
        })?;
        Ok(Response::new(entry(&home, &file)?))
    }

    async fn stat_file(&self, request: Request<StatFileRequest>) -> Result<Response<FileEntry>, Status> {
        let (_, home) = self.home(&request)?;
        Ok(Response::new(entry(&home, &local(&home, &request.get_ref().path))?))
    }

    async fn list_directory(
        &self,
        request: Request<ListDirectoryRequest>,
    ) -> Result<Response<ListDirectoryReply>, Status> {
        let (_, home) = self.home(&request)?;
        let directory = local(&home, &request.get_ref().path);
        if entry(&home, &directory)?.kind() != Kind::Directory {
            return Err(Status::failed_precondition("is not a directory"));
        }
        let mut entries = Vec::new();
        walk(&home, &directory, request.get_ref().depth, &mut entries);
        Ok(Response::new(ListDirectoryReply { entries, truncated: false }))
    }

    async fn make_directory(&self, _: Request<MakeDirectoryRequest>) -> Result<Response<FileEntry>, Status> {
        Err(Status::unimplemented("not called by the API"))
    }

    async fn move_path(&self, _: Request<MovePathRequest>) -> Result<Response<FileEntry>, Status> {
        Err(Status::unimplemented("not called by the API"))
    }

    async fn remove_path(&self, _: Request<RemovePathRequest>) -> Result<Response<RemovePathReply>, Status> {
        Err(Status::unimplemented("not called by the API"))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let event = |kind: watch_event::Kind, path: &str| WatchEvent {
            kind: kind.into(),
            path: path.into(),
            ..WatchEvent::default()
        };
        let path = request.get_ref().path.clone();
        Ok(answers(vec![
            event(watch_event::Kind::Ready, &path),
            event(watch_event::Kind::Created, &format!("{path}/new")),
        ]))
    }
}
