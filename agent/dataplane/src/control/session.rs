//! One connection of the agent: reads requests in order, answers each once.
//!
//! Quick requests are done in turn, so that an `Attach` and what builds on it cannot overtake each other; calls
//! into the guest run beside them, bounded. Knows neither sockets of guests nor tokens.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use roost_daemon::packet;
use roost_domain::id::ExecutionId;
use roost_proto::dataplane::{
    Ack, Attach, Detach, FromDataplane, GENERATION, Held, Hello, Holding, MoreSockets, ServeGateway,
    ToDataplane, from_dataplane, to_dataplane,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::attachment::parse_execution;
use super::{AgentSocket, Attachment, Code, Handler, Refusal};

// Calls into guests under way at once: one per execution on a full host.
const GUEST_CALLS_MAX: usize = 1024;
// Replies that wait for the agent to read; a full queue stops the reading of requests.
const REPLIES_MAX: usize = 64;
// Executions in one Holding: about 50 bytes each, well inside one packet. More come in further ones.
const HELD_MAX: usize = 1000;

/// Why a session ended other than by the agent closing it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("control connection")]
    Packet(#[from] packet::Error),
    #[error("first message is not Hello")]
    NoHello,
    #[error("message without content")]
    NoContent,
    #[error("agent speaks generation {theirs} of the contract, this process {GENERATION}")]
    Generation { theirs: u32 },
}

type Reply = from_dataplane::Message;

/// Serves one agent until it closes, is replaced (`stop`), or breaks the contract.
pub(super) async fn run<H: Handler>(
    socket: AgentSocket,
    handler: Arc<H>,
    mut notices: mpsc::Receiver<Reply>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let (replies, mut outgoing) = mpsc::channel::<FromDataplane>(REPLIES_MAX);
    let write = async {
        loop {
            let message = tokio::select! {
                Some(reply) = outgoing.recv() => reply,
                Some(notice) = notices.recv() => FromDataplane { id: 0, message: Some(notice) },
            };
            socket.send(&message, &[]).await?;
        }
    };
    let read = async {
        greet(&socket, handler.as_ref(), &replies).await?;
        let mut calls = JoinSet::new();
        while let Some((request, descriptors)) = socket.recv().await? {
            while calls.try_join_next().is_some() {}
            serve_one(&handler, request, descriptors, &replies, &mut calls).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = write => ended,
        ended = read => ended,
        () = stop.cancelled() => Ok(()),
    }
}

async fn greet<H: Handler>(
    socket: &AgentSocket,
    handler: &H,
    replies: &mpsc::Sender<FromDataplane>,
) -> Result<(), Error> {
    let Some((request, _)) = socket.recv().await? else {
        return Err(Error::NoHello);
    };
    let Some(to_dataplane::Message::Hello(hello)) = request.message else {
        return Err(Error::NoHello);
    };
    check_generation(&hello)?;
    answer_holding(replies, request.id, handler).await;
    Ok(())
}

fn check_generation(hello: &Hello) -> Result<(), Error> {
    match hello.generation {
        GENERATION => Ok(()),
        theirs => Err(Error::Generation { theirs }),
    }
}

async fn answer_holding<H: Handler>(replies: &mpsc::Sender<FromDataplane>, id: u64, handler: &H) {
    let mut held = handler.held();
    held.sort_unstable();
    let mut rest = held.as_slice();
    loop {
        let (part, after) = rest.split_at(rest.len().min(HELD_MAX));
        let held = |(execution, attach_generation): &(ExecutionId, u64)| Held {
            execution: execution.to_string(),
            attach_generation: *attach_generation,
        };
        let holding = Holding {
            generation: GENERATION,
            role: H::ROLE.name().to_owned(),
            executions: part.iter().map(held).collect(),
            more: !after.is_empty(),
        };
        answer(replies, id, Reply::Holding(holding)).await;
        if after.is_empty() {
            return;
        }
        rest = after;
    }
}

async fn serve_one<H: Handler>(
    handler: &Arc<H>,
    request: ToDataplane,
    descriptors: Vec<OwnedFd>,
    replies: &mpsc::Sender<FromDataplane>,
    calls: &mut JoinSet<()>,
) -> Result<(), Error> {
    use to_dataplane::Message;
    let id = request.id;
    let reply = match request.message.ok_or(Error::NoContent)? {
        Message::Hello(hello) => {
            check_generation(&hello)?;
            answer_holding(replies, id, handler.as_ref()).await;
            return Ok(());
        }
        Message::Attach(message) => acknowledge(attach(handler.as_ref(), message, descriptors).await),
        Message::Detach(message) => acknowledge(detach(handler.as_ref(), message, replies).await),
        Message::MoreSockets(message) => {
            acknowledge(more_sockets(handler.as_ref(), message, descriptors).await)
        }
        Message::ServeGateway(message) => {
            acknowledge(serve_gateway(handler.as_ref(), message, descriptors).await)
        }
        Message::Configure(message) => acknowledge(handler.configure(message).await),
        message @ (Message::Claim(_) | Message::Personalise(_) | Message::Quiesce(_)) => {
            if calls.len() < GUEST_CALLS_MAX {
                let (handler, replies) = (handler.clone(), replies.clone());
                calls.spawn(async move {
                    let reply = call_guest(handler.as_ref(), message).await;
                    answer(&replies, id, reply).await;
                });
                return Ok(());
            }
            refuse(Refusal::new(Code::Limit, "too many guest calls under way"))
        }
    };
    answer(replies, id, reply).await;
    Ok(())
}

async fn attach<H: Handler>(handler: &H, message: Attach, sockets: Vec<OwnedFd>) -> Result<(), Refusal> {
    let attachment = Attachment::try_from(message)?;
    handler.attach(attachment, sockets).await
}

async fn detach<H: Handler>(
    handler: &H,
    message: Detach,
    replies: &mpsc::Sender<FromDataplane>,
) -> Result<(), Refusal> {
    // Before the answer: with that the agent takes the last reading.
    if let Some(traffic) = handler.detach(parse_execution(&message.execution)?).await {
        answer(replies, 0, Reply::Traffic(traffic)).await;
    }
    Ok(())
}

async fn more_sockets<H: Handler>(
    handler: &H,
    message: MoreSockets,
    sockets: Vec<OwnedFd>,
) -> Result<(), Refusal> {
    handler.more_sockets(parse_execution(&message.execution)?, sockets).await
}

async fn serve_gateway<H: Handler>(
    handler: &H,
    message: ServeGateway,
    descriptors: Vec<OwnedFd>,
) -> Result<(), Refusal> {
    let execution = parse_execution(&message.execution)?;
    let mut descriptors = descriptors.into_iter();
    match (descriptors.next(), descriptors.next()) {
        (Some(stream), None) => handler.serve_gateway(execution, stream).await,
        _ => Err(Refusal::invalid("ServeGateway comes with exactly one descriptor")),
    }
}

async fn call_guest<H: Handler>(handler: &H, message: to_dataplane::Message) -> Reply {
    use to_dataplane::Message;
    let execution = match &message {
        Message::Claim(request) => &request.execution,
        Message::Personalise(request) => &request.execution,
        Message::Quiesce(request) => &request.execution,
        _ => "",
    };
    let execution = match parse_execution(execution) {
        Ok(execution) => execution,
        Err(refusal) => return refuse(refusal),
    };
    match message {
        Message::Claim(request) => {
            handler.claim(execution, request).await.map_or_else(refuse, Reply::Claimed)
        }
        Message::Personalise(request) => {
            handler.personalise(execution, request).await.map_or_else(refuse, Reply::Claimed)
        }
        Message::Quiesce(request) => acknowledge(handler.quiesce(execution, request).await),
        _ => refuse(Refusal::invalid("not a call into a guest")),
    }
}

fn acknowledge(result: Result<(), Refusal>) -> Reply {
    result.map_or_else(refuse, |()| Reply::Ack(Ack {}))
}

fn refuse(refusal: Refusal) -> Reply {
    tracing::info!(code = refusal.code.name(), message = refusal.message, "refused a request of the agent");
    Reply::Refused(refusal.into())
}

async fn answer(replies: &mpsc::Sender<FromDataplane>, id: u64, message: Reply) {
    // Closed only when the session is over and nobody waits for the answer any more.
    let _ = replies.send(FromDataplane { id, message: Some(message) }).await;
}
