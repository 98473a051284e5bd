//! The daemon's side of the operator's CLI.
//!
//! Serves one request at a time per connection on a packet socket that only root may open. Never relays a byte of a
//! guest: `exec` gets one end of a socketpair whose other end edge serves.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use prost::Message as _;
use roost_daemon::health::Check;
use roost_daemon::packet::{self, PacketSocket};
use roost_domain::desired::{Desired, Offer, Run};
use roost_domain::id::SandboxId;
use roost_proto::dataplane::ServeGateway;
use roost_proto::dataplane::to_dataplane::Message as Ask;
use roost_proto::local::reply::Reply as Answer;
use roost_proto::local::request::Request as Wish;
use roost_proto::local::{self, Failure, Reply, Request};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::plane::{self, Plane};
use crate::sandbox::record::{Origin, Phase, Sandbox, Spec};
use crate::sandbox::{self, Manager};
use crate::store::{self, Store};

/// Operators' connections at one time.
const CONNECTIONS_MAX: usize = 64;
const PAGE_ROWS: usize = 100;
/// Rows of numbers, the longest of which is 150 bytes.
const USAGE_PAGE_ROWS: usize = 400;
/// Of a page of rows; the rest of a packet is its frame.
const PAGE_MAX_BYTES: usize = packet::MESSAGE_MAX_BYTES - 1024;

/// Why an operator's request was not carried out.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("no sandbox {0}: `roost-agent ps` lists them")]
    NotFound(String),
    #[error("{0:?} fits more than one sandbox: give more of it")]
    Ambiguous(String),
    #[error("{0}")]
    Invalid(String),
    #[error("sandbox {id} is {state}: {remedy}")]
    WrongState { id: SandboxId, state: String, remedy: &'static str },
    #[error("{id} is a tenant's sandbox: it is changed through the scheduler's API only")]
    NotLocal { id: SandboxId },
    #[error(transparent)]
    Plane(#[from] plane::Error),
    #[error(transparent)]
    Manager(#[from] sandbox::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    World(#[from] sandbox::world::Error),
    #[error("making a stream")]
    Stream(#[from] std::io::Error),
}

impl Error {
    fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::Ambiguous(_) | Self::Invalid(_) | Self::NotLocal { .. } => "invalid",
            Self::WrongState { .. } => "wrong_state",
            Self::Plane(_) | Self::World(_) | Self::Manager(_) | Self::Store(_) | Self::Stream(_) => {
                "internal"
            }
        }
    }
}

/// What requests are answered from.
#[derive(Clone)]
pub struct Context {
    pub manager: Manager,
    pub store: Store,
    pub plane: Plane,
    pub config: Arc<crate::config::Config>,
    pub host: crate::sandbox::live::Host,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("cli::server::Context").finish_non_exhaustive()
    }
}

/// Accepts operators until the task is dropped.
pub async fn serve(path: &Path, context: Context, ready: Check) -> Result<(), packet::Error> {
    let mut listener = packet::listen::<Reply, Request>(path, 0o600)?;
    ready.pass();
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let socket = listener.accept().await?;
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
            warn!("an operator's connection was closed: {CONNECTIONS_MAX} are open");
            continue;
        };
        let context = context.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(socket, context).await {
                info!(error = %roost_daemon::telemetry::chain(&error), "an operator's connection ended");
            }
            drop(permit);
        });
    }
}

async fn converse(socket: PacketSocket<Reply, Request>, context: Context) -> Result<(), packet::Error> {
    while let Some((request, _)) = socket.recv().await? {
        let (reply, descriptors) = match request.request {
            Some(wish) => answer(wish, &context).await.unwrap_or_else(|error| {
                let message = roost_daemon::telemetry::chain(&error);
                (Answer::Failure(Failure { code: error.code().to_owned(), message }), Vec::new())
            }),
            None => {
                let message =
                    "the agent does not know this request: is the CLI of a newer version?".to_owned();
                (Answer::Failure(Failure { code: "invalid".to_owned(), message }), Vec::new())
            }
        };
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        match socket.send(&Reply { reply: Some(reply) }, &borrowed).await {
            // Nothing was sent: whoever asked still hears why.
            Err(error @ packet::Error::TooLarge { .. }) => {
                let message = format!("the answer does not fit: {error}");
                let failure = Failure { code: "internal".to_owned(), message };
                socket.send(&Reply { reply: Some(Answer::Failure(failure)) }, &[]).await?;
            }
            sent => sent?,
        }
    }
    Ok(())
}

async fn answer(wish: Wish, context: &Context) -> Result<(Answer, Vec<OwnedFd>), Error> {
    let plain = |answer| Ok((answer, Vec::new()));
    match wish {
        Wish::Run(run) => plain(Answer::Sandbox(self::run(run, context).await?)),
        Wish::List(list) => {
            let all = context.manager.list().await?;
            let rows = all.iter().skip(list.offset as usize).take(PAGE_ROWS);
            let sandboxes = fill_page(rows.map(|sandbox| describe(sandbox, context)));
            let more = list.offset as usize + sandboxes.len() < all.len();
            plain(Answer::Sandboxes(local::Sandboxes { sandboxes, more }))
        }
        Wish::Inspect(inspect) => {
            let sandbox = find(&inspect.id, context).await?;
            plain(Answer::Sandbox(describe(&sandbox, context)))
        }
        Wish::Change(change) => plain(Answer::Sandbox(self::change(change, context).await?)),
        Wish::Exec(exec) => open_gateway(exec, context).await,
        Wish::Usage(usage) => {
            let id = match usage.id.as_str() {
                "" => None,
                id => Some(find(id, context).await?.id),
            };
            let rows = context.store.write(move |tx| {
                // One more than asked for tells whether there are more.
                store::usage::sum_by_sandbox(tx, id, &usage.after, USAGE_PAGE_ROWS + 1)
            });
            plain(Answer::Usage(usage_page(rows.await?)))
        }
        Wish::Doctor(_) => {
            let findings = crate::doctor::examine(&context.config, Some(&context.plane)).await;
            plain(Answer::Findings(local::Findings { findings }))
        }
        Wish::Console(console) => {
            let sandbox = find(&console.id, context).await?;
            let execution = sandbox.execution.as_ref().ok_or_else(|| not_running(&sandbox))?;
            let bytes = context.host.console(&sandbox, execution).await?;
            plain(Answer::Console(bytes))
        }
    }
}

/// Of one row more than a page has, if there is one.
fn usage_page(mut rows: Vec<local::UsageRow>) -> local::UsageRows {
    let more = rows.len() > USAGE_PAGE_ROWS;
    rows.truncate(USAGE_PAGE_ROWS);
    local::UsageRows { rows, more }
}

/// As many rows as one packet takes: their reasons are as long as the errors they tell of.
fn fill_page(rows: impl Iterator<Item = local::Sandbox>) -> Vec<local::Sandbox> {
    let mut bytes = 0;
    let fits = |row: &local::Sandbox| {
        // With the row's tag and length.
        bytes += row.encoded_len() + 8;
        bytes <= PAGE_MAX_BYTES
    };
    rows.take_while(fits).collect()
}

async fn run(wish: local::Run, context: &Context) -> Result<local::Sandbox, Error> {
    let id = roost_daemon::ids::fresh::<SandboxId>();
    let spec = check(wish, id)?;
    context.host.find_template(&spec.template).await.map_err(Error::Invalid)?;
    let draft = store::sandbox::Draft {
        id,
        origin: Origin::Local,
        spec,
        lineage: id,
        offer: Offer {
            desired: Desired { run: Run::Running, generation: 1, placement_epoch: 1 },
            adopted_seq: 0,
        },
        now_us: roost_daemon::clock::now_us(),
    };
    let sandbox = context.manager.ensure(draft).await?;
    Ok(describe(&sandbox, context))
}

fn check(wish: local::Run, id: SandboxId) -> Result<Spec, Error> {
    let bound = |what: &str, value: u64, first: u64, last: u64| match (first..=last).contains(&value) {
        true => Ok(()),
        false => Err(Error::Invalid(format!("{what} is {value}: choose {first} to {last}"))),
    };
    bound("--vcpus", wish.vcpus.into(), 1, 32)?;
    bound("--memory-mib", wish.memory_mib, 128, 262_144)?;
    bound("--disk-mib", wish.disk_mib, 64, 1_048_576)?;
    let host_name = match wish.host_name.is_empty() {
        true => id.ulid_text(),
        false => wish.host_name,
    };
    let label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if host_name.len() > 63 || !host_name.bytes().all(label) || host_name.starts_with('-') {
        return Err(Error::Invalid(format!(
            "--host-name {host_name:?}: up to 63 of a–z, 0–9 and -, not first"
        )));
    }
    Ok(Spec {
        template: wish.template,
        vcpus: wish.vcpus,
        memory_mib: wish.memory_mib,
        disk_mib: wish.disk_mib,
        host_name,
        environment: wish.environment.into_iter().collect(),
    })
}

async fn change(wish: local::Change, context: &Context) -> Result<local::Sandbox, Error> {
    let sandbox = find(&wish.id, context).await?;
    if sandbox.origin != Origin::Local {
        return Err(Error::NotLocal { id: sandbox.id });
    }
    let run: Run = wish.run.parse().map_err(|_| Error::Invalid(format!("no such wish: {:?}", wish.run)))?;
    if sandbox.target() == Run::Destroyed && run != Run::Destroyed {
        return Err(Error::WrongState {
            id: sandbox.id,
            state: "destroyed".to_owned(),
            remedy: "what is destroyed does not come back; run a new one",
        });
    }
    if run == Run::Paused
        && !sandbox.state.is_serving()
        && sandbox.state != roost_domain::lifecycle::State::Paused
    {
        return Err(Error::WrongState {
            id: sandbox.id,
            state: sandbox.state.to_string(),
            remedy: "only a running sandbox has memory to keep",
        });
    }
    let sandbox = context.manager.request(sandbox.id, run).await?;
    Ok(describe(&sandbox, context))
}

fn not_running(sandbox: &Sandbox) -> Error {
    Error::WrongState { id: sandbox.id, state: sandbox.state.to_string(), remedy: "resume it first" }
}

async fn open_gateway(wish: local::Exec, context: &Context) -> Result<(Answer, Vec<OwnedFd>), Error> {
    let sandbox = find(&wish.id, context).await?;
    let execution = match &sandbox.execution {
        Some(execution) if execution.phase == Phase::Running => execution.id.to_string(),
        _ => return Err(not_running(&sandbox)),
    };
    if sandbox.origin == Origin::Tenant {
        record_operator(&sandbox, &wish, context).await?;
    }
    let (ours, theirs) = UnixStream::pair()?;
    let serve = ServeGateway { execution: execution.clone() };
    context.plane.edge.tell(Ask::ServeGateway(serve), &[theirs.as_fd()], plane::ANSWER_DEADLINE).await?;
    let opened = local::Opened { sandbox: sandbox.id.to_string(), execution };
    Ok((Answer::Opened(opened), vec![OwnedFd::from(ours)]))
}

/// An operator who enters a tenant's sandbox is seen in that tenant's audit log.
async fn record_operator(sandbox: &Sandbox, wish: &local::Exec, context: &Context) -> Result<(), Error> {
    let action = roost_proto::host::OperatorAction {
        sandbox: sandbox.id.to_string(),
        action: "operator.exec".to_owned(),
        actor: wish.actor.clone(),
        time_us: roost_daemon::clock::now_us(),
        detail: wish.command.clone(),
    };
    Ok(context.store.write(move |tx| store::outbox::push_operator(tx, action)).await?)
}

/// By sandbox id, execution id, or an unambiguous start of the sandbox's.
async fn find(text: &str, context: &Context) -> Result<Sandbox, Error> {
    let all = context.manager.list().await?;
    let is_exact = |sandbox: &&Sandbox| {
        sandbox.id.to_string() == text
            || sandbox.execution.as_ref().is_some_and(|execution| execution.id.to_string() == text)
    };
    if let Some(sandbox) = all.iter().find(is_exact) {
        return Ok(sandbox.clone());
    }
    if let Ok(id) = text.parse::<SandboxId>()
        && let Some(gone) = context.manager.find(id).await?
    {
        return Ok(gone);
    }
    let mut starting =
        all.iter().filter(|sandbox| text.len() > 4 && sandbox.id.to_string().starts_with(text));
    match (starting.next(), starting.next()) {
        (Some(sandbox), None) => Ok(sandbox.clone()),
        (Some(_), Some(_)) => Err(Error::Ambiguous(text.to_owned())),
        _ => Err(Error::NotFound(text.to_owned())),
    }
}

fn describe(sandbox: &Sandbox, context: &Context) -> local::Sandbox {
    let execution = sandbox.execution.as_ref();
    let id = execution.map(|execution| execution.id.to_string()).unwrap_or_default();
    local::Sandbox {
        id: sandbox.id.to_string(),
        origin: sandbox.origin.text().to_owned(),
        state: sandbox.state.to_string(),
        state_reason: sandbox.state_reason.clone().unwrap_or_default(),
        run: sandbox.target().to_string(),
        generation: sandbox.standing.desired.generation,
        phase: execution.map(|execution| execution.phase.text().to_owned()).unwrap_or_default(),
        template: sandbox.spec.template.clone(),
        image: sandbox.image.clone().unwrap_or_default(),
        vcpus: sandbox.spec.vcpus,
        memory_mib: sandbox.spec.memory_mib,
        disk_mib: sandbox.spec.disk_mib,
        created_us: sandbox.created_us,
        changed_us: sandbox.changed_us,
        boot_us: sandbox.boot_us.unwrap_or_default(),
        boot_path: sandbox.boot_path.map(|path| path.text().to_owned()).unwrap_or_default(),
        vmm_pid: execution.and_then(|execution| execution.vmm).map_or(0, |vmm| vmm.pid as i32),
        network_namespace: execution
            .map(|execution| context.host.names(&execution.id).netns.clone())
            .unwrap_or_default(),
        egress_attached: context.plane.egress.holds(&id).unwrap_or_default(),
        edge_attached: context.plane.edge.holds(&id).unwrap_or_default(),
        snapshot: sandbox.snapshot.map(|id| id.to_string()).unwrap_or_default(),
        local_cause: sandbox.standing.local.map(|local| local.cause.to_string()).unwrap_or_default(),
        execution: id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_page_of_long_rows_fits_into_a_packet() {
        let row = || local::Sandbox { state_reason: "x".repeat(3000), ..local::Sandbox::default() };
        let sandboxes = fill_page((0..PAGE_ROWS).map(|_| row()));
        assert!((10..30).contains(&sandboxes.len()), "{}", sandboxes.len());
        let page = Answer::Sandboxes(local::Sandboxes { sandboxes, more: true });
        let (agent, operator) = PacketSocket::<Reply, Request>::pair().unwrap();
        agent.send(&Reply { reply: Some(page) }, &[]).await.unwrap();
        assert!(operator.recv().await.unwrap().is_some());
        assert_eq!(fill_page([row()].into_iter()).len(), 1);
    }

    #[tokio::test]
    async fn a_page_of_the_largest_usage_fits_into_a_packet() {
        let row = local::UsageRow {
            sandbox: roost_daemon::ids::fresh::<SandboxId>().to_string(),
            wall_us: u64::MAX,
            vcpu_alloc_us: u64::MAX,
            cpu_used_us: u64::MAX,
            mem_alloc_mib_us: u64::MAX,
            mem_used_mib_us: u64::MAX,
            disk_mib_us: u64::MAX,
            net_egress_bytes: u64::MAX,
            net_ingress_bytes: u64::MAX,
            snapshot_mib_us: u64::MAX,
        };
        assert!(!usage_page(vec![row.clone(); USAGE_PAGE_ROWS]).more);
        let page = usage_page(vec![row; USAGE_PAGE_ROWS + 1]);
        assert!(page.more && page.rows.len() == USAGE_PAGE_ROWS);
        let (agent, operator) = PacketSocket::<Reply, Request>::pair().unwrap();
        agent.send(&Reply { reply: Some(Answer::Usage(page)) }, &[]).await.unwrap();
        assert!(operator.recv().await.unwrap().is_some());
    }
}
