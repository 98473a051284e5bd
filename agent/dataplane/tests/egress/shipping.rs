//! The real process ships over the real gRPC and TLS to a scheduler that loses its answers, forgets its place and
//! goes away in the middle of calls, and is killed itself.
//!
//! Every order of failures is tried with a paused clock in the journal's own tests; these show that each kind
//! comes through the connection as what it is there.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use roost_domain::audit::{Completion, Intent, Record};
use roost_proto::host::audit_server::{Audit, AuditServer};
use roost_proto::host::{ShipReply, ShipRequest};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::fleet::join;
use crate::lab::{self, Guest, Root, World, eventually};
use crate::support::agent::{Agent, Reply, attach, execution, sandbox};
use crate::support::fleet::Fleet;
use crate::support::process::Dataplane;

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Stored, and the call fails.
    AnswerLost,
    /// Stored, and the offset from before is acknowledged.
    OldOffset,
    /// Stored, and the connection is gone before the answer.
    CutOff,
}

#[derive(Debug, Default)]
struct Stored {
    faults: VecDeque<Fault>,
    /// A call waits for the connection to be cut.
    is_waiting: bool,
    calls: usize,
    rows: BTreeMap<String, (Option<Intent>, Option<Completion>)>,
    /// Events as they were first heard of.
    order: Vec<String>,
}

impl Stored {
    /// Joined by event id: what comes again is what is there.
    fn put(&mut self, records: &[u8]) {
        assert!(records.ends_with(b"\n"), "whole records are sent");
        for line in records.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let record: Record = serde_json::from_slice(line).unwrap();
            let event = record.event_id().to_owned();
            if !self.rows.contains_key(&event) {
                self.order.push(event.clone());
            }
            let row = self.rows.entry(event).or_default();
            match record {
                Record::Intent(intent) => {
                    assert!(row.0.replace(intent.clone()).is_none_or(|former| former == intent));
                }
                Record::Completion(end) => {
                    assert!(row.0.is_some(), "an end without a beginning");
                    assert!(row.1.replace(end.clone()).is_none_or(|former| former == end));
                }
            }
        }
    }

    fn complete(&self) -> usize {
        self.rows.values().filter(|(_, end)| end.is_some()).count()
    }
}

#[derive(Debug, Clone, Default)]
struct Receiver(Arc<Mutex<Stored>>);

impl Receiver {
    fn stored(&self) -> MutexGuard<'_, Stored> {
        self.0.lock().unwrap()
    }
}

#[tonic::async_trait]
impl Audit for Receiver {
    async fn ship(&self, request: Request<ShipRequest>) -> Result<Response<ShipReply>, Status> {
        let ShipRequest { offset, records, .. } = request.into_inner();
        let fault = {
            let mut stored = self.stored();
            stored.put(&records);
            stored.calls += 1;
            let fault = stored.faults.pop_front();
            stored.is_waiting = matches!(fault, Some(Fault::CutOff));
            fault
        };
        match fault {
            Some(Fault::AnswerLost) => Err(Status::unavailable("the answer is lost")),
            Some(Fault::OldOffset) => Ok(Response::new(ShipReply { acked_offset: offset })),
            Some(Fault::CutOff) => std::future::pending().await,
            None => Ok(Response::new(ShipReply { acked_offset: offset + records.len() as u64 })),
        }
    }
}

/// The scheduler's process: all of its connections end with it.
struct Scheduler(Option<tokio::runtime::Runtime>);

impl Scheduler {
    async fn start(fleet: &Fleet, address: SocketAddr, receiver: &Receiver) -> Self {
        let leaf = fleet.leaf(&["scheduler.roost.internal"], Some("roost://scheduler"));
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(leaf.certificate_pem, leaf.key_pem))
            .client_ca_root(Certificate::from_pem(&fleet.root_pem));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        // The one before may not have let go of the address yet.
        let listener = eventually("the address", || std::net::TcpListener::bind(address).ok()).await;
        listener.set_nonblocking(true).unwrap();
        let service = AuditServer::new(receiver.clone());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let server = Server::builder().tls_config(tls).unwrap().add_service(service);
            server.serve_with_incoming(TcpListenerStream::new(listener)).await
        });
        Self(Some(runtime))
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // Not awaited: this is done on another runtime's thread.
        self.0.take().unwrap().shutdown_background();
    }
}

/// A joined host with one guest, and the scheduler's place.
struct Host {
    world: World,
    process: Dataplane,
    guest: Guest,
    fleet: Fleet,
    address: SocketAddr,
    receiver: Receiver,
    begun: usize,
    _agent: Option<Agent>,
}

impl Host {
    async fn start(world: World) -> Self {
        let (fleet, egress_root) = (Fleet::new(), Root::new("egress"));
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let process = Dataplane::start("egress", &format!("[scheduler]\naddress = \"{address}\"\n"));
        join(&process, &fleet, &egress_root);
        let guest = world.guest(egress_root);
        let receiver = Receiver::default();
        let mut this = Self { world, process, guest, fleet, address, receiver, begun: 0, _agent: None };
        this.attach().await;
        this
    }

    async fn attach(&mut self) {
        let (mut agent, _) = Agent::connect(&self.process.control).await;
        let sockets = self.world.descriptors(&self.process.directory().join("dns.map"));
        let reply = agent.call(attach(execution(), sandbox(), 1), sockets).await;
        assert!(matches!(reply, Reply::Ack(_)), "{reply:?}");
        self._agent = Some(agent);
    }

    async fn start_scheduler(&self) -> Scheduler {
        Scheduler::start(&self.fleet, self.address, &self.receiver).await
    }

    fn journal(&self) -> PathBuf {
        self.process.directory().join("state/audit/shipped")
    }

    fn segments(&self) -> Vec<PathBuf> {
        let paths = std::fs::read_dir(self.journal()).unwrap().map(|entry| entry.unwrap().path());
        let mut segments: Vec<PathBuf> =
            paths.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl")).collect();
        segments.sort();
        segments
    }

    fn note(&self) -> Option<String> {
        std::fs::read_to_string(self.journal().join("acked")).ok()
    }

    /// The guest goes to an address that no name has, which is refused, and a row.
    async fn call(&mut self) {
        self.begun += 1;
        let lines = || self.segments().pop().map_or(0, |newest| lines(&newest));
        let before = lines();
        let _ = self.guest.connect_address(([198, 18, 200, 1], 80)).await;
        eventually("the row on this host", || (lines() >= before + 2).then_some(())).await;
    }

    async fn all_stored(&self) {
        eventually("every row", || (self.receiver.stored().complete() == self.begun).then_some(())).await;
        assert_eq!(self.receiver.stored().rows.len(), self.begun);
    }

    /// Until the scheduler's answers are known here, too.
    async fn all_acknowledged(&self) {
        let known = || {
            let newest = self.segments().pop()?;
            let length = std::fs::metadata(&newest).ok()?.len();
            let name = newest.file_stem()?.to_string_lossy().into_owned();
            (self.note()? == format!("{name} {length}\n")).then_some(())
        };
        eventually("the note of what is acknowledged", known).await;
    }

    /// Kills the process and starts it again over what `tamper` leaves.
    async fn restart(&mut self, tamper: impl FnOnce(&Path)) {
        // Nothing writes the note while no scheduler acknowledges anything.
        tamper(&self.journal().join("acked"));
        self.process.kill_and_start_again("egress");
        self.attach().await;
    }
}

fn lines(segment: &Path) -> usize {
    let content = std::fs::read(segment).unwrap_or_default();
    content.iter().filter(|byte| **byte == b'\n').count()
}

#[test]
fn f2_an_answer_that_is_lost_on_the_way_costs_a_repeat_and_nothing_else() {
    let world = World::build();
    lab::block_on(async {
        let mut host = Host::start(world).await;
        let scheduler = host.start_scheduler().await;
        host.call().await;
        host.all_acknowledged().await;
        for fault in [Fault::AnswerLost, Fault::OldOffset] {
            let calls = host.receiver.stored().calls;
            host.receiver.stored().faults.push_back(fault);
            host.call().await;
            host.all_stored().await;
            host.all_acknowledged().await;
            assert!(host.receiver.stored().calls >= calls + 2, "{fault:?}: it is sent again");
        }
        let calls = host.receiver.stored().calls;
        host.receiver.stored().faults.push_back(Fault::CutOff);
        host.call().await;
        eventually("a call in progress", || host.receiver.stored().is_waiting.then_some(())).await;
        drop(scheduler);
        host.receiver.stored().is_waiting = false;
        let _scheduler = host.start_scheduler().await;
        host.all_stored().await;
        host.all_acknowledged().await;
        assert!(host.receiver.stored().calls >= calls + 2, "what was cut off is sent again");
        let begun: Vec<String> =
            lab::rows(&host.journal()).into_iter().map(|row| row.intent.event_id).collect();
        assert_eq!(host.receiver.stored().order, begun);
    });
}

#[test]
fn f2_what_waits_over_a_crash_is_sent_whatever_the_note_says() {
    let world = World::build();
    lab::block_on(async {
        let mut host = Host::start(world).await;
        let mut scheduler = host.start_scheduler().await;
        host.call().await;
        host.all_acknowledged().await;
        let old = host.note().unwrap();
        let beyond = |note: &Path| {
            let text = std::fs::read_to_string(note).unwrap();
            let (segment, _) = text.split_once(' ').unwrap();
            std::fs::write(note, format!("{segment} 1000000\n")).unwrap();
        };
        let tampers: [&dyn Fn(&Path); 3] = [
            &|note| std::fs::write(note, &old).unwrap(),
            &|note| std::fs::remove_file(note).unwrap(),
            &beyond,
        ];
        for tamper in tampers {
            drop(scheduler);
            host.call().await;
            host.call().await;
            host.restart(tamper).await;
            assert!(host.segments().len() > 1, "what waits is there");
            scheduler = host.start_scheduler().await;
            host.all_stored().await;
            eventually("stored segments to go", || (host.segments().len() == 1).then_some(())).await;
            // A note of this run's own, for the next to be wrong about.
            host.call().await;
            host.all_acknowledged().await;
        }
        assert!(host.receiver.stored().order.is_sorted(), "ids grow with time");
    });
}
