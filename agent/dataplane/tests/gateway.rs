//! The guest gateway from the agent's first packet to a guest that answers; for guests that lie see `lying`.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use roost_proto::dataplane::{Detach, MoreSockets, Personalise, Quiesce};
use roost_proto::guest::*;
use roost_proto::host::GUEST_STATUS_METADATA;
use support::agent::{self, Agent, Message, Reply};
use support::attached::{Attached, LONG, TOKEN};
use support::eventually;
use support::guest::FakeGuest;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

fn start() -> ExecInput {
    ExecInput {
        input: Some(exec_input::Input::Start(ExecStart { shell: "cat".into(), ..ExecStart::default() })),
    }
}

fn stdin(bytes: &'static [u8]) -> ExecInput {
    ExecInput { input: Some(exec_input::Input::Stdin(Bytes::from_static(bytes))) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_comes_up_late_is_found_within_two_attempts() {
    let mut attached = Attached::new().await;
    let id = attached.agent.send(agent::claim(attached.execution, TOKEN, LONG), &[]).await;
    // Late on purpose.
    tokio::time::sleep(Duration::from_millis(700)).await;
    let guest = FakeGuest::default();
    guest.serve(attached.namespace.listen(GUEST_RPC_PORT));
    let up = Instant::now();
    let Reply::Claimed(claimed) = attached.agent.reply(id).await else { panic!("not claimed") };
    let late = up.elapsed();
    assert!(late < Duration::from_millis(250), "{late:?}");
    assert_eq!(claimed.protocol_generation, 1);
    assert!(claimed.waited_us >= 600_000, "{}", claimed.waited_us);
    let claim = guest.seen.lock().unwrap().claims.pop().unwrap();
    assert_eq!(claim.token, TOKEN);
    let told = claim.personalisation.unwrap().time_us;
    let now = roost_daemon::clock::now_us();
    assert!((now - told).abs() < 1_000_000, "the clock was read {} µs ago", now - told);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_streams_both_ways_and_ends_with_its_exit() {
    let (mut attached, guest) = Attached::with_guest().await;
    let mut gateway = attached.gateway().await;
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    sender.send(start()).await.unwrap();
    let mut outputs = gateway.exec(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let first = outputs.next().await.unwrap().unwrap().output;
    assert_eq!(first, Some(exec_output::Output::Started(ExecStarted { pid: 7 })));
    for text in [&b"one"[..], b"two"] {
        sender.send(stdin(text)).await.unwrap();
        let echoed = outputs.next().await.unwrap().unwrap().output;
        assert_eq!(echoed, Some(exec_output::Output::Stdout(Bytes::from_static(text))));
    }
    drop(sender);
    let Some(exec_output::Output::Exited(exited)) = outputs.next().await.unwrap().unwrap().output else {
        panic!("not exited")
    };
    assert_eq!(exited.exit_code, 6);
    assert!(outputs.next().await.is_none());
    assert_eq!(guest.seen.lock().unwrap().token, TOKEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_ends_the_exec_in_the_guest() {
    let (mut attached, guest) = Attached::with_guest().await;
    let mut gateway = attached.gateway().await;
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    sender.send(start()).await.unwrap();
    let mut outputs = gateway.exec(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    outputs.next().await.unwrap().unwrap();
    drop((outputs, sender));
    eventually("the guest sees the call dropped", || async {
        (guest.seen.lock().unwrap().execs_dropped == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_never_looks_whole_to_the_guest() {
    let (mut attached, guest) = Attached::with_guest().await;
    let mut gateway = attached.gateway().await;
    let data = || WriteFileInput { input: Some(write_file_input::Input::Data(Bytes::from(vec![1; 1000]))) };
    let whole = gateway.write_file(futures::stream::iter([data(), data()])).await.unwrap().into_inner();
    assert_eq!(whole.size_bytes, 2000);

    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    sender.send(data()).await.unwrap();
    let upload = tokio::spawn(async move { gateway.write_file(ReceiverStream::new(receiver)).await });
    // Time for the first bytes to arrive; on purpose the upload goes no further.
    tokio::time::sleep(Duration::from_millis(100)).await;
    upload.abort();
    eventually("the guest sees the second upload end", || async {
        (guest.seen.lock().unwrap().uploads.len() == 2).then_some(())
    })
    .await;
    assert_eq!(guest.seen.lock().unwrap().uploads, [Ok(2000), Err(1000)]);
    drop(sender);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_holds_the_guest_back() {
    let (mut attached, guest) = Attached::with_guest().await;
    let mut gateway = attached.gateway().await;
    const CHUNK: u64 = 64 * 1024;
    let request = ReadFileRequest { offset: CHUNK, limit_bytes: 4096 * CHUNK, ..ReadFileRequest::default() };
    let mut chunks = gateway.read_file(request).await.unwrap().into_inner();
    chunks.next().await.unwrap().unwrap();
    let produced = || guest.seen.lock().unwrap().chunks_produced;
    let mut last = produced();
    // Still for half a second: nothing moves any more.
    let mut still = 0;
    while still < 50 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = produced();
        still = if now == last { still + 1 } else { 0 };
        last = now;
    }
    assert!(last < 256, "{last} chunks of 64 KiB are under way");
    let mut count = 1;
    while let Some(chunk) = chunks.next().await {
        chunk.unwrap();
        count += 1;
    }
    assert_eq!(count, 4096);
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_of_the_guest_are_marked_and_cleaned() {
    let (mut attached, _guest) = Attached::with_guest().await;
    let mut gateway = attached.gateway().await;
    let request = ReadFileRequest { path: "/missing".into(), offset: 1, ..ReadFileRequest::default() };
    let status = gateway.read_file(request).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no such file   "));
    assert!(status.metadata().contains_key(GUEST_STATUS_METADATA));

    let status = gateway.list_directory(ListDirectoryRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");

    attached.agent.call(Message::Detach(Detach { execution: attached.execution.to_string() }), vec![]).await;
    let status = gateway.status(StatusRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(!status.metadata().contains_key(GUEST_STATUS_METADATA));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_refused_before_the_claim_and_a_refused_claim_says_no_more_than_its_code() {
    let mut attached = Attached::new().await;
    let guest = FakeGuest::default();
    guest.serve(attached.namespace.listen(GUEST_RPC_PORT));
    let mut gateway = attached.gateway().await;
    assert_eq!(gateway.status(StatusRequest {}).await.unwrap_err().code(), Code::Unavailable);
    let reply = attached.agent.call(agent::claim(attached.execution, "refused", LONG), vec![]).await;
    let Reply::Refused(refused) = reply else { panic!("{reply:?}") };
    assert_eq!(
        (refused.code.as_str(), refused.message.as_str()),
        ("guest_refused", "the guest answered PermissionDenied")
    );
    let reply = attached.agent.call(agent::claim(agent::execution(), TOKEN, LONG), vec![]).await;
    assert!(matches!(reply, Reply::Refused(refused) if refused.code == "unknown_execution"));
    assert!(matches!(attached.claim().await, Reply::Claimed(_)));
    gateway.status(StatusRequest {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn personalise_changes_the_token_and_quiesce_uses_it() {
    let (mut attached, guest) = Attached::with_guest().await;
    let personalise = Message::Personalise(Personalise {
        execution: attached.execution.to_string(),
        old_token: TOKEN.into(),
        new_token: "the-next-token".into(),
        identity: Some(agent::identity()),
        deadline_ms: 5000,
    });
    assert!(matches!(attached.agent.call(personalise, vec![]).await, Reply::Claimed(_)));
    let quiesce = Quiesce { execution: attached.execution.to_string(), deadline_ms: 5000 };
    let reply = attached.agent.call(Message::Quiesce(quiesce), vec![]).await;
    assert!(matches!(reply, Reply::Ack(_)), "{reply:?}");
    let seen = guest.seen.lock().unwrap();
    assert_eq!((seen.quiesced, seen.personalises[0].old_token.as_str()), (1, TOKEN));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listening_is_a_timeout_at_the_deadline() {
    let mut attached = Attached::new().await;
    let started = Instant::now();
    let deadline = Duration::from_millis(400);
    let reply = attached.agent.call(agent::claim(attached.execution, TOKEN, deadline), vec![]).await;
    assert!(matches!(&reply, Reply::Refused(refused) if refused.code == "guest_timeout"), "{reply:?}");
    let took = started.elapsed();
    assert!(took > Duration::from_millis(300) && took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_attached_survives_the_agent_and_old_generations_are_refused() {
    let (mut attached, guest) = Attached::with_guest().await;
    // A hung agent is replaced by a new one.
    let (mut next, holding) = Agent::connect(&attached.process.control).await;
    let held: Vec<_> =
        holding.executions.iter().map(|held| (held.execution.as_str(), held.attach_generation)).collect();
    assert_eq!(held, [(attached.execution.to_string().as_str(), 1)]);
    assert!(attached.agent.socket.recv().await.unwrap().is_none(), "the old connection is closed");

    let same = agent::attach(attached.execution, attached.sandbox, 1);
    assert!(matches!(next.call(same, vec![]).await, Reply::Ack(_)));
    let newer = agent::attach(attached.execution, attached.sandbox, 3);
    assert!(matches!(next.call(newer, vec![]).await, Reply::Ack(_)));
    let older = agent::attach(attached.execution, attached.sandbox, 2);
    let reply = next.call(older, vec![]).await;
    assert!(matches!(&reply, Reply::Refused(refused) if refused.code == "stale_generation"), "{reply:?}");

    attached.agent = next;
    attached.gateway().await.status(StatusRequest {}).await.unwrap();
    assert_eq!(guest.seen.lock().unwrap().claims.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_are_used_again_and_more_are_asked_for() {
    let (mut attached, _guest) = Attached::with_guest().await;
    let mut gateway = attached.gateway().await;
    gateway.status(StatusRequest {}).await.unwrap();
    // Each claim of a guest that is not there takes several sockets, and all come back.
    let detach = Message::Detach(Detach { execution: attached.execution.to_string() });
    attached.agent.call(detach, vec![]).await;
    // What it has used is known with the answer.
    let used = attached.agent.notices.iter().rev().find_map(|notice| match notice {
        Reply::Traffic(used) if used.execution == attached.execution.to_string() => Some(used),
        _ => None,
    });
    let used = used.unwrap();
    assert!(used.run > 0 && used.to_guest_bytes > 0 && used.from_guest_bytes > 0, "{used:?}");
    eventually("the connections of a detached guest end", || async {
        (attached.namespace.established() == 0).then_some(())
    })
    .await;

    let next = agent::execution();
    let sockets = attached.namespace.dial_sockets(1);
    attached.agent.call(agent::attach(next, attached.sandbox, 1), sockets).await;
    let reply = attached.agent.call(agent::claim(next, TOKEN, LONG), vec![]).await;
    assert!(matches!(reply, Reply::Claimed(_)), "{reply:?}");
    let asked = attached.agent.notices.iter().find_map(|notice| match notice {
        Reply::NeedSockets(need) if need.execution == next.to_string() => Some(need.count),
        _ => None,
    });
    assert!(asked.is_some_and(|count| count > 0), "{:?}", attached.agent.notices);
    let more = Message::MoreSockets(MoreSockets { execution: next.to_string() });
    let reply = attached.agent.call(more, attached.namespace.dial_sockets(8)).await;
    assert!(matches!(reply, Reply::Ack(_)), "{reply:?}");
}
