//! Guests that lie in every answer: the gateway stays bounded, answers its callers, and serves other guests.
//!
//! The lies are of three kinds: whole connections of rubbish, well-formed HTTP/2 that is no gRPC or the wrong one,
//! and an honest guest whose bytes are changed on the way, at places a seed chooses. `ROOST_LYING_SEEDS` says how many
//! seeds are tried (60 unless told otherwise; a night's worth is 5,000).

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
#![allow(clippy::disallowed_methods, reason = "tests are the guest and its network")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Response};
use roost_domain::id::ExecutionId;
use roost_proto::guest::*;
use roost_proto::host::gateway_client::GatewayClient;
use support::agent::{self, Reply};
use support::attached::{Attached, LONG, TOKEN};
use support::eventually;
use support::guest::FakeGuest;
use support::namespace::Namespace;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::transport::Channel;

/// Longer than any lie needs that ends, shorter than the gateway's own patience with one that does not.
const PATIENCE: Duration = Duration::from_secs(10);
const GROWTH_MAX_KIB: u64 = 32 * 1024;

type Gateway = GatewayClient<Channel>;
type Respond = h2::server::SendResponse<Bytes>;

/// A second guest behind the same edge, which is honest.
struct Neighbour {
    execution: ExecutionId,
    _namespace: Namespace,
}

impl Neighbour {
    async fn new(attached: &mut Attached) -> Self {
        let (namespace, execution) = (Namespace::new(), agent::execution());
        let attach = agent::attach(execution, agent::sandbox(), 1);
        let reply = attached.agent.call(attach, namespace.dial_sockets(8)).await;
        assert!(matches!(reply, Reply::Ack(_)), "{reply:?}");
        FakeGuest::default().serve(namespace.listen(GUEST_RPC_PORT));
        let reply = attached.agent.call(agent::claim(execution, TOKEN, LONG), Vec::new()).await;
        assert!(matches!(reply, Reply::Claimed(_)), "{reply:?}");
        Self { execution, _namespace: namespace }
    }

    /// An exec of its own, to its exit code.
    async fn is_served(&self, attached: &mut Attached) {
        let mut gateway = attached.gateway_of(self.execution).await;
        assert_eq!(exec(&mut gateway).await.unwrap(), 3);
    }
}

/// Three bytes into the guest, and the exit code that came back.
async fn exec(gateway: &mut Gateway) -> Result<i32, Code> {
    let start = exec_input::Input::Start(ExecStart { shell: "cat".into(), ..ExecStart::default() });
    let inputs = [start, exec_input::Input::Stdin(Bytes::from_static(b"abc"))];
    let inputs = inputs.map(|input| ExecInput { input: Some(input) });
    let mut outputs =
        gateway.exec(futures::stream::iter(inputs)).await.map_err(|status| status.code())?.into_inner();
    while let Some(output) = outputs.next().await {
        match output.map_err(|status| status.code())?.output {
            Some(exec_output::Output::Exited(exited)) => return Ok(exited.exit_code),
            _ => continue,
        }
    }
    Err(Code::Ok)
}

/// Calls of each shape; how each ended, `None` for one that did not in time.
async fn call_all(gateway: &mut Gateway, patience: Duration) -> Vec<Option<Result<(), Code>>> {
    let ended = |status: tonic::Status| {
        assert!(status.message().chars().count() <= 1024, "{} characters", status.message().len());
        assert!(!status.message().chars().any(char::is_control), "{:?}", status.message());
        status.code()
    };
    let mut results = Vec::new();
    let asked = tokio::time::timeout(patience, gateway.status(StatusRequest {})).await;
    results.push(asked.ok().map(|answer| answer.map(drop).map_err(ended)));
    let listed = gateway.list_directory(ListDirectoryRequest::default());
    let listed = tokio::time::timeout(patience, listed).await;
    results.push(listed.ok().map(|answer| answer.map(drop).map_err(ended)));
    let ran = tokio::time::timeout(patience, exec(gateway)).await;
    results.push(ran.ok().map(|answer| answer.map(drop)));
    let read = async {
        let request = ReadFileRequest { offset: 1024, limit_bytes: 65_536, ..ReadFileRequest::default() };
        let mut chunks = gateway.read_file(request).await?.into_inner();
        while let Some(chunk) = chunks.next().await {
            chunk?;
        }
        Ok::<_, tonic::Status>(())
    };
    results.push(tokio::time::timeout(patience, read).await.ok().map(|answer| answer.map_err(ended)));
    let data = WriteFileInput { input: Some(write_file_input::Input::Data(Bytes::from(vec![1; 1000]))) };
    let written = gateway.write_file(futures::stream::iter([data]));
    let written = tokio::time::timeout(patience, written).await;
    results.push(written.ok().map(|answer| answer.map(drop).map_err(ended)));
    results
}

/// A gRPC message: a byte for compression, the length, the content.
fn framed(compressed: u8, length: u32, content: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(compressed);
    bytes.put_u32(length);
    bytes.put_slice(content);
    bytes.freeze()
}

fn message(content: &impl prost::Message) -> Bytes {
    let content = content.encode_to_vec();
    framed(0, content.len() as u32, &content)
}

fn trailers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, &str)| {
        (http::HeaderName::from_static(name), http::HeaderValue::from_str(value).unwrap())
    };
    pairs.iter().map(pair).collect()
}

/// The answer to every call: head, parts of the body, and how it ends.
#[derive(Clone)]
struct Lie {
    head: Response<()>,
    body: Vec<Bytes>,
    end: End,
}

#[derive(Clone)]
enum End {
    Trailers(HeaderMap),
    /// The stream ends with the last part.
    Bare,
    Reset(h2::Reason),
    /// The whole connection goes.
    GoAway(h2::Reason),
    Cut,
}

fn grpc() -> Response<()> {
    Response::builder().header("content-type", "application/grpc").body(()).unwrap()
}

fn lie(body: Vec<Bytes>, end: End) -> Lie {
    Lie { head: grpc(), body, end }
}

/// Honest in its claim only; answers everything else with the lie that is told at the time.
async fn tell(stream: TcpStream, told: Arc<std::sync::Mutex<Lie>>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let path = request.uri().path().to_owned();
        let Lie { head, body, end } = match path.rsplit('/').next() {
            Some("Claim") => {
                let reply = message(&ClaimReply { protocol_generation: 1, ..ClaimReply::default() });
                lie(vec![reply], End::Trailers(trailers(&[("grpc-status", "0")])))
            }
            _ => told.lock().unwrap().clone(),
        };
        match end {
            End::GoAway(reason) => {
                answer(&mut respond, head, body, None);
                connection.abrupt_shutdown(reason);
            }
            End::Cut => return,
            end => answer(&mut respond, head, body, Some(end)),
        }
    }
}

/// The caller may be gone already, which is no failure of this guest.
fn answer(respond: &mut Respond, head: Response<()>, body: Vec<Bytes>, end: Option<End>) {
    let Ok(mut stream) = respond.send_response(head, false) else { return };
    for part in body {
        if stream.send_data(part, false).is_err() {
            return;
        }
    }
    let _ = match end {
        Some(End::Trailers(trailers)) => stream.send_trailers(trailers),
        Some(End::Bare) => stream.send_data(Bytes::new(), true),
        Some(End::Reset(reason)) => {
            stream.send_reset(reason);
            Ok(())
        }
        _ => Ok(()),
    };
}

fn lies() -> Vec<(&'static str, Lie)> {
    let ok = || End::Trailers(trailers(&[("grpc-status", "0")]));
    let output = |output| message(&ExecOutput { output: Some(output) });
    let status =
        |code: &str, text: &str| End::Trailers(trailers(&[("grpc-status", code), ("grpc-message", text)]));
    let mut lies = vec![
        ("nothing at all, and no status", lie(vec![], End::Bare)),
        ("nothing at all, and all is well", lie(vec![], ok())),
        ("a message of another kind", lie(vec![framed(0, 9, b"\x0a\xff\xff\xff\xff\xff\xff\xff\x7f")], ok())),
        ("text for a message", lie(vec![framed(0, 11, b"hello world")], ok())),
        ("half a message", lie(vec![framed(0, 1000, b"half")], End::Bare)),
        ("half a message, and all is well", lie(vec![framed(0, 1000, b"half")], ok())),
        ("a message of 4 GiB", lie(vec![framed(0, u32::MAX, &[0; 1000])], ok())),
        ("a message that claims to be compressed", lie(vec![framed(1, 4, b"zzzz")], ok())),
        ("a compression that does not exist", lie(vec![framed(77, 4, b"zzzz")], ok())),
        ("one byte of a frame", lie(vec![Bytes::from_static(b"\0")], ok())),
        ("a status that is no number", lie(vec![], status("well", ""))),
        ("a status that does not exist", lie(vec![], status("4711", ""))),
        ("a text of control characters", lie(vec![], status("5", "%00%1b%5B2J%0d%0a"))),
        ("a text without end", lie(vec![], status("5", &"long".repeat(3000)))),
        ("a text that is no UTF-8", lie(vec![], status("5", "%ff%fe%"))),
        ("details of the guest", lie(vec![], status("5", "x"))),
        ("who are you", lie(vec![], status("16", "no"))),
        ("headers beyond the limit", lie(vec![], status("0", &"x".repeat(20_000)))),
        ("a refused stream", lie(vec![], End::Reset(h2::Reason::REFUSED_STREAM))),
        ("a stream that broke", lie(vec![], End::Reset(h2::Reason::INTERNAL_ERROR))),
        ("a stream that ended well, by reset", lie(vec![], End::Reset(h2::Reason::NO_ERROR))),
        ("enough of you", lie(vec![], End::GoAway(h2::Reason::ENHANCE_YOUR_CALM))),
        ("goodbye", lie(vec![], End::GoAway(h2::Reason::NO_ERROR))),
        ("a cut", lie(vec![], End::Cut)),
    ];
    let exited = |code| {
        exec_output::Output::Exited(ExecExited { exit_code: code, signal: u32::MAX, ..ExecExited::default() })
    };
    let started = |pid| exec_output::Output::Started(ExecStarted { pid });
    lies.extend([
        ("an exit before the start, twice, and impossible", {
            let outputs = [exited(i32::MIN), started(u32::MAX), exited(i32::MAX), started(0)];
            lie(outputs.into_iter().map(output).collect(), ok())
        }),
        ("chunks beyond the limit", {
            lie(vec![output(exec_output::Output::Stdout(Bytes::from(vec![0; 512 << 10])))], ok())
        }),
        ("a thousand answers to one question", {
            lie(vec![message(&StatusReply { epoch: u64::MAX, ..StatusReply::default() }); 1000], ok())
        }),
        (
            "five hundred, as a page",
            Lie {
                head: Response::builder().status(500).header("content-type", "text/html").body(()).unwrap(),
                body: vec![Bytes::from_static(b"<h1>no</h1>")],
                end: End::Bare,
            },
        ),
        (
            "go elsewhere",
            Lie {
                head: Response::builder()
                    .status(307)
                    .header("location", "http://192.0.2.1/")
                    .body(())
                    .unwrap(),
                body: vec![],
                end: End::Bare,
            },
        ),
    ]);
    lies
}

#[tokio::test(flavor = "multi_thread")]
async fn every_lie_is_answered_and_costs_neither_memory_nor_a_neighbour() {
    let mut attached = Attached::new().await;
    let neighbour = Neighbour::new(&mut attached).await;
    let told = Arc::new(std::sync::Mutex::new(lie(vec![], End::Cut)));
    let telling = told.clone();
    attached.serve_raw(move |stream| tell(stream, telling.clone()));
    assert!(matches!(attached.claim().await, Reply::Claimed(_)));
    let mut gateway = attached.gateway().await;
    let before = (attached.resident_kib(), attached.descriptors());
    for (what, lie) in lies() {
        *told.lock().unwrap() = lie;
        let results = call_all(&mut gateway, PATIENCE).await;
        assert!(results.iter().all(Option::is_some), "{what}: a call got no answer: {results:?}");
        let execs = results[2].unwrap();
        assert!(what.starts_with("an exit") == execs.is_ok(), "{what}: an exec ended with {execs:?}");
    }
    neighbour.is_served(&mut attached).await;
    let grown = attached.resident_kib().saturating_sub(before.0);
    assert!(grown < GROWTH_MAX_KIB, "{grown} KiB");
    let (process, dial_sockets) = (&attached, 32);
    eventually("descriptors to be free again", || async {
        (process.descriptors() <= before.1 + dial_sockets).then_some(())
    })
    .await;
}

/// Answers that go on for ever: as long as the caller reads, and no longer.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_end_is_bounded_and_ends_with_its_caller() {
    let mut attached = Attached::new().await;
    let neighbour = Neighbour::new(&mut attached).await;
    let open = Arc::new(AtomicUsize::new(0));
    let streams = open.clone();
    attached.serve_raw(move |stream| never_end(stream, streams.clone()));
    assert!(matches!(attached.claim().await, Reply::Claimed(_)));
    let mut gateway = attached.gateway().await;
    let before = attached.resident_kib();

    // One that is read and one that is not, at the same time.
    let request = ReadFileRequest::default();
    let unread = gateway.read_file(request.clone()).await.unwrap().into_inner();
    let mut read = gateway.read_file(request).await.unwrap().into_inner();
    let begun = Instant::now();
    let mut chunks = 0_u64;
    while begun.elapsed() < Duration::from_secs(1) || chunks < 100 {
        read.next().await.unwrap().unwrap();
        chunks += 1;
    }
    // A single answer that drips, byte by byte, is given up when its caller has had enough.
    let dripping = tokio::time::timeout(Duration::from_millis(500), gateway.status(StatusRequest {})).await;
    assert!(dripping.is_err(), "{dripping:?}");
    neighbour.is_served(&mut attached).await;
    let grown = attached.resident_kib().saturating_sub(before);
    assert!(grown < GROWTH_MAX_KIB, "{grown} KiB after {chunks} chunks");
    assert!(open.load(Ordering::Relaxed) >= 2);
    drop((unread, read));
    eventually("the guest's streams to be reset", || async {
        (open.load(Ordering::Relaxed) == 0).then_some(())
    })
    .await;
}

async fn never_end(stream: TcpStream, open: Arc<AtomicUsize>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if request.uri().path().ends_with("/Claim") {
            let reply = message(&ClaimReply { protocol_generation: 1, ..ClaimReply::default() });
            answer(&mut respond, grpc(), vec![reply], Some(End::Trailers(trailers(&[("grpc-status", "0")]))));
            continue;
        }
        let chunk = file_chunk::Chunk::Data(Bytes::from(vec![0; 16 << 10]));
        let chunk = message(&FileChunk { chunk: Some(chunk) });
        let drips = request.uri().path().ends_with("/Status");
        let stream = respond.send_response(grpc(), false).unwrap();
        let open = open.clone();
        open.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            match drips {
                true => {
                    pour(stream, std::iter::repeat(Bytes::from_static(b"\0")), Duration::from_millis(20))
                        .await
                }
                false => pour(stream, std::iter::repeat(chunk), Duration::ZERO).await,
            }
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// Sends part after part until the stream is reset.
async fn pour(mut stream: h2::SendStream<Bytes>, parts: impl Iterator<Item = Bytes>, pause: Duration) {
    for mut part in parts {
        while !part.is_empty() {
            stream.reserve_capacity(part.len());
            let granted = std::future::poll_fn(|context| match stream.poll_reset(context) {
                Poll::Ready(_) => Poll::Ready(None),
                Poll::Pending => stream.poll_capacity(context),
            });
            let Some(Ok(granted)) = granted.await else { return };
            if stream.send_data(part.split_to(granted.min(part.len())), false).is_err() {
                return;
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// A small generator of its own, so that a seed means the same tomorrow.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    /// Flips, drops, doubles, inserts or cuts something, in one read of three.
    fn spoil(&mut self, bytes: &mut Vec<u8>) -> bool {
        if bytes.is_empty() || self.below(3) > 0 {
            return true;
        }
        let at = self.below(bytes.len());
        match self.below(6) {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = self.below(256) as u8,
            2 => drop(bytes.remove(at)),
            3 => {
                let more: Vec<u8> = (0..1 + self.below(40)).map(|_| self.below(256) as u8).collect();
                drop(bytes.splice(at..at, more));
            }
            4 => bytes.extend_from_within(at..),
            _ => {
                bytes.truncate(at);
                return false;
            }
        }
        true
    }
}

/// Between the gateway and an honest guest: what the guest says is spoilt once `spoiling` is set.
async fn mangle(gateway: TcpStream, honest: std::net::SocketAddr, seed: u64, spoiling: Arc<AtomicBool>) {
    let guest = TcpStream::connect(honest).await.unwrap();
    let (mut from_gateway, mut to_gateway) = gateway.into_split();
    let (mut from_guest, mut to_guest) = guest.into_split();
    let forth = async { drop(tokio::io::copy(&mut from_gateway, &mut to_guest).await) };
    let back = async {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = from_guest.read(&mut buffer).await {
            let mut bytes = buffer[..count].to_vec();
            let goes_on = !spoiling.load(Ordering::Relaxed) || chance.spoil(&mut bytes);
            if to_gateway.write_all(&bytes).await.is_err() || !goes_on {
                return;
            }
        }
    };
    tokio::select! {
        () = forth => {}
        () = back => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_change_of_a_guest_s_bytes_harms_the_gateway() {
    let seeds =
        std::env::var("ROOST_LYING_SEEDS").map_or(60, |text| text.parse().expect("a number of seeds"));
    let mut attached = Attached::new().await;
    let neighbour = Neighbour::new(&mut attached).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let honest = listener.local_addr().unwrap();
    FakeGuest::default().serve(listener);
    let (seed, spoiling) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(false)));
    let cut = Arc::new(tokio::sync::Notify::new());
    let (theirs, flag, cutting) = (seed.clone(), spoiling.clone(), cut.clone());
    attached.serve_raw(move |stream| {
        let (seed, flag, cut) = (theirs.load(Ordering::Relaxed), flag.clone(), cutting.clone());
        async move {
            tokio::select! {
                () = mangle(stream, honest, seed, flag) => {}
                () = cut.notified() => {}
            }
        }
    });
    assert!(matches!(attached.claim().await, Reply::Claimed(_)));
    let mut gateway = attached.gateway().await;
    let before = (attached.resident_kib(), attached.descriptors());
    spoiling.store(true, Ordering::Relaxed);
    let (mut well, mut ill, mut hung) = (0, 0, 0);
    for number in 1..=seeds {
        seed.store(number, Ordering::Relaxed);
        for result in call_all(&mut gateway, Duration::from_millis(500)).await {
            match result {
                Some(Ok(())) => well += 1,
                Some(Err(_)) => ill += 1,
                None => hung += 1,
            }
        }
        // Whatever state the connection is in, the next seed begins with a new one.
        cut.notify_waiters();
    }
    assert!(
        well > 0 && ill > 0,
        "{well} well, {ill} ill, {hung} without an answer: nothing was spoilt, or all"
    );
    neighbour.is_served(&mut attached).await;
    // And the guest itself, once it tells the truth again.
    spoiling.store(false, Ordering::Relaxed);
    cut.notify_waiters();
    let deadline = Instant::now() + LONG;
    while exec(&mut gateway).await != Ok(3) {
        assert!(Instant::now() < deadline, "an honest guest is not believed again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let grown = attached.resident_kib().saturating_sub(before.0);
    assert!(grown < GROWTH_MAX_KIB, "{grown} KiB after {seeds} seeds");
    let more = attached.descriptors().saturating_sub(before.1);
    assert!(more <= 32, "{more} more descriptors");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_writes_garbage_for_ever_costs_no_memory() {
    let mut attached = Attached::new().await;
    attached.serve_raw(|mut stream| async move {
        let garbage = vec![0xa5; 64 * 1024];
        while stream.write_all(&garbage).await.is_ok() {}
    });
    let before = attached.resident_kib();
    let reply =
        attached.agent.call(agent::claim(attached.execution, TOKEN, Duration::from_secs(3)), vec![]).await;
    assert!(matches!(&reply, Reply::Refused(refused) if refused.code == "guest_timeout"), "{reply:?}");
    let grown = attached.resident_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_sends_endless_headers_costs_no_memory() {
    let mut attached = Attached::new().await;
    let flooding = Arc::new(AtomicBool::new(false));
    let flag = flooding.clone();
    attached.serve_raw(move |mut stream| {
        let flag = flag.clone();
        async move {
            let mut preface = vec![0; 24];
            if stream.read_exact(&mut preface).await.is_err() {
                return;
            }
            // SETTINGS, then interim answers (`:status 103`) on stream 1 without end.
            let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
            let mut interim = vec![0, 0, 5, 1, 4, 0, 0, 0, 1, 0x08, 3];
            interim.extend_from_slice(b"103");
            let block = interim.repeat(1000);
            if stream.write_all(&settings).await.is_err() {
                return;
            }
            // On purpose only once the call is under way.
            tokio::time::sleep(Duration::from_millis(50)).await;
            flag.store(true, Ordering::Relaxed);
            while stream.write_all(&block).await.is_ok() {}
        }
    });
    let before = attached.resident_kib();
    let reply =
        attached.agent.call(agent::claim(attached.execution, TOKEN, Duration::from_secs(4)), vec![]).await;
    assert!(matches!(&reply, Reply::Refused(refused) if refused.code == "guest_timeout"), "{reply:?}");
    assert!(flooding.load(Ordering::Relaxed));
    let grown = attached.resident_kib().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_accepts_and_says_nothing_is_given_up_at_the_deadline() {
    let mut attached = Attached::new().await;
    attached.serve_raw(|stream| async move {
        // Silent on purpose, longer than the deadline.
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    });
    let started = Instant::now();
    let reply =
        attached.agent.call(agent::claim(attached.execution, TOKEN, Duration::from_secs(1)), vec![]).await;
    assert!(matches!(&reply, Reply::Refused(refused) if refused.code == "guest_timeout"), "{reply:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
}
