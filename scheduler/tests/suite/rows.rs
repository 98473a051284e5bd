//! Rows for tests, complete and unremarkable; each test changes what it is about.

use std::collections::BTreeMap;

use roost_daemon::ids::fresh;
use roost_domain::id::{ExecutionId, HostId, SandboxId, TenantId};
use roost_scheduler::store::host::{self, Host};
use roost_scheduler::store::sandbox::{self, Sandbox};
use roost_scheduler::store::tenant::{self, Project, Tenant, Workspace};
use roost_scheduler::store::{Error, Store, Tx};

pub const NOW_US: i64 = 1_790_000_000_000_000;

/// A tenant with its default workspace and project.
#[derive(Clone)]
pub struct Owner {
    pub tenant: String,
    pub workspace: String,
    pub project: String,
}

pub async fn owner(store: &Store) -> Owner {
    let owner = Owner {
        tenant: fresh::<TenantId>().to_string(),
        workspace: uuid::Uuid::new_v4().to_string(),
        project: uuid::Uuid::new_v4().to_string(),
    };
    let rows = owner.clone();
    store.write(move |tx| insert_owner(tx, &rows)).await.unwrap();
    owner
}

fn insert_owner(tx: &mut Tx<'_>, owner: &Owner) -> Result<(), Error> {
    let tenant = Tenant {
        id: owner.tenant.clone(),
        name: "Clinic".into(),
        slug: owner.tenant.replace('_', "-"),
        state: "active".into(),
        plan: serde_json::json!({}),
        created_us: NOW_US,
    };
    assert!(tenant::insert(tx, &tenant)?);
    let workspace = Workspace {
        id: owner.workspace.clone(),
        tenant_id: owner.tenant.clone(),
        slug: "default".into(),
        name: "Default".into(),
        external_workspace_id: None,
        is_default: true,
        created_us: NOW_US,
    };
    assert!(tenant::insert_workspace(tx, &workspace)?);
    let project = Project {
        id: owner.project.clone(),
        tenant_id: owner.tenant.clone(),
        workspace_id: owner.workspace.clone(),
        slug: "default".into(),
        name: "Default".into(),
        external_project_id: None,
        is_default: true,
        created_us: NOW_US,
    };
    assert!(tenant::insert_project(tx, &project)?);
    Ok(())
}

pub fn sandbox(owner: &Owner) -> Sandbox {
    let id = fresh::<SandboxId>();
    Sandbox {
        id: id.to_string(),
        tenant_id: owner.tenant.clone(),
        workspace_id: owner.workspace.clone(),
        project_id: owner.project.clone(),
        external_workspace_id: None,
        external_user_id: None,
        external_project_id: None,
        owner_user_id: None,
        actor: "api_key:msk_live_abc".into(),
        kind: "sandbox".into(),
        name: "demo".into(),
        slug: format!("s{}", id.ulid_text()),
        preview_domain: "sandbox.localhost".into(),
        metadata: BTreeMap::new(),
        tags: vec![],
        template: "miosa-sandbox".into(),
        size: "xs".into(),
        vcpus: 1,
        memory_mib: 256,
        disk_mib: 1024,
        environment: BTreeMap::new(),
        timeout_s: None,
        deadline_us: None,
        idle_timeout_s: None,
        on_timeout: "pause".into(),
        persistent: true,
        always_on: false,
        auto_resume: true,
        region: None,
        lineage: id.to_string(),
        forked_from: None,
        host_name: "demo".into(),
        spec_version: 1,
        desired_run: "running".into(),
        generation: 1,
        placement_epoch: 1,
        adopted_seq: 0,
        host_id: None,
        memory_reserved_mib: 0,
        disk_reserved_mib: 0,
        state: "creating".into(),
        state_reason: String::new(),
        observed_generation: 0,
        local_seq: 0,
        local_cause: String::new(),
        execution_id: None,
        changed_us: NOW_US,
        boot_path: String::new(),
        boot_us: None,
        created_us: NOW_US,
        updated_us: NOW_US,
        started_us: None,
        ready_us: None,
        destroyed_us: None,
    }
}

pub fn host() -> Host {
    Host {
        id: fresh::<HostId>().to_string(),
        state: "active".into(),
        version: "0.1.0".into(),
        ensure_address: "127.0.0.1:1".into(),
        gateway_address: "127.0.0.1:2".into(),
        preview_address: "127.0.0.1:3".into(),
        memory_mib: 4096,
        disk_mib: 65_536,
        vcpus: 4,
        templates: vec!["miosa-sandbox".into()],
        vmm: "fake".into(),
        memory_reserved_mib: 0,
        disk_reserved_mib: 0,
        joined_us: NOW_US,
        seen_us: NOW_US,
        clock_skew_us: 0,
    }
}

pub async fn insert_host(store: &Store, row: &Host) {
    let row = row.clone();
    store.write(move |tx| host::insert(tx, &row)).await.unwrap();
}

pub async fn insert_sandbox(store: &Store, row: &Sandbox) {
    let row = row.clone();
    assert!(store.write(move |tx| sandbox::insert(tx, &row)).await.unwrap());
}

/// A sandbox that runs on `host` as the execution it names.
pub async fn running_sandbox(
    store: &Store,
    owner: &Owner,
    host: &str,
    change: impl Fn(&mut Sandbox),
) -> Sandbox {
    let mut row = sandbox(owner);
    row.host_id = Some(host.to_owned());
    row.state = "running".into();
    row.observed_generation = 1;
    row.execution_id = Some(fresh::<ExecutionId>().to_string());
    change(&mut row);
    insert_sandbox(store, &row).await;
    row
}
