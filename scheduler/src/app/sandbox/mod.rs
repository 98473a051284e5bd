//! Operations on sandboxes. This file: finding one, and showing one.

use roost_api::Timestamp;
use roost_api::sandbox::{OnTimeout, Sandbox, State};
use roost_domain::id::SandboxId;

use super::guest::Guest;
use super::{App, Caller, Error, Scope};
use crate::store::{Tx, sandbox as table};

pub mod change;
pub mod command;
pub mod create;
pub mod environment;
pub mod files;
pub mod list;
pub mod processes;
pub mod run;
pub mod wait;
pub mod wish;

pub use table::Sandbox as Row;

/// The sandbox that a path names by id or slug, if it exists for this caller. Everybody else's is absent.
pub fn find(tx: &mut Tx<'_>, caller: &Caller, reference: &str) -> Result<Row, Error> {
    let found = if reference.starts_with(SandboxId::PREFIX) {
        table::find(tx, &caller.tenant_id, reference)?
    } else {
        table::find_by_slug(tx, &caller.tenant_id, reference)?
    };
    found.filter(|row| caller.sees_workspace(&row.workspace_id)).ok_or_else(Error::no_sandbox)
}

pub async fn row(app: &App, caller: &Caller, reference: &str) -> Result<Row, Error> {
    let (caller, reference) = (caller.clone(), reference.to_owned());
    app.store.examine(move |tx| find(tx, &caller, &reference)).await
}

pub async fn row_for_reading(app: &App, caller: &Caller, reference: &str) -> Result<Row, Error> {
    caller.require(Scope::SandboxesRead)?;
    row(app, caller, reference).await
}

pub async fn get(app: &App, caller: &Caller, reference: &str) -> Result<Sandbox, Error> {
    caller.require(Scope::SandboxesRead)?;
    Ok(record(app, row(app, caller, reference).await?))
}

pub async fn get_by_name(app: &App, caller: &Caller, name: String) -> Result<Sandbox, Error> {
    caller.require(Scope::SandboxesRead)?;
    let tenant_id = caller.tenant_id.clone();
    let found = app.store.read(move |tx| table::find_by_name(tx, &tenant_id, &name)).await?;
    let found = found.filter(|row| caller.sees_workspace(&row.workspace_id)).ok_or_else(Error::no_sandbox)?;
    Ok(record(app, found))
}

/// A way into a sandbox. A paused one is woken first if it may be and the caller may change it.
pub async fn guest(app: &App, caller: &Caller, row: Row) -> Result<Guest, Error> {
    let sleeps = matches!(state(&row), State::Paused | State::Pausing);
    let row = if sleeps && row.auto_resume && caller.require(Scope::SandboxesWrite).is_ok() {
        run::wake(app, caller, &row.id).await?
    } else {
        row
    };
    require_running(&row)?;
    let host_id = row.host_id.as_deref().ok_or(Error::HostSilent { source: None })?;
    let client = app
        .fleet
        .gateway(host_id)
        .await
        .map_err(|source| Error::HostSilent { source: Some(source.into()) })?;
    Guest::new(client, &row.id)
}

/// An error that says what keeps a guest from answering, unless it runs.
fn require_running(row: &Row) -> Result<(), Error> {
    match state(row) {
        State::Running => Ok(()),
        State::Creating => Err(Error::Starting { state: "creating" }),
        State::Resuming => Err(Error::Starting { state: "resuming" }),
        State::Pausing => Err(Error::WrongState { state: "pausing", advice: "resume it first" }),
        State::Paused => Err(Error::WrongState { state: "paused", advice: "resume it first" }),
        State::Stopping => Err(Error::WrongState { state: "stopping", advice: "resume it first" }),
        State::Stopped => Err(Error::WrongState { state: "stopped", advice: "resume it first" }),
        State::Error => Err(Error::WrongState { state: "error", advice: "its state_reason says why" }),
        State::Destroying | State::Destroyed => Err(Error::no_sandbox()),
    }
}

/// The state as tenants see it: what is wanted shows before the host has reported that it is on its way.
pub fn state(row: &Row) -> State {
    let observed = observed(row);
    let seen = row.observed_generation >= row.generation;
    match (row.desired_run.as_str(), observed) {
        (_, State::Destroyed) => State::Destroyed,
        ("destroyed", _) => State::Destroying,
        // A host accepts a wish before it acts on it, so having seen it does not mean having done it; one that does
        // otherwise by itself reports that, and then it is what is wanted.
        ("paused", State::Running) => State::Pausing,
        ("stopped", State::Running | State::Paused) => State::Stopping,
        ("running", State::Paused | State::Stopped) => State::Resuming,
        ("running", State::Error) if !seen => State::Resuming,
        (_, observed) => observed,
    }
}

fn observed(row: &Row) -> State {
    match row.state.as_str() {
        "running" => State::Running,
        "pausing" => State::Pausing,
        "paused" => State::Paused,
        "resuming" => State::Resuming,
        "stopping" => State::Stopping,
        "stopped" => State::Stopped,
        "destroying" => State::Destroying,
        "destroyed" => State::Destroyed,
        "error" | "failed" => State::Error,
        _ => State::Creating,
    }
}

/// On its way to another state.
pub fn is_transitional(state: State) -> bool {
    matches!(state, State::Creating | State::Pausing | State::Resuming | State::Stopping | State::Destroying)
}

/// What the API shows of a row.
pub fn record(app: &App, row: Row) -> Sandbox {
    let (state, now_us) = (state(&row), app.now_us());
    let remaining_us =
        row.deadline_us.filter(|_| state == State::Running).map(|deadline_us| (deadline_us - now_us).max(0));
    let seconds = |value: i64| u64::try_from(value).unwrap_or(0);
    Sandbox {
        kind: row.kind,
        state,
        state_reason: (!row.state_reason.is_empty()).then_some(row.state_reason),
        ready: state == State::Running,
        size: (!row.size.is_empty()).then_some(row.size),
        cpu_count: u32::try_from(row.vcpus).unwrap_or(u32::MAX),
        memory_mb: row.memory_mib,
        disk_size_mb: row.disk_mib,
        persistent: row.persistent,
        always_on: row.always_on,
        auto_resume: row.auto_resume,
        on_timeout: if row.on_timeout == "destroy" { OnTimeout::Destroy } else { OnTimeout::Pause },
        timeout_sec: row.timeout_s.map(seconds),
        timeout_remaining_ms: remaining_us.map(|us| seconds(us / 1000)),
        idle_timeout_sec: row.idle_timeout_s.map(seconds),
        metadata: row.metadata,
        tags: row.tags,
        external_workspace_id: row.external_workspace_id,
        external_user_id: row.external_user_id,
        external_project_id: row.external_project_id,
        owner_user_id: row.owner_user_id,
        tenant_id: row.tenant_id,
        workspace_id: row.workspace_id,
        project_id: row.project_id,
        preview_url: None,
        preview_domain: Some(row.preview_domain),
        boot_path: (!row.boot_path.is_empty()).then_some(row.boot_path),
        boot_ms: row.boot_us.map(|us| seconds(us / 1000)),
        created_at: Timestamp::from_micros(row.created_us),
        updated_at: Timestamp::from_micros(row.updated_us),
        started_at: row.started_us.map(Timestamp::from_micros),
        ready_at: row.ready_us.map(Timestamp::from_micros),
        destroyed_at: row.destroyed_us.map(Timestamp::from_micros),
        name: row.name,
        slug: row.slug,
        template_id: row.template,
        id: row.id,
    }
}
