//! Well-formed HTTP/2 that is no gRPC, or the wrong one, and answers without end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Response};
use roost_proto::guest::*;
use tokio::net::TcpStream;
use tokio_stream::StreamExt;

use crate::support::agent::Reply;
use crate::support::attached::Attached;
use crate::support::eventually;
use crate::{GROWTH_MAX_KIB, Neighbour, call_all};

/// Longer than any lie needs that ends, shorter than the gateway's own patience with one that does not.
const PATIENCE: Duration = Duration::from_secs(10);

type Respond = h2::server::SendResponse<Bytes>;

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
