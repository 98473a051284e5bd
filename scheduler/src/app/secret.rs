//! Secrets and bindings: who may set what for whom. Values go into the vault and never come back from it.

use roost_api::secret::{
    Binding, CreateBinding, ListBindings, ListSecrets, PatchSecret, Resolution, ResolutionStep,
    Scope as WireScope, Secret, SetSecret,
};
use roost_api::{Sensitive, Timestamp};

use super::label::{Attribution, check_external_id};
use super::{App, Caller, Error, Scope, audit, sandbox, text};
use crate::secret::{Change, Explanation, NewBinding, NewSecret, Plaintext, Scope as Owner};
use crate::store::{Tx, secret as table, tenant};

const KINDS: &[&str] =
    &["api_key", "oauth_token", "oauth_connect", "oauth_machine", "bearer", "basic", "generic"];

/// Stores a value, or replaces the one of the same scope, owner and name. True if it is new.
pub async fn set(
    app: &App,
    caller: &Caller,
    request: SetSecret,
) -> Result<(Secret, Option<Binding>, bool), Error> {
    caller.require(Scope::SecretsWrite)?;
    let owner = owner(caller, &request)?;
    let new = NewSecret {
        tenant_id: caller.tenant_id.clone(),
        name: request.name,
        value: plaintext(&request.value),
        scope: owner,
        expose_as_env: request.expose_as_env,
        kind: check_kind(request.kind)?,
        allowed_hosts: request.allowed_hosts,
        slots: request.slots,
        provider: text::check_remark("provider", request.provider)?,
        expires_us: request.expires_at.map(Timestamp::as_micros),
        metadata: text::check_metadata(request.metadata.unwrap_or_default())?,
        sandbox_id: None,
        actor: caller.actor(),
    };
    if request.refresh_token.is_some() {
        return Err(Error::invalid("refresh_token", "is not kept here; set the new value when it changes"));
    }
    check_resource_type(request.resource_type.as_deref())?;
    let target = request.resource_id;
    let audited = audit::row(caller, app.now_us(), "secret.created", "secret", "");
    let (vault, caller) = (app.vault.clone(), caller.clone());
    let stored = app.store.decide(move |tx| {
        let mut new = new.clone();
        if let Owner::Workspace(id) = &new.scope {
            tenant::find_workspace(tx, &caller.tenant_id, id)?
                .ok_or(Error::NotFound { what: "workspace" })?;
        }
        if let Some(reference) = &target {
            new.sandbox_id = Some(sandbox::find(tx, &caller, reference)?.id);
        }
        let stored = vault.set(tx, &new)?;
        let action = if stored.created { "secret.created" } else { "secret.rotated" };
        describe(audited.clone(), &stored.secret).doing(action).insert(tx)?;
        Ok::<_, Error>(stored)
    });
    let stored = stored.await?;
    app.fleet.note_change();
    Ok((record(stored.secret, app.now_us()), stored.binding.map(binding_record), stored.created))
}

/// Whose the secret will be. The one who calls, where the scope is `user` and nobody is named.
fn owner(caller: &Caller, request: &SetSecret) -> Result<Owner, Error> {
    let scope = request.scope.unwrap_or(WireScope::User);
    let user = check_external_id("owner_user_id", request.owner_user_id.as_deref())?;
    let external_user = check_external_id("external_user_id", request.external_user_id.as_deref())?;
    let external_workspace =
        check_external_id("external_workspace_id", request.external_workspace_id.as_deref())?;
    let owner = match scope {
        WireScope::User => Owner::User(user.unwrap_or_else(|| caller.principal())),
        WireScope::ExternalUser => Owner::ExternalUser(external_user.unwrap_or_default()),
        WireScope::ExternalWorkspace => Owner::ExternalWorkspace(external_workspace.unwrap_or_default()),
        WireScope::Workspace => Owner::Workspace(
            request.workspace_id.clone().or_else(|| caller.workspace_id.clone()).unwrap_or_default(),
        ),
        WireScope::Tenant => Owner::Tenant,
    };
    if reaches(caller, owner.word(), owner.key()) { Ok(owner) } else { Err(Error::WorkspaceForbidden) }
}

/// A workspace's key manages what belongs to its workspace and to itself: everything else resolves elsewhere
/// too.
fn reaches(caller: &Caller, scope: &str, scope_key: &str) -> bool {
    match (&caller.workspace_id, scope) {
        (None, _) => true,
        (Some(own), "workspace") => own == scope_key,
        (Some(_), "user") => caller.principal() == scope_key,
        (Some(_), _) => false,
    }
}

fn check_kind(kind: Option<String>) -> Result<String, Error> {
    let kind = kind.unwrap_or_else(|| "api_key".to_owned());
    if KINDS.contains(&kind.as_str()) { Ok(kind) } else { Err(Error::invalid("type", KINDS.join(", "))) }
}

fn check_resource_type(resource_type: Option<&str>) -> Result<(), Error> {
    match resource_type {
        None | Some("sandbox") => Ok(()),
        Some(_) => Err(Error::invalid("resource_type", "sandbox")),
    }
}

fn plaintext(value: &Sensitive) -> Plaintext {
    Plaintext::from(value.expose())
}

/// The audit of a secret says whose it is and what it is called, never what it is.
fn describe(row: audit::Row, secret: &table::Secret) -> audit::Row {
    let labelled = row
        .on(&secret.id)
        .with("name", &secret.name)
        .with("scope", &secret.scope)
        .with("logical_key", &secret.logical_key);
    match secret.scope.as_str() {
        "external_user" => labelled.of_external_user(&secret.scope_key),
        "external_workspace" => labelled.of_external_workspace(&secret.scope_key),
        _ => labelled,
    }
}

pub async fn list(app: &App, caller: &Caller, query: ListSecrets) -> Result<Vec<Secret>, Error> {
    caller.require(Scope::SecretsRead)?;
    let owners = [
        ("user", query.owner_user_id),
        ("external_user", query.external_user_id),
        ("external_workspace", query.external_workspace_id),
        ("workspace", query.workspace_id),
    ];
    let mut named = owners.into_iter().filter_map(|(scope, key)| key.map(|key| (scope, key)));
    let owner = named.next();
    if named.next().is_some() {
        return Err(Error::invalid("external_user_id", "filter by one owner at a time"));
    }
    let contradiction = matches!((&owner, &query.scope), (Some((scope, _)), Some(wanted)) if scope != wanted);
    if contradiction {
        return Ok(Vec::new());
    }
    let filter = table::Filter {
        tenant_id: caller.tenant_id.clone(),
        scope: owner.as_ref().map(|(scope, _)| (*scope).to_owned()).or(query.scope),
        scope_key: owner.map(|(_, key)| key),
        kind: query.kind,
        provider: query.provider,
        name: query.name,
        sandbox_id: query.resource_id,
    };
    let rows = app.store.read(move |tx| table::list(tx, &filter)).await?;
    let now_us = app.now_us();
    let visible = rows.into_iter().filter(|row| reaches(caller, &row.scope, &row.scope_key));
    Ok(visible.map(|row| record(row, now_us)).collect())
}

pub async fn get(app: &App, caller: &Caller, id: String) -> Result<Secret, Error> {
    caller.require(Scope::SecretsRead)?;
    let (work_caller, now_us) = (caller.clone(), app.now_us());
    let row = app.store.examine(move |tx| find(tx, &work_caller, &id)).await?;
    Ok(record(row, now_us))
}

fn find(tx: &mut Tx<'_>, caller: &Caller, id: &str) -> Result<table::Secret, Error> {
    let found = table::find(tx, &caller.tenant_id, id)?;
    found.filter(|row| reaches(caller, &row.scope, &row.scope_key)).ok_or(Error::NotFound { what: "secret" })
}

/// Rotates, disables, narrows. What widens needs the value again.
pub async fn patch(app: &App, caller: &Caller, id: String, request: PatchSecret) -> Result<Secret, Error> {
    caller.require(Scope::SecretsWrite)?;
    if request.refresh_token.is_some() {
        return Err(Error::invalid("refresh_token", "is not kept here; set the new value when it changes"));
    }
    let actions: Vec<&str> = [
        (request.value.is_some(), "secret.rotated"),
        (request.enabled == Some(false), "secret.disabled"),
        (request.enabled == Some(true), "secret.enabled"),
        (request.value.is_none() && request.enabled.is_none(), "secret.updated"),
    ]
    .into_iter()
    .filter_map(|(done, action)| done.then_some(action))
    .collect();
    let change = Change {
        value: request.value.as_ref().map(plaintext),
        enabled: request.enabled,
        allowed_hosts: request.allowed_hosts,
        slots: request.slots,
        expires_us: request.expires_at.map(|at| Some(at.as_micros())),
        metadata: request.metadata.map(text::check_metadata).transpose()?,
    };
    let now_us = app.now_us();
    let rows: Vec<audit::Row> =
        actions.iter().map(|action| audit::row(caller, now_us, action, "secret", &id)).collect();
    let (vault, caller) = (app.vault.clone(), caller.clone());
    let changed = app.store.decide(move |tx| {
        find(tx, &caller, &id)?;
        let row = vault.change(tx, &caller.tenant_id, &id, &change)?;
        for audited in &rows {
            describe(audited.clone(), &row).insert(tx)?;
        }
        Ok::<_, Error>(row)
    });
    let row = changed.await?;
    app.fleet.note_change();
    Ok(record(row, now_us))
}

pub async fn remove(app: &App, caller: &Caller, id: String) -> Result<(), Error> {
    caller.require(Scope::SecretsWrite)?;
    let audited = audit::row(caller, app.now_us(), "secret.deleted", "secret", &id);
    let (vault, caller) = (app.vault.clone(), caller.clone());
    let removed = app.store.decide(move |tx| {
        let row = find(tx, &caller, &id)?;
        vault.remove(tx, &caller.tenant_id, &id)?;
        describe(audited.clone(), &row).insert(tx)
    });
    removed.await?;
    app.fleet.note_change();
    Ok(())
}

pub async fn bind(app: &App, caller: &Caller, request: CreateBinding) -> Result<Binding, Error> {
    caller.require(Scope::SecretsWrite)?;
    check_resource_type(request.resource_type.as_deref())?;
    let audited = audit::row(caller, app.now_us(), "binding.created", "binding", "");
    let (vault, caller) = (app.vault.clone(), caller.clone());
    let bound = app.store.decide(move |tx| {
        let secret = find(tx, &caller, &request.secret_id)?;
        let target = sandbox::find(tx, &caller, &request.resource_id)?;
        let new = NewBinding {
            tenant_id: caller.tenant_id.clone(),
            secret_id: secret.id.clone(),
            sandbox_id: target.id.clone(),
            expose_as_env: request.expose_as_env.clone(),
            value: request.value.as_ref().map(plaintext),
            actor: caller.actor(),
        };
        let binding = vault.bind(tx, &new)?;
        let about = audited.clone().on(&binding.id).about(&Attribution::from(&target));
        about.with("secret_id", &secret.id).with("sandbox_id", &target.id).insert(tx)?;
        Ok::<_, Error>(binding)
    });
    let binding = bound.await?;
    app.fleet.note_change();
    Ok(binding_record(binding))
}

pub async fn bindings(app: &App, caller: &Caller, query: ListBindings) -> Result<Vec<Binding>, Error> {
    caller.require(Scope::SecretsRead)?;
    let caller = caller.clone();
    let rows = app.store.examine(move |tx| {
        let rows = table::list_bindings(
            tx,
            &caller.tenant_id,
            query.secret_id.as_deref(),
            query.resource_id.as_deref(),
        )?;
        let mut visible = Vec::new();
        for row in rows {
            if find(tx, &caller, &row.secret_id).is_ok() {
                visible.push(row);
            }
        }
        Ok::<_, Error>(visible)
    });
    Ok(rows.await?.into_iter().map(binding_record).collect())
}

pub async fn unbind(app: &App, caller: &Caller, id: String) -> Result<(), Error> {
    caller.require(Scope::SecretsWrite)?;
    let audited = audit::row(caller, app.now_us(), "binding.deleted", "binding", &id);
    let (vault, caller) = (app.vault.clone(), caller.clone());
    let removed = app.store.decide(move |tx| {
        let absent = || Error::NotFound { what: "binding" };
        let row = table::find_binding(tx, &caller.tenant_id, &id)?.ok_or_else(absent)?;
        find(tx, &caller, &row.secret_id).map_err(|error| match error {
            Error::NotFound { .. } => absent(),
            other => other,
        })?;
        vault.unbind(tx, &caller.tenant_id, &id)?;
        audited.clone().with("secret_id", &row.secret_id).with("sandbox_id", &row.sandbox_id).insert(tx)
    });
    removed.await?;
    app.fleet.note_change();
    Ok(())
}

/// For each variable of a sandbox: which secret it would get now, and why not another one.
pub async fn explain(app: &App, caller: &Caller, reference: &str) -> Result<Vec<Resolution>, Error> {
    caller.require(Scope::SecretsRead)?;
    let row = sandbox::row(app, caller, reference).await?;
    let explained = app.vault.explain(&row.tenant_id, &row.id).await?;
    Ok(explained.into_iter().map(resolution).collect())
}

fn resolution(explained: Explanation) -> Resolution {
    let mut steps: Vec<ResolutionStep> = explained
        .skipped
        .iter()
        .map(|(step, reason)| ResolutionStep {
            step: step.to_string(),
            outcome: reason.to_string(),
            secret_id: None,
        })
        .collect();
    let found = explained.found.as_ref();
    if let Some((step, secret)) = found {
        let secret_id = Some(secret.id.clone());
        steps.push(ResolutionStep { step: step.to_string(), outcome: "matched".to_owned(), secret_id });
    }
    Resolution {
        env: explained.env.unwrap_or(explained.logical_key),
        secret_id: found.map(|(_, secret)| secret.id.clone()),
        resolved_by: found.map(|(step, _)| step.to_string()),
        unbound: found.is_some_and(|(_, secret)| is_unbound(secret)),
        allowed_hosts: found.map(|(_, secret)| secret.allowed_hosts.clone()).unwrap_or_default(),
        steps,
    }
}

fn is_unbound(row: &table::Secret) -> bool {
    row.allowed_hosts.is_empty() && !row.swap_anywhere
}

fn record(row: table::Secret, now_us: i64) -> Secret {
    let expired = row.expires_us.is_some_and(|expires_us| expires_us <= now_us);
    let status = match (row.enabled, expired) {
        (false, _) => "disabled",
        (true, true) => "expired",
        (true, false) => "active",
    };
    let key_of = |scope: &str| (row.scope == scope).then(|| row.scope_key.clone());
    Secret {
        scope: match row.scope.as_str() {
            "external_user" => WireScope::ExternalUser,
            "external_workspace" => WireScope::ExternalWorkspace,
            "workspace" => WireScope::Workspace,
            "tenant" => WireScope::Tenant,
            _ => WireScope::User,
        },
        workspace_id: key_of("workspace"),
        owner_user_id: key_of("user"),
        external_user_id: key_of("external_user"),
        external_workspace_id: key_of("external_workspace"),
        status: status.to_owned(),
        warnings: if is_unbound(&row) { vec!["unbound".to_owned()] } else { Vec::new() },
        id: row.id,
        name: row.name,
        kind: row.kind,
        expose_as_env: row.expose_as_env,
        masked_value: row.masked,
        allowed_hosts: row.allowed_hosts,
        slots: row.slots,
        provider: row.provider,
        enabled: row.enabled,
        has_value: true,
        version: row.version,
        last_used_at: row.last_used_us.map(Timestamp::from_micros),
        expires_at: row.expires_us.map(Timestamp::from_micros),
        metadata: row.metadata,
        created_at: Timestamp::from_micros(row.created_us),
        updated_at: Timestamp::from_micros(row.updated_us),
    }
}

fn binding_record(row: table::Binding) -> Binding {
    Binding {
        id: row.id,
        secret_id: row.secret_id,
        resource_id: row.sandbox_id,
        resource_type: "sandbox".to_owned(),
        expose_as_env: row.expose_as_env.unwrap_or(row.logical_key),
        created_at: Timestamp::from_micros(row.created_us),
    }
}
