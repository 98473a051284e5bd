//! Guests that lie in every answer: the gateway stays bounded, answers its callers, and serves other guests.
//!
//! The lies are of three kinds: whole connections of rubbish (`rubbish`), well-formed HTTP/2 that is no gRPC or the
//! wrong one (`wrong`), and an honest guest whose bytes are changed on the way, at places a seed chooses (`spoilt`).
//! `ROOST_LYING_SEEDS` says how many seeds are tried (60 unless told otherwise; a night's worth is 5,000).

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
#![allow(clippy::disallowed_methods, reason = "tests are the guest and its network")]

mod rubbish;
mod spoilt;
#[path = "../support/mod.rs"]
mod support;
mod wrong;

use std::time::Duration;

use bytes::Bytes;
use roost_domain::id::ExecutionId;
use roost_proto::guest::*;
use roost_proto::host::gateway_client::GatewayClient;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::transport::Channel;

use crate::support::agent::{self, Reply};
use crate::support::attached::{Attached, LONG, TOKEN};
use crate::support::guest::FakeGuest;
use crate::support::namespace::Namespace;

const GROWTH_MAX_KIB: u64 = 32 * 1024;

type Gateway = GatewayClient<Channel>;

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
