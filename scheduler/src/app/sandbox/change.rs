//! Changing what a tenant may change of a sandbox: names, labels of its own, timers, variables.

use std::collections::BTreeMap;

use roost_api::sandbox::{ExtendSandbox, OnTimeout, PatchSandbox, Sandbox};
use roost_api::variable::{SetVariables, Variable};

use super::wish::check_timeout;
use super::{Row, find, record, require_running, row};
use crate::app::label::Attribution;
use crate::app::{App, Caller, Error, Scope, audit, label, text};
use crate::store::{self, Tx, sandbox as table};

pub async fn patch(
    app: &App,
    caller: &Caller,
    reference: &str,
    request: PatchSandbox,
) -> Result<Sandbox, Error> {
    caller.require(Scope::SandboxesWrite)?;
    refuse_attribution(&request)?;
    let changes = table::Changes {
        name: request.name.as_deref().map(|name| text::check_name("name", name)).transpose()?,
        slug: request
            .slug
            .as_deref()
            .map(|slug| label::check_slug("slug", slug))
            .transpose()?
            .map(|slug| slug.to_string()),
        metadata: request.metadata.map(text::check_metadata).transpose()?,
        tags: request.tags.map(text::check_tags).transpose()?,
        timeout_s: request
            .timeout_sec
            .map(|seconds| check_timeout("timeout_sec", seconds))
            .transpose()?
            .map(Some),
        idle_timeout_s: request
            .idle_timeout_sec
            .map(|seconds| check_timeout("idle_timeout_sec", seconds))
            .transpose()?
            .map(Some),
        on_timeout: request.on_timeout.map(|choice| match choice {
            OnTimeout::Pause => "pause".to_owned(),
            OnTimeout::Destroy => "destroy".to_owned(),
        }),
        always_on: request.always_on,
        auto_resume: request.auto_resume,
        ..table::Changes::default()
    };
    update(app, caller, reference, changes).await
}

pub async fn replace_tags(
    app: &App,
    caller: &Caller,
    reference: &str,
    tags: Vec<String>,
) -> Result<Sandbox, Error> {
    caller.require(Scope::SandboxesWrite)?;
    let changes = table::Changes { tags: Some(text::check_tags(tags)?), ..table::Changes::default() };
    update(app, caller, reference, changes).await
}

/// Starts the timeout anew, with another length if one is given.
pub async fn extend(
    app: &App,
    caller: &Caller,
    reference: &str,
    request: ExtendSandbox,
) -> Result<Sandbox, Error> {
    caller.require(Scope::SandboxesWrite)?;
    let current = row(app, caller, reference).await?;
    require_running(&current)?;
    let seconds = match request.timeout_sec {
        Some(seconds) => Some(check_timeout("timeout_sec", seconds)?),
        None => current.timeout_s,
    };
    let changes = table::Changes { timeout_s: Some(seconds), ..table::Changes::default() };
    update(app, caller, &current.id, changes).await
}

/// The five things of a sandbox that are stamped once.
fn refuse_attribution(request: &PatchSandbox) -> Result<(), Error> {
    let fields = [
        ("external_workspace_id", &request.external_workspace_id),
        ("external_user_id", &request.external_user_id),
        ("external_project_id", &request.external_project_id),
    ];
    match fields.into_iter().find(|(_, value)| value.is_some()) {
        Some((field, _)) => Err(Error::AttributionImmutable { field }),
        None => Ok(()),
    }
}

async fn update(
    app: &App,
    caller: &Caller,
    reference: &str,
    changes: table::Changes,
) -> Result<Sandbox, Error> {
    let now_us = app.now_us();
    let audited = audit::row(caller, now_us, "sandbox.updated", "sandbox", reference)
        .with("fields", &field_names(&changes));
    let (caller, reference) = (caller.clone(), reference.to_owned());
    let row = app
        .store
        .decide(move |tx| {
            let row = find(tx, &caller, &reference)?;
            let changes = with_deadline(&row, changes.clone(), now_us);
            change(tx, &row, &changes, now_us)?;
            audited.clone().on(&row.id).about(&Attribution::from(&row)).insert(tx)?;
            table::find(tx, &caller.tenant_id, &row.id)?.ok_or_else(Error::no_sandbox)
        })
        .await?;
    app.fleet.ensure_soon(&row.id);
    Ok(record(app, row))
}

/// A new timeout counts from now.
fn with_deadline(row: &Row, mut changes: table::Changes, now_us: i64) -> table::Changes {
    if let Some(timeout_s) = changes.timeout_s {
        let runs = row.desired_run == "running";
        changes.deadline_us = Some(timeout_s.filter(|_| runs).map(|seconds| now_us + seconds * 1_000_000));
    }
    changes
}

fn change(tx: &mut Tx<'_>, row: &Row, changes: &table::Changes, now_us: i64) -> Result<(), Error> {
    if let Some(slug) = changes.slug.as_ref().filter(|slug| **slug != row.slug)
        && let Some(within) = slug_taken_in(tx, row, slug)?
    {
        return Err(Error::SlugTaken { slug: slug.clone(), within });
    }
    match table::update(tx, &row.tenant_id, &row.id, changes, now_us) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::no_sandbox()),
        // Somebody took the slug between the look and the write.
        Err(store::Error::Unique) => {
            Err(Error::SlugTaken { slug: changes.slug.clone().unwrap_or_default(), within: "workspace" })
        }
        Err(error) => Err(error.into()),
    }
}

fn slug_taken_in(tx: &mut Tx<'_>, row: &Row, slug: &str) -> Result<Option<&'static str>, Error> {
    if table::is_slug_in_workspace(tx, &row.workspace_id, slug)? {
        return Ok(Some("workspace"));
    }
    Ok(table::find_by_domain(tx, &row.preview_domain, slug)?.map(|_| "preview domain"))
}

fn field_names(changes: &table::Changes) -> Vec<&'static str> {
    let fields = [
        ("name", changes.name.is_some()),
        ("slug", changes.slug.is_some()),
        ("metadata", changes.metadata.is_some()),
        ("tags", changes.tags.is_some()),
        ("env", changes.environment.is_some()),
        ("timeout_sec", changes.timeout_s.is_some()),
        ("idle_timeout_sec", changes.idle_timeout_s.is_some()),
        ("on_timeout", changes.on_timeout.is_some()),
        ("always_on", changes.always_on.is_some()),
        ("auto_resume", changes.auto_resume.is_some()),
    ];
    fields.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
}

pub async fn variables(app: &App, caller: &Caller, reference: &str) -> Result<Vec<Variable>, Error> {
    caller.require(Scope::SandboxesRead)?;
    let row = row(app, caller, reference).await?;
    Ok(shown(row.environment))
}

/// Sets these variables and keeps the others; commands started from now on see them.
pub async fn set_variables(
    app: &App,
    caller: &Caller,
    reference: &str,
    request: SetVariables,
) -> Result<Vec<Variable>, Error> {
    caller.require(Scope::SandboxesWrite)?;
    if let Some(sealed) = request.vars.iter().find(|variable| variable.encrypted == Some(true)) {
        let problem = "cannot be encrypted here: POST /egress/secrets keeps it from the sandbox";
        return Err(Error::invalid(format!("vars.{}", sealed.key), problem));
    }
    let added: BTreeMap<String, String> =
        request.vars.into_iter().map(|variable| (variable.key, variable.value)).collect();
    text::check_environment("vars", added.clone())?;
    change_environment(app, caller, reference, move |environment| {
        environment.extend(added.clone());
        true
    })
    .await
}

pub async fn remove_variable(app: &App, caller: &Caller, reference: &str, key: String) -> Result<(), Error> {
    caller.require(Scope::SandboxesWrite)?;
    change_environment(app, caller, reference, move |environment| environment.remove(&key).is_some()).await?;
    Ok(())
}

/// Reads, edits and writes the variables in one transaction. `edit` says whether it found what it was to
/// change.
async fn change_environment(
    app: &App,
    caller: &Caller,
    reference: &str,
    edit: impl Fn(&mut BTreeMap<String, String>) -> bool + Send + 'static,
) -> Result<Vec<Variable>, Error> {
    let now_us = app.now_us();
    let audited =
        audit::row(caller, now_us, "sandbox.updated", "sandbox", reference).with("fields", &["env"]);
    let (caller, reference) = (caller.clone(), reference.to_owned());
    let row = app
        .store
        .decide(move |tx| {
            let mut row = find(tx, &caller, &reference)?;
            if !edit(&mut row.environment) {
                return Err(Error::NotFound { what: "variable" });
            }
            row.environment = text::check_environment("vars", row.environment)?;
            let changes =
                table::Changes { environment: Some(row.environment.clone()), ..table::Changes::default() };
            change(tx, &row, &changes, now_us)?;
            audited.clone().on(&row.id).about(&Attribution::from(&row)).insert(tx)?;
            Ok(row)
        })
        .await?;
    app.fleet.ensure_soon(&row.id);
    Ok(shown(row.environment))
}

fn shown(environment: BTreeMap<String, String>) -> Vec<Variable> {
    environment.into_iter().map(|(key, value)| Variable { key, value, encrypted: false }).collect()
}
