//! What the commands do, each one transaction.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use roost_daemon::clock::Clock;
use roost_daemon::ids::fresh;
use roost_domain::id::{EventId, JoinId, KeyId, TenantId};
use roost_domain::slug::Slug;

use super::{Answer, Command, Error, HostCommand, KeyCommand, TenantCommand};
use crate::app::{self, Scope};
use crate::fleet;
use crate::store::api_key::{self, ApiKey};
use crate::store::host::{self, JoinToken};
use crate::store::tenant::{self, Project, Tenant, Workspace};
use crate::store::{self, Store, Tx, audit_log};

const ACTOR: &str = "operator";
const NAME_BYTES_MAX: usize = 128;
const TOKEN_BYTES: usize = 32;
const TOKEN_MINUTES_MAX: u32 = 7 * 24 * 60;
const LIFETIME_DAYS_MAX: u32 = 36_500;
const DAY_US: i64 = 86_400_000_000;

/// Carries out commands.
#[derive(Debug, Clone)]
pub struct Operator {
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    /// Before every API key.
    pub key_prefix: String,
}

impl Operator {
    pub async fn run(&self, command: Command) -> Result<Answer, Error> {
        match command {
            Command::Tenant(TenantCommand::Create { name }) => self.create_tenant(name).await,
            Command::Tenant(TenantCommand::List) => self.list_tenants().await,
            Command::Key(KeyCommand::Create { tenant, name, workspace, scopes, days }) => {
                self.create_key(tenant, name, workspace, scopes, days).await
            }
            Command::Key(KeyCommand::List { tenant }) => self.list_keys(tenant).await,
            Command::Key(KeyCommand::Revoke { tenant, key }) => self.revoke_key(tenant, key).await,
            Command::Host(HostCommand::Token { minutes }) => self.make_join_token(minutes).await,
            Command::Host(HostCommand::List) => self.list_hosts().await,
            Command::Host(HostCommand::Cordon { host }) => self.set_host_state(host, "cordoned").await,
            Command::Host(HostCommand::Uncordon { host }) => self.set_host_state(host, "active").await,
            Command::Host(HostCommand::Remove { host }) => self.set_host_state(host, "removed").await,
        }
    }

    async fn create_tenant(&self, name: String) -> Result<Answer, Error> {
        check_name(&name)?;
        let now_us = self.clock.now_us();
        let slug = Slug::derive(&name).to_string();
        let row = Tenant {
            id: fresh::<TenantId>().to_string(),
            slug: slug.clone(),
            state: "active".to_owned(),
            plan: serde_json::json!({}),
            created_us: now_us,
            name,
        };
        let (id, workspace_id) = (row.id.clone(), uuid::Uuid::new_v4().to_string());
        let (workspace, project) = defaults(&row, &workspace_id, now_us);
        let name = row.name.clone();
        let made = self.store.write(move |tx| {
            if !tenant::insert(tx, &row)? {
                return Ok(false);
            }
            tenant::insert_workspace(tx, &workspace)?;
            tenant::insert_project(tx, &project)?;
            audit(tx, &row.id, "tenant.created", "tenant", &row.id, now_us)?;
            Ok(true)
        });
        if made.await? {
            Ok(Answer::Tenant { id, slug, workspace_id })
        } else {
            Err(Error::TenantExists(name))
        }
    }

    async fn list_tenants(&self) -> Result<Answer, Error> {
        let rows = self.store.read(tenant::list).await?;
        Ok(Answer::Tenants(rows.into_iter().map(|row| vec![row.id, row.slug, row.state, row.name]).collect()))
    }

    async fn create_key(
        &self,
        tenant: String,
        name: String,
        workspace: Option<String>,
        scopes: Vec<String>,
        days: Option<u32>,
    ) -> Result<Answer, Error> {
        check_name(&name)?;
        let scopes = if scopes.is_empty() { vec![Scope::Admin.as_str().to_owned()] } else { scopes };
        if let Some(unknown) = scopes.iter().find(|scope| Scope::parse(scope).is_none()) {
            return Err(Error::Invalid(format!(
                "there is no scope {unknown:?}: {}",
                Scope::words().join(", ")
            )));
        }
        if days.is_some_and(|days| !(1..=LIFETIME_DAYS_MAX).contains(&days)) {
            return Err(Error::Invalid(format!(
                "a key is good for 1 to {LIFETIME_DAYS_MAX} days; leave --days out for no end"
            )));
        }
        let now_us = self.clock.now_us();
        let kind = if workspace.is_some() { "w" } else { "live" };
        let made = app::key::generate(&self.key_prefix, kind);
        let (plaintext, prefix, sha256) = made.map_err(|error| Error::Key(Box::new(error)))?;
        let mut row = ApiKey {
            id: fresh::<KeyId>().to_string(),
            tenant_id: String::new(),
            workspace_id: None,
            name,
            prefix,
            sha256,
            scopes,
            rate_limit_rpm: None,
            actor: ACTOR.to_owned(),
            created_us: now_us,
            expires_us: days.map(|days| now_us + i64::from(days) * DAY_US),
            revoked_us: None,
            last_used_us: None,
        };
        let owner = self.store.examine(move |tx| find_owner(tx, &tenant, workspace.as_deref())).await?;
        (row.tenant_id, row.workspace_id) = owner;
        let id = row.id.clone();
        let stored = self.store.write(move |tx| {
            api_key::insert(tx, &row)?;
            audit(tx, &row.tenant_id, "api_key.created", "api_key", &row.id, now_us)
        });
        stored.await?;
        let note = "Keep this key: it is stored as a hash and cannot be shown again.".to_owned();
        Ok(Answer::Made { secret: plaintext.expose().to_owned(), id, note })
    }

    async fn list_keys(&self, tenant: String) -> Result<Answer, Error> {
        let now_us = self.clock.now_us();
        let keys = self.store.examine(move |tx| {
            let tenant = find_tenant(tx, &tenant)?;
            Ok::<_, Error>(api_key::list(tx, &tenant.id)?)
        });
        let line = |key: ApiKey| {
            let state = match key {
                ApiKey { revoked_us: Some(_), .. } => "revoked",
                ApiKey { expires_us: Some(expires_us), .. } if expires_us <= now_us => "expired",
                _ => "live",
            };
            let workspace = key.workspace_id.unwrap_or_else(|| "-".to_owned());
            vec![key.id, key.prefix, state.to_owned(), workspace, key.scopes.join(","), key.name]
        };
        Ok(Answer::Keys(keys.await?.into_iter().map(line).collect()))
    }

    async fn revoke_key(&self, tenant: String, key: String) -> Result<Answer, Error> {
        let now_us = self.clock.now_us();
        let revoked = self.store.decide(move |tx| {
            let tenant = find_tenant(tx, &tenant)?;
            let keys = api_key::list(tx, &tenant.id)?;
            let mut named = keys.into_iter().filter(|row| row.id == key || row.prefix == key);
            let (Some(row), None) = (named.next(), named.next()) else {
                return Err(Error::NoKey(key.clone()));
            };
            if !api_key::revoke(tx, &tenant.id, &row.id, now_us)? {
                return Err(Error::NoKey(key.clone()));
            }
            audit(tx, &tenant.id, "api_key.revoked", "api_key", &row.id, now_us)?;
            Ok(row.id)
        });
        Ok(Answer::Done { what: format!("{} is revoked", revoked.await?) })
    }

    async fn make_join_token(&self, minutes: u32) -> Result<Answer, Error> {
        if !(1..=TOKEN_MINUTES_MAX).contains(&minutes) {
            return Err(Error::Invalid(format!("a join token is good for 1 to {TOKEN_MINUTES_MAX} minutes")));
        }
        let mut random = [0u8; TOKEN_BYTES];
        getrandom::fill(&mut random).map_err(|_| Error::Random)?;
        let token = format!("roost_join_{}", URL_SAFE_NO_PAD.encode(random));
        let now_us = self.clock.now_us();
        let row = JoinToken {
            id: fresh::<JoinId>().to_string(),
            sha256: fleet::hash_token(&token),
            actor: ACTOR.to_owned(),
            created_us: now_us,
            expires_us: now_us + i64::from(minutes) * 60_000_000,
            used_us: None,
            host_id: None,
        };
        let id = row.id.clone();
        self.store.write(move |tx| host::insert_join_token(tx, &row)).await?;
        let note =
            format!("Good for one host, for {minutes} minutes. Put it into the agent's join_token_file.");
        Ok(Answer::Made { secret: token, id, note })
    }

    async fn list_hosts(&self) -> Result<Answer, Error> {
        let now_us = self.clock.now_us();
        let hosts = self.store.read(host::list).await?;
        let line = |row: host::Host| {
            let memory = format!("{}/{}", row.memory_reserved_mib, row.memory_mib);
            let disk = format!("{}/{}", row.disk_reserved_mib, row.disk_mib);
            let seen = (now_us.saturating_sub(row.seen_us) / 1_000_000).to_string();
            vec![row.id, row.state, row.vmm, memory, disk, seen, row.ensure_address]
        };
        Ok(Answer::Hosts(hosts.into_iter().map(line).collect()))
    }

    async fn set_host_state(&self, id: String, state: &'static str) -> Result<Answer, Error> {
        let named = id.clone();
        let changed = self.store.write(move |tx| host::set_state(tx, &named, state)).await?;
        if changed {
            Ok(Answer::Done { what: format!("{id} is {state}") })
        } else {
            Err(Error::Invalid(format!("no host {id:?}: `host list` shows them")))
        }
    }
}

fn defaults(row: &Tenant, workspace_id: &str, now_us: i64) -> (Workspace, Project) {
    let workspace = Workspace {
        id: workspace_id.to_owned(),
        tenant_id: row.id.clone(),
        slug: "default".to_owned(),
        name: "Default".to_owned(),
        external_workspace_id: None,
        is_default: true,
        created_us: now_us,
    };
    let project = Project {
        id: uuid::Uuid::new_v4().to_string(),
        tenant_id: row.id.clone(),
        workspace_id: workspace_id.to_owned(),
        slug: "default".to_owned(),
        name: "Default".to_owned(),
        external_project_id: None,
        is_default: true,
        created_us: now_us,
    };
    (workspace, project)
}

fn check_name(name: &str) -> Result<(), Error> {
    let is_good =
        !name.trim().is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control);
    if is_good {
        Ok(())
    } else {
        Err(Error::Invalid(format!("a name has 1 to {NAME_BYTES_MAX} bytes and no control character")))
    }
}

fn find_tenant(tx: &mut Tx<'_>, named: &str) -> Result<Tenant, Error> {
    let found = match tenant::find(tx, named)? {
        Some(found) => Some(found),
        None => tenant::find_by_slug(tx, named)?,
    };
    found.ok_or_else(|| Error::NoTenant(named.to_owned()))
}

fn find_owner(
    tx: &mut Tx<'_>,
    named: &str,
    workspace: Option<&str>,
) -> Result<(String, Option<String>), Error> {
    let tenant = find_tenant(tx, named)?;
    let Some(named) = workspace else { return Ok((tenant.id, None)) };
    let found = match tenant::find_workspace(tx, &tenant.id, named)? {
        Some(found) => Some(found),
        None => tenant::find_workspace_by_slug(tx, &tenant.id, named)?,
    };
    let found = found.ok_or_else(|| Error::NoWorkspace(named.to_owned()))?;
    Ok((tenant.id, Some(found.id)))
}

fn audit(
    tx: &mut Tx<'_>,
    tenant: &str,
    action: &str,
    resource_type: &str,
    resource_id: &str,
    now_us: i64,
) -> Result<(), store::Error> {
    let row = audit_log::AuditRow {
        id: fresh::<EventId>().to_string(),
        tenant_id: tenant.to_owned(),
        time_us: now_us,
        action: action.to_owned(),
        actor: ACTOR.to_owned(),
        resource_type: resource_type.to_owned(),
        resource_id: resource_id.to_owned(),
        workspace_id: None,
        project_id: None,
        external_workspace_id: None,
        external_user_id: None,
        external_project_id: None,
        metadata: Default::default(),
        ip_address: None,
        request_id: None,
    };
    audit_log::insert(tx, &row)
}
