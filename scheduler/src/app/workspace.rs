//! Workspaces and projects: made by name, or on the way by the first sandbox that mentions them.

use roost_api::Timestamp;
use roost_api::workspace::{CreateProject, CreateWorkspace, Project, Workspace};
use roost_domain::slug::Slug;

use super::{App, Caller, Error, Scope, audit, label, text};
use crate::store::{Tx, tenant};

/// How a request names a workspace or a project; the first that is set counts.
#[derive(Debug, Clone, Default)]
pub struct Reference {
    pub id: Option<String>,
    pub slug: Option<String>,
    pub name: Option<String>,
    /// The caller's own label.
    pub external: Option<String>,
}

/// A row that may have to be made, prepared outside the transaction that decides.
#[derive(Debug, Clone)]
pub struct Fresh {
    pub id: String,
    /// Makes a slug unique where the plain one is taken.
    pub suffix: String,
    pub now_us: i64,
}

impl Fresh {
    pub fn new(now_us: i64) -> Self {
        let id = uuid::Uuid::new_v4();
        Self { id: id.to_string(), suffix: id.simple().to_string()[..6].to_owned(), now_us }
    }
}

/// The workspace a new sandbox belongs to: a workspace-scoped key has one and only one.
pub fn resolve_workspace(
    tx: &mut Tx<'_>,
    caller: &Caller,
    wanted: &Reference,
    fresh: &Fresh,
) -> Result<tenant::Workspace, Error> {
    let tenant_id = caller.tenant_id.as_str();
    let named = match (&wanted.id, &wanted.slug) {
        (Some(id), _) => {
            Some(tenant::find_workspace(tx, tenant_id, id)?.ok_or(Error::NotFound { what: "workspace" })?)
        }
        (None, Some(slug)) => tenant::find_workspace_by_slug(tx, tenant_id, slug)?,
        (None, None) => None,
    };
    let labelled = match (&named, &wanted.external) {
        (None, Some(external)) => tenant::find_workspace_by_label(tx, tenant_id, external)?,
        _ => None,
    };
    if let Some(own) = &caller.workspace_id {
        let other = named.as_ref().or(labelled.as_ref()).is_some_and(|workspace| workspace.id != *own);
        if other || (named.is_none() && wanted.slug.is_some()) {
            return Err(Error::WorkspaceForbidden);
        }
        return tenant::find_workspace(tx, tenant_id, own)?.ok_or(Error::WorkspaceForbidden);
    }
    if let Some(found) = named.or(labelled) {
        return Ok(found);
    }
    let name = wanted.slug.as_ref().or(wanted.name.as_ref()).or(wanted.external.as_ref());
    let Some(name) = name.cloned() else {
        return Ok(tenant::get_default_workspace(tx, tenant_id)?);
    };
    if let (None, Some(wanted_name)) = (&wanted.external, &wanted.name) {
        let same_name = |workspace: &tenant::Workspace| workspace.name == *wanted_name;
        if let Some(found) = tenant::list_workspaces(tx, tenant_id)?.into_iter().find(same_name) {
            return Ok(found);
        }
    }
    insert_workspace(tx, tenant_id, &name, None, wanted.external.clone(), fresh)
}

fn insert_workspace(
    tx: &mut Tx<'_>,
    tenant_id: &str,
    name: &str,
    slug: Option<&Slug>,
    external: Option<String>,
    fresh: &Fresh,
) -> Result<tenant::Workspace, Error> {
    let slug = slug.cloned().unwrap_or_else(|| Slug::derive(name));
    for slug in [slug.clone(), slug.with_suffix(&fresh.suffix)] {
        let workspace = tenant::Workspace {
            id: fresh.id.clone(),
            tenant_id: tenant_id.to_owned(),
            slug: slug.to_string(),
            name: name.to_owned(),
            external_workspace_id: external.clone(),
            is_default: false,
            created_us: fresh.now_us,
        };
        if tenant::insert_workspace(tx, &workspace)? {
            ensure_default_project(tx, &workspace)?;
            return Ok(workspace);
        }
    }
    Err(Error::WorkspaceNameTaken { name: name.to_owned() })
}

/// Every workspace has a project for what names none. Its id is derived, so that the closure may run twice.
fn ensure_default_project(tx: &mut Tx<'_>, workspace: &tenant::Workspace) -> Result<(), Error> {
    let mut bytes = workspace.id.parse::<uuid::Uuid>().map(uuid::Uuid::into_bytes).unwrap_or_default();
    bytes[15] ^= 1;
    let project = tenant::Project {
        id: uuid::Uuid::from_bytes(bytes).to_string(),
        tenant_id: workspace.tenant_id.clone(),
        workspace_id: workspace.id.clone(),
        slug: "default".to_owned(),
        name: "Default".to_owned(),
        external_project_id: None,
        is_default: true,
        created_us: workspace.created_us,
    };
    tenant::insert_project(tx, &project)?;
    Ok(())
}

/// The project inside the workspace, made if it is mentioned for the first time.
pub fn resolve_project(
    tx: &mut Tx<'_>,
    workspace: &tenant::Workspace,
    wanted: &Reference,
    fresh: &Fresh,
) -> Result<tenant::Project, Error> {
    if let Some(id) = &wanted.id {
        let found = tenant::find_project(tx, &workspace.tenant_id, id)?;
        return found
            .filter(|project| project.workspace_id == workspace.id)
            .ok_or(Error::NotFound { what: "project" });
    }
    let found = match (&wanted.slug, &wanted.external) {
        (Some(slug), _) => tenant::find_project_by_slug(tx, &workspace.id, slug)?,
        (None, Some(external)) => tenant::find_project_by_label(tx, &workspace.id, external)?,
        (None, None) => None,
    };
    if let Some(found) = found {
        return Ok(found);
    }
    let Some(name) = wanted.slug.as_ref().or(wanted.name.as_ref()).or(wanted.external.as_ref()) else {
        return Ok(tenant::get_default_project(tx, &workspace.id)?);
    };
    let slug = Slug::derive(name);
    for slug in [slug.clone(), slug.with_suffix(&fresh.suffix)] {
        let project = tenant::Project {
            id: fresh.id.clone(),
            tenant_id: workspace.tenant_id.clone(),
            workspace_id: workspace.id.clone(),
            slug: slug.to_string(),
            name: name.clone(),
            external_project_id: wanted.external.clone(),
            is_default: false,
            created_us: fresh.now_us,
        };
        if tenant::insert_project(tx, &project)? {
            return Ok(project);
        }
        // A name without a label means the project that already has it.
        if wanted.external.is_none()
            && let Some(found) = tenant::find_project_by_slug(tx, &workspace.id, slug.as_str())?
        {
            return Ok(found);
        }
    }
    Err(Error::invalid("project_slug", "is taken; choose another one"))
}

/// A workspace by name; true beside it if an existing one of the same label is answered.
pub async fn create(
    app: &App,
    caller: &Caller,
    request: CreateWorkspace,
) -> Result<(Workspace, bool), Error> {
    caller.require(Scope::SandboxesWrite)?;
    if caller.workspace_id.is_some() {
        return Err(Error::WorkspaceForbidden);
    }
    let name = text::check_name("name", &request.name)?;
    let external =
        label::check_external_id("external_workspace_id", request.external_workspace_id.as_deref())?;
    let slug = request.slug.as_deref().map(|slug| label::check_slug("slug", slug)).transpose()?;
    let allow_duplicate = request.allow_duplicate_name.unwrap_or(false);
    let (fresh, caller) = (Fresh::new(app.now_us()), caller.clone());
    let audited =
        audit::row(&caller, fresh.now_us, "workspace.created", "workspace", &fresh.id).with("name", &name);
    app.store
        .decide(move |tx| {
            if let Some(external) = &external
                && let Some(found) = tenant::find_workspace_by_label(tx, &caller.tenant_id, external)?
            {
                return Ok((workspace_record(found), true));
            }
            let taken = tenant::list_workspaces(tx, &caller.tenant_id)?
                .iter()
                .any(|workspace| workspace.name == name);
            if taken && !allow_duplicate {
                return Err(Error::WorkspaceNameTaken { name: name.clone() });
            }
            let workspace =
                insert_workspace(tx, &caller.tenant_id, &name, slug.as_ref(), external.clone(), &fresh)?;
            if let Some(slug) = slug.as_ref().filter(|slug| slug.as_str() != workspace.slug) {
                return Err(Error::SlugTaken { slug: slug.to_string(), within: "tenant" });
            }
            audited.insert(tx)?;
            Ok((workspace_record(workspace), false))
        })
        .await
}

pub async fn list(app: &App, caller: &Caller) -> Result<Vec<Workspace>, Error> {
    caller.require(Scope::SandboxesRead)?;
    let tenant_id = caller.tenant_id.clone();
    let rows = app.store.read(move |tx| tenant::list_workspaces(tx, &tenant_id)).await?;
    Ok(rows.into_iter().filter(|row| caller.sees_workspace(&row.id)).map(workspace_record).collect())
}

pub async fn get(app: &App, caller: &Caller, id: String) -> Result<Workspace, Error> {
    caller.require(Scope::SandboxesRead)?;
    let tenant_id = caller.tenant_id.clone();
    let row = app.store.read(move |tx| tenant::find_workspace(tx, &tenant_id, &id)).await?;
    let row = row.filter(|row| caller.sees_workspace(&row.id));
    row.map(workspace_record).ok_or(Error::NotFound { what: "workspace" })
}

pub async fn create_project(app: &App, caller: &Caller, request: CreateProject) -> Result<Project, Error> {
    caller.require(Scope::SandboxesWrite)?;
    let name = text::check_name("name", &request.name)?;
    let wanted = Reference {
        slug: Some(match request.slug {
            Some(slug) => label::check_slug("slug", &slug)?.to_string(),
            None => Slug::derive(&name).to_string(),
        }),
        external: label::check_external_id("external_project_id", request.external_project_id.as_deref())?,
        ..Reference::default()
    };
    text::check_metadata(request.metadata.unwrap_or_default())?;
    let workspace_slug = request
        .workspace_slug
        .as_deref()
        .map(|slug| label::check_slug("workspace_slug", slug))
        .transpose()?;
    let in_workspace = Reference {
        id: request.workspace_id,
        slug: workspace_slug.map(|slug| slug.to_string()),
        ..Reference::default()
    };
    let (fresh, caller) = (Fresh::new(app.now_us()), caller.clone());
    let audited =
        audit::row(&caller, fresh.now_us, "project.created", "project", &fresh.id).with("name", &name);
    app.store
        .decide(move |tx| {
            let workspace = resolve_workspace(tx, &caller, &in_workspace, &fresh)?;
            let project_fresh = Fresh { id: project_id(&fresh), ..fresh.clone() };
            let project = resolve_project(tx, &workspace, &wanted, &project_fresh)?;
            audited.insert(tx)?;
            Ok(project_record(project))
        })
        .await
}

/// An id beside the workspace's, since both may be made in one transaction.
pub fn project_id(fresh: &Fresh) -> String {
    let mut bytes = fresh.id.parse::<uuid::Uuid>().map(uuid::Uuid::into_bytes).unwrap_or_default();
    bytes[15] ^= 2;
    uuid::Uuid::from_bytes(bytes).to_string()
}

pub async fn list_projects(
    app: &App,
    caller: &Caller,
    workspace_id: Option<String>,
) -> Result<Vec<Project>, Error> {
    caller.require(Scope::SandboxesRead)?;
    let tenant_id = caller.tenant_id.clone();
    let rows = app.store.read(move |tx| tenant::list_projects(tx, &tenant_id)).await?;
    let wanted = |row: &tenant::Project| workspace_id.as_ref().is_none_or(|id| row.workspace_id == *id);
    let rows = rows.into_iter().filter(|row| caller.sees_workspace(&row.workspace_id) && wanted(row));
    Ok(rows.map(project_record).collect())
}

pub async fn get_project(app: &App, caller: &Caller, id: String) -> Result<Project, Error> {
    caller.require(Scope::SandboxesRead)?;
    let tenant_id = caller.tenant_id.clone();
    let row = app.store.read(move |tx| tenant::find_project(tx, &tenant_id, &id)).await?;
    let row = row.filter(|row| caller.sees_workspace(&row.workspace_id));
    row.map(project_record).ok_or(Error::NotFound { what: "project" })
}

fn workspace_record(row: tenant::Workspace) -> Workspace {
    Workspace {
        id: row.id,
        name: row.name,
        slug: row.slug,
        external_workspace_id: row.external_workspace_id,
        created_at: Timestamp::from_micros(row.created_us),
        updated_at: Timestamp::from_micros(row.created_us),
    }
}

fn project_record(row: tenant::Project) -> Project {
    Project {
        id: row.id,
        workspace_id: row.workspace_id,
        name: row.name,
        slug: row.slug,
        external_project_id: row.external_project_id,
        created_at: Timestamp::from_micros(row.created_us),
        updated_at: Timestamp::from_micros(row.created_us),
    }
}
