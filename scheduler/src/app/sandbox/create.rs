//! Making a sandbox: quota, placement, and one transaction that leaves a row, a reservation, an event and an
//! audit row, or nothing.

use std::time::Duration;

use roost_api::sandbox::{CreateSandbox, OnTimeout, Sandbox};
use roost_domain::id::SandboxId;
use roost_domain::limits;
use roost_domain::slug::Slug;

use super::wish::{self, Wish};
use super::{Row, record, run, wait};
use crate::app::label::Attribution;
use crate::app::placement::{self, Need};
use crate::app::workspace::{self, Fresh};
use crate::app::{App, Caller, Error, Scope, audit};
use crate::store::quota::Amount;
use crate::store::{Tx, host, sandbox as table, tenant};

/// A host not heard of for this long gets no new sandbox.
const HOST_SILENCE_US: i64 = 90_000_000;
/// How many suffixes a derived slug tries.
const SLUG_ATTEMPTS: usize = 4;

/// Makes the sandbox with this id and, if asked, waits until it runs or has failed. One that exists was made by an
/// earlier attempt of the same call, whose answer was lost.
pub async fn create(
    app: &App,
    caller: &Caller,
    id: SandboxId,
    request: CreateSandbox,
    patience: Option<Duration>,
) -> Result<Sandbox, Error> {
    caller.require(Scope::SandboxesWrite)?;
    let wish = wish::check(request)?;
    let admission = Admission::prepare(app, caller, id, wish).await?;
    let row = app.store.decide(move |tx| admission.admit(tx)).await?;
    app.fleet.ensure_soon(&row.id);
    let row = match patience {
        Some(patience) => wait::until_settled(app, row, patience).await?,
        None => row,
    };
    Ok(record(app, row))
}

/// Everything the transaction needs, fixed before it because it may run more than once.
#[derive(Debug)]
struct Admission {
    caller: Caller,
    wish: Wish,
    id: SandboxId,
    fresh: Fresh,
    suffixes: Vec<String>,
    preview_domain: String,
    /// Candidates in the order of preference.
    hosts: Vec<String>,
    audited: audit::Row,
    event_id: String,
}

impl Admission {
    async fn prepare(app: &App, caller: &Caller, id: SandboxId, wish: Wish) -> Result<Self, Error> {
        let now_us = app.now_us();
        let hosts = app.store.read(move |tx| host::list_placeable(tx, now_us - HOST_SILENCE_US)).await?;
        if !hosts.is_empty() && !hosts.iter().any(|host| host.templates.contains(&wish.template)) {
            return Err(Error::invalid(
                "template_id",
                format!("no host has a template {:?}", limits::excerpt(&wish.template)),
            ));
        }
        let need = Need {
            template: &wish.template,
            memory_mib: wish.geometry.memory_mib,
            disk_mib: wish.geometry.disk_mib,
        };
        let suffix = |_| uuid::Uuid::new_v4().simple().to_string()[..6].to_owned();
        Ok(Self {
            hosts: placement::choose_hosts(&hosts, need),
            audited: audit::row(caller, now_us, "sandbox.created", "sandbox", &id.to_string()),
            event_id: run::event_id(),
            caller: caller.clone(),
            wish,
            id,
            fresh: Fresh::new(now_us),
            suffixes: (0..SLUG_ATTEMPTS).map(suffix).collect(),
            preview_domain: app.brand.preview_domain.clone(),
        })
    }

    fn admit(&self, tx: &mut Tx<'_>) -> Result<Row, Error> {
        if let Some(row) = table::find(tx, &self.caller.tenant_id, &self.id.to_string())? {
            return Ok(row);
        }
        let workspace = workspace::resolve_workspace(tx, &self.caller, &self.wish.workspace, &self.fresh)?;
        let project_fresh = Fresh { id: workspace::project_id(&self.fresh), ..self.fresh.clone() };
        let project = workspace::resolve_project(tx, &workspace, &self.wish.project, &project_fresh)?;
        let mut row = self.row(&workspace, &project);
        run::reserve_quota(tx, &row, Amount::resting(&row))?;
        run::reserve_quota(tx, &row, Amount::running(&row))?;
        row.host_id = Some(self.reserve_host(tx, &row)?);
        self.insert_with_slug(tx, &mut row)?;
        run::insert_event(tx, &self.event_id, &row, "sandbox.created", None, self.fresh.now_us)?;
        let audited = self.audited.clone().about(&Attribution::from(&row));
        audited
            .with("name", &row.name)
            .with("slug", &row.slug)
            .with("template_id", &row.template)
            .insert(tx)?;
        Ok(row)
    }

    fn reserve_host(&self, tx: &mut Tx<'_>, row: &Row) -> Result<String, Error> {
        for id in &self.hosts {
            if host::reserve(tx, id, row.memory_mib, row.disk_mib)? {
                return Ok(id.clone());
            }
        }
        Err(Error::NoCapacity { fail_fast: self.wish.fail_fast })
    }

    /// An explicit slug is taken or refused; a derived one gets a suffix until it is free.
    fn insert_with_slug(&self, tx: &mut Tx<'_>, row: &mut Row) -> Result<(), Error> {
        if let Some(slug) = &self.wish.slug {
            row.slug = slug.to_string();
            row.host_name.clone_from(&row.slug);
            if table::insert(tx, row)? {
                return Ok(());
            }
            let within = if table::is_slug_in_workspace(tx, &row.workspace_id, &row.slug)? {
                "workspace"
            } else {
                "preview domain"
            };
            return Err(Error::SlugTaken { slug: row.slug.clone(), within });
        }
        let derived = Slug::derive(&row.name);
        let suffixed = self.suffixes.iter().map(|suffix| derived.with_suffix(suffix));
        for slug in std::iter::once(derived.clone()).chain(suffixed) {
            row.slug = slug.to_string();
            row.host_name.clone_from(&row.slug);
            if table::insert(tx, row)? {
                return Ok(());
            }
        }
        Err(Error::internal("find a free slug", format!("{SLUG_ATTEMPTS} random suffixes were all taken")))
    }

    fn row(&self, workspace: &tenant::Workspace, project: &tenant::Project) -> Row {
        let (wish, now_us) = (&self.wish, self.fresh.now_us);
        let id = self.id.to_string();
        // A sandbox nobody named is named after its id, whose end differs from all others made in that
        // moment.
        let body = self.id.ulid_text();
        let name = wish.name.clone().unwrap_or_else(|| format!("sandbox-{}", &body[body.len() - 8..]));
        Row {
            lineage: id.clone(),
            id,
            tenant_id: self.caller.tenant_id.clone(),
            workspace_id: workspace.id.clone(),
            project_id: project.id.clone(),
            external_workspace_id: wish.external.workspace.clone(),
            external_user_id: wish.external.user.clone(),
            external_project_id: wish.external.project.clone(),
            owner_user_id: Some(wish.owner_user_id.clone().unwrap_or_else(|| self.caller.principal())),
            actor: self.caller.actor(),
            kind: "sandbox".to_owned(),
            name,
            slug: String::new(),
            preview_domain: self.preview_domain.clone(),
            metadata: wish.metadata.clone(),
            tags: wish.tags.clone(),
            template: wish.template.clone(),
            size: wish.geometry.find_size().map(|size| size.text().to_owned()).unwrap_or_default(),
            vcpus: wish.geometry.vcpus.into(),
            memory_mib: wish.geometry.memory_mib,
            disk_mib: wish.geometry.disk_mib,
            environment: wish.environment.clone(),
            timeout_s: wish.timeout_s,
            deadline_us: wish.timeout_s.map(|seconds| now_us + seconds * 1_000_000),
            idle_timeout_s: wish.idle_timeout_s,
            on_timeout: match wish.on_timeout {
                OnTimeout::Pause => "pause".to_owned(),
                OnTimeout::Destroy => "destroy".to_owned(),
            },
            persistent: wish.persistent,
            always_on: wish.always_on,
            auto_resume: wish.auto_resume,
            region: None,
            forked_from: None,
            host_name: String::new(),
            spec_version: 1,
            desired_run: "running".to_owned(),
            generation: 1,
            placement_epoch: 1,
            host_id: None,
            memory_reserved_mib: wish.geometry.memory_mib,
            disk_reserved_mib: wish.geometry.disk_mib,
            state: "creating".to_owned(),
            state_reason: String::new(),
            observed_generation: 0,
            adopted_seq: 0,
            local_seq: 0,
            local_cause: String::new(),
            execution_id: None,
            changed_us: now_us,
            boot_path: String::new(),
            boot_us: None,
            created_us: now_us,
            updated_us: now_us,
            started_us: None,
            ready_us: None,
            destroyed_us: None,
        }
    }
}
