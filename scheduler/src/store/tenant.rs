//! Tables `tenant`, `workspace` and `project`: who owns what. Every tenant has a default workspace with a default
//! project, made with it.

use super::record::{self, record};
use super::{Error, Tx, params};

record! {
    pub struct Tenant in "tenant" {
        id: String,
        name: String,
        slug: String,
        /// `active` or `suspended`.
        state: String,
        plan: serde_json::Value,
        created_us: i64,
    }
}

record! {
    pub struct Workspace in "workspace" {
        id: String,
        tenant_id: String,
        slug: String,
        name: String,
        /// The label it was made for, if it was made for one.
        external_workspace_id: Option<String>,
        is_default: bool,
        created_us: i64,
    }
}

record! {
    pub struct Project in "project" {
        id: String,
        tenant_id: String,
        workspace_id: String,
        slug: String,
        name: String,
        external_project_id: Option<String>,
        is_default: bool,
        created_us: i64,
    }
}

/// False if the slug is taken.
pub fn insert(tx: &mut Tx<'_>, tenant: &Tenant) -> Result<bool, Error> {
    record::insert_if_absent(tx, tenant)
}

pub fn find(tx: &mut Tx<'_>, id: &str) -> Result<Option<Tenant>, Error> {
    record::find(tx, "WHERE id = ?1", params![id])
}

pub fn find_by_slug(tx: &mut Tx<'_>, slug: &str) -> Result<Option<Tenant>, Error> {
    record::find(tx, "WHERE slug = ?1", params![slug])
}

pub fn list(tx: &mut Tx<'_>) -> Result<Vec<Tenant>, Error> {
    record::list(tx, "ORDER BY id", params![])
}

pub fn set_state(tx: &mut Tx<'_>, id: &str, state: &str) -> Result<bool, Error> {
    record::changed(tx, "UPDATE tenant SET state = ?2 WHERE id = ?1", params![id, state])
}

/// False if the slug or the external label is taken, or the tenant already has a default one.
pub fn insert_workspace(tx: &mut Tx<'_>, workspace: &Workspace) -> Result<bool, Error> {
    record::insert_if_absent(tx, workspace)
}

pub fn find_workspace(tx: &mut Tx<'_>, tenant: &str, id: &str) -> Result<Option<Workspace>, Error> {
    record::find(tx, "WHERE tenant_id = ?1 AND id = ?2", params![tenant, id])
}

pub fn find_workspace_by_slug(tx: &mut Tx<'_>, tenant: &str, slug: &str) -> Result<Option<Workspace>, Error> {
    record::find(tx, "WHERE tenant_id = ?1 AND slug = ?2", params![tenant, slug])
}

pub fn find_workspace_by_label(
    tx: &mut Tx<'_>,
    tenant: &str,
    label: &str,
) -> Result<Option<Workspace>, Error> {
    record::find(tx, "WHERE tenant_id = ?1 AND external_workspace_id = ?2", params![tenant, label])
}

pub fn get_default_workspace(tx: &mut Tx<'_>, tenant: &str) -> Result<Workspace, Error> {
    record::find(tx, "WHERE tenant_id = ?1 AND is_default = 1", params![tenant])?
        .ok_or(Error::Absent { what: "default workspace" })
}

pub fn list_workspaces(tx: &mut Tx<'_>, tenant: &str) -> Result<Vec<Workspace>, Error> {
    record::list(tx, "WHERE tenant_id = ?1 ORDER BY created_us, id", params![tenant])
}

pub fn insert_project(tx: &mut Tx<'_>, project: &Project) -> Result<bool, Error> {
    record::insert_if_absent(tx, project)
}

pub fn find_project(tx: &mut Tx<'_>, tenant: &str, id: &str) -> Result<Option<Project>, Error> {
    record::find(tx, "WHERE tenant_id = ?1 AND id = ?2", params![tenant, id])
}

pub fn find_project_by_slug(tx: &mut Tx<'_>, workspace: &str, slug: &str) -> Result<Option<Project>, Error> {
    record::find(tx, "WHERE workspace_id = ?1 AND slug = ?2", params![workspace, slug])
}

pub fn find_project_by_label(
    tx: &mut Tx<'_>,
    workspace: &str,
    label: &str,
) -> Result<Option<Project>, Error> {
    record::find(tx, "WHERE workspace_id = ?1 AND external_project_id = ?2", params![workspace, label])
}

pub fn get_default_project(tx: &mut Tx<'_>, workspace: &str) -> Result<Project, Error> {
    record::find(tx, "WHERE workspace_id = ?1 AND is_default = 1", params![workspace])?
        .ok_or(Error::Absent { what: "default project" })
}

pub fn list_projects(tx: &mut Tx<'_>, tenant: &str) -> Result<Vec<Project>, Error> {
    record::list(tx, "WHERE tenant_id = ?1 ORDER BY created_us, id", params![tenant])
}
