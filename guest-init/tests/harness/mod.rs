//! A guest's server on this machine's loopback, with everything real but boot and personalisation.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use roost_init::guest::{Effects, Guest};
use roost_init::{reap, server};
use roost_proto::guest::exec_input::Input;
use roost_proto::guest::exec_output::Output;
use roost_proto::guest::guest_client::GuestClient;
use roost_proto::guest::{ClaimRequest, ExecExited, ExecInput, ExecOutput, ExecStart, Personalisation};
use tokio::net::TcpListener;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

pub const TOKEN: &str = "test-token-of-this-guest-1234567890";
pub const PATIENCE: Duration = Duration::from_secs(20);

pub type Client = GuestClient<InterceptedService<Channel, Bearer>>;

#[derive(Debug, Clone)]
pub struct Bearer(pub String);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value = format!("Bearer {}", self.0).parse().expect("a token is ASCII");
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

pub struct Server {
    pub address: SocketAddr,
}

impl Server {
    /// Starts an unclaimed guest.
    pub async fn start() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "run these tests as root: guests start processes as any user"
        );
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let address = listener.local_addr().expect("bound");
        let guest = Arc::new(Guest::new(Effects::None));
        tokio::spawn(reap::run(guest.processes.clone()));
        tokio::spawn(server::serve(listener, IpAddr::from(Ipv4Addr::LOCALHOST), guest));
        Self { address }
    }

    /// Starts a guest and claims it.
    pub async fn claimed() -> (Self, Client) {
        let server = Self::start().await;
        let mut client = server.client(TOKEN).await;
        client.claim(claim(TOKEN, 1)).await.expect("claim");
        (server, client)
    }

    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address))
            .expect("valid")
            .connect()
            .await
            .expect("connect")
    }

    /// A client on a connection of its own.
    pub async fn client(&self, token: &str) -> Client {
        GuestClient::with_interceptor(self.channel().await, Bearer(token.into()))
    }
}

pub fn personalisation(epoch: u64) -> Personalisation {
    Personalisation {
        epoch,
        entropy: vec![7; 32].into(),
        time_us: 1_700_000_000_000_000,
        host_name: "sbx-test".into(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        boot_id: "2cbb51a3-1bf2-4fbc-8e0d-4a2b0d5c6e7f".into(),
        environment: HashMap::from([("FROM_GUEST".into(), format!("epoch-{epoch}"))]),
        ..Personalisation::default()
    }
}

pub fn claim(token: &str, epoch: u64) -> ClaimRequest {
    ClaimRequest { token: token.into(), personalisation: Some(personalisation(epoch)) }
}

/// Shell text, as root since the machine that runs tests has its own users.
pub fn shell(text: &str) -> ExecStart {
    ExecStart {
        shell: text.into(),
        user: "root".into(),
        working_directory: "/".into(),
        ..ExecStart::default()
    }
}

pub fn input(input: Input) -> ExecInput {
    ExecInput { input: Some(input) }
}

/// What a process wrote and how it ended.
#[derive(Debug, Default)]
pub struct Ran {
    pub pid: u32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exited: Option<ExecExited>,
}

impl Ran {
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn code(&self) -> i32 {
        self.exited.as_ref().expect("the stream ends with the exit").exit_code
    }

    fn take(&mut self, output: ExecOutput) {
        match output.output.expect("never empty") {
            Output::Started(started) => self.pid = started.pid,
            Output::Stdout(bytes) => self.stdout.extend_from_slice(&bytes),
            Output::Stderr(bytes) => self.stderr.extend_from_slice(&bytes),
            Output::Exited(exited) => self.exited = Some(exited),
        }
    }
}

/// Starts a process with these messages after its start.
pub async fn begin(
    client: &mut Client,
    start: ExecStart,
    rest: Vec<ExecInput>,
) -> Result<Streaming<ExecOutput>, Status> {
    let messages = std::iter::once(input(Input::Start(start))).chain(rest).collect::<Vec<_>>();
    Ok(client.exec(tokio_stream::iter(messages)).await?.into_inner())
}

pub async fn collect(mut stream: Streaming<ExecOutput>) -> Result<Ran, Status> {
    let mut ran = Ran::default();
    let reading = async {
        while let Some(output) = stream.message().await? {
            ran.take(output);
        }
        Ok::<_, Status>(())
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the stream ends in time")?;
    Ok(ran)
}

/// The pid of a process that was just started.
pub async fn started(stream: &mut Streaming<ExecOutput>) -> u32 {
    let mut ran = Ran::default();
    ran.take(stream.message().await.expect("answered").expect("started"));
    assert!(ran.pid > 0);
    ran.pid
}

pub async fn run(client: &mut Client, start: ExecStart) -> Ran {
    let stream = begin(client, start, Vec::new()).await.expect("started");
    collect(stream).await.expect("ran")
}

/// Polls until a condition holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a process exists and is not merely waiting to be reaped.
pub fn is_alive(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
