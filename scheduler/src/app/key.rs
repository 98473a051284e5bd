//! API keys: the look-up behind every call, and their life.
//!
//! A key is `<prefix><kind>_<43 random characters>`; only its SHA-256 and its first twelve characters are
//! stored.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use roost_api::key::{CreateKey, CreatedKey, Identity, Key, PatchKey};
use roost_api::{OneTime, Timestamp};
use roost_domain::id::KeyId;
use roost_domain::limits;
use roost_domain::token;
use sha2::{Digest as _, Sha256};

use super::{App, Caller, Error, Scope, audit, text};
use crate::store::api_key::{self, ApiKey};
use crate::store::{Tx, tenant};

/// What is shown of a key in lists and audit rows.
const PREFIX_CHARACTERS: usize = 12;
const KEY_BYTES: usize = 32;
/// A use is noted at most this often for each key: it is a write.
const USE_INTERVAL_US: i64 = 60_000_000;

impl App {
    /// Whose credential this is, if it is one of ours and still alive.
    pub async fn authenticate(&self, token: &str, request_id: String) -> Result<Caller, Error> {
        if self.is_browser_token(token) {
            return Err(Error::BrowserToken);
        }
        let (sha256, now_us) = (hash(token), self.now_us());
        let found = self.store.read(move |tx| api_key::find_live(tx, &sha256, now_us)).await?;
        let Some(key) = found else {
            return Err(self.explain_refusal(token).await?);
        };
        if key.last_used_us.is_none_or(|last| last + USE_INTERVAL_US < now_us) {
            let id = key.id.clone();
            self.store.write(move |tx| api_key::record_use(tx, &id, now_us)).await?;
        }
        Ok(Caller {
            scopes: key.scopes.iter().filter_map(|name| Scope::parse(name)).collect(),
            tenant_id: key.tenant_id,
            key_id: key.id,
            key_prefix: key.prefix,
            workspace_id: key.workspace_id,
            request_id,
        })
    }

    /// Why a key is not alive. Only its holder learns it: the look-up is by the whole key.
    async fn explain_refusal(&self, token: &str) -> Result<Error, Error> {
        let sha256 = hash(token);
        let found = self.store.read(move |tx| api_key::find_by_sha256(tx, &sha256)).await?;
        Ok(match found {
            Some(key) if key.revoked_us.is_some() => Error::CredentialRevoked,
            Some(key) if key.expires_us.is_some_and(|expires_us| expires_us <= self.now_us()) => {
                Error::CredentialExpired
            }
            _ => Error::Credential { problem: "the API key is unknown" },
        })
    }

    fn is_browser_token(&self, token: &str) -> bool {
        token::Kind::ALL.iter().any(|kind| token.starts_with(kind.prefix(&self.brand.token_brand).as_str()))
    }
}

fn hash(token: &str) -> Vec<u8> {
    Sha256::digest(token.as_bytes()).to_vec()
}

/// A new key as its owner sees it once, and as it is stored.
pub fn generate(brand_prefix: &str, kind: &str) -> Result<(OneTime, String, Vec<u8>), Error> {
    let mut random = [0u8; KEY_BYTES];
    getrandom::fill(&mut random).map_err(|source| Error::internal("make random bytes for a key", source))?;
    let key = format!("{brand_prefix}{kind}_{}", URL_SAFE_NO_PAD.encode(random));
    let prefix = key.chars().take(PREFIX_CHARACTERS).collect();
    let sha256 = hash(&key);
    Ok((OneTime::new(key), prefix, sha256))
}

pub async fn create(app: &App, caller: &Caller, request: CreateKey) -> Result<CreatedKey, Error> {
    caller.require(Scope::KeysWrite)?;
    let name = text::check_name("name", &request.name)?;
    text::check_remark("description", request.description)?;
    text::check_metadata(request.metadata.unwrap_or_default())?;
    let scopes = grantable(caller, request.scopes)?;
    let workspace_id = confine(caller, request.workspace_id)?;
    let now_us = app.now_us();
    let expires_us = request.expires_at.map(Timestamp::as_micros);
    if expires_us.is_some_and(|expires_us| expires_us <= now_us) {
        return Err(Error::invalid("expires_at", "must lie in the future"));
    }
    let kind = if workspace_id.is_some() { "w" } else { "live" };
    let (plaintext, prefix, sha256) = generate(&app.brand.key_prefix, kind)?;
    let row = ApiKey {
        id: roost_daemon::ids::fresh::<KeyId>().to_string(),
        tenant_id: caller.tenant_id.clone(),
        workspace_id,
        name,
        prefix,
        sha256,
        scopes,
        rate_limit_rpm: None,
        actor: caller.actor(),
        created_us: now_us,
        expires_us,
        revoked_us: None,
        last_used_us: None,
    };
    let audited = audit::row(caller, now_us, "api_key.created", "api_key", &row.id)
        .with("name", &row.name)
        .with("key_prefix", &row.prefix)
        .with("scopes", &row.scopes);
    let stored = row.clone();
    app.store
        .decide(move |tx| {
            if let Some(workspace) = &stored.workspace_id {
                tenant::find_workspace(tx, &stored.tenant_id, workspace)?
                    .ok_or(Error::NotFound { what: "workspace" })?;
            }
            api_key::insert(tx, &stored)?;
            audited.insert(tx)
        })
        .await?;
    Ok(CreatedKey { key: plaintext, record: record(row) })
}

/// A key never grants more than the key that made it.
fn grantable(caller: &Caller, wanted: Option<Vec<String>>) -> Result<Vec<String>, Error> {
    let Some(names) = wanted else {
        return Ok(caller.scopes.iter().map(|scope| scope.as_str().to_owned()).collect());
    };
    if names.is_empty() {
        return Err(Error::invalid("scopes", "at least one, or leave the field out"));
    }
    for name in &names {
        let scope = Scope::parse(name).ok_or_else(|| Error::TokenScope { scope: limits::excerpt(name) })?;
        caller.require(scope)?;
    }
    Ok(names)
}

/// A workspace-scoped key makes keys of its own workspace only.
fn confine(caller: &Caller, wanted: Option<String>) -> Result<Option<String>, Error> {
    match (&caller.workspace_id, wanted) {
        (None, wanted) => Ok(wanted),
        (Some(own), None) => Ok(Some(own.clone())),
        (Some(own), Some(wanted)) if *own == wanted => Ok(Some(wanted)),
        (Some(_), Some(_)) => Err(Error::WorkspaceForbidden),
    }
}

pub async fn list(app: &App, caller: &Caller) -> Result<Vec<Key>, Error> {
    caller.require(Scope::KeysRead)?;
    let tenant_id = caller.tenant_id.clone();
    let keys = app.store.read(move |tx| api_key::list(tx, &tenant_id)).await?;
    Ok(keys.into_iter().filter(|key| sees(caller, key)).map(record).collect())
}

pub async fn get(app: &App, caller: &Caller, id: String) -> Result<Key, Error> {
    caller.require(Scope::KeysRead)?;
    let tenant_id = caller.tenant_id.clone();
    let key = app.store.read(move |tx| api_key::find(tx, &tenant_id, &id)).await?;
    key.filter(|key| sees(caller, key)).map(record).ok_or(Error::NotFound { what: "API key" })
}

/// Renames a key or changes what it may do from the next request on.
pub async fn patch(app: &App, caller: &Caller, id: String, request: PatchKey) -> Result<Key, Error> {
    caller.require(Scope::KeysWrite)?;
    let name = request.name.as_deref().map(|name| text::check_name("name", name)).transpose()?;
    let scopes = request.scopes.map(|scopes| grantable(caller, Some(scopes))).transpose()?;
    let audited = audit::row(caller, app.now_us(), "api_key.updated", "api_key", &id);
    let caller = caller.clone();
    let changed = app.store.decide(move |tx| {
        let mut key = find_own(tx, &caller, &id)?;
        key.name = name.clone().unwrap_or(key.name);
        key.scopes = scopes.clone().unwrap_or(key.scopes);
        if !api_key::update(tx, &key)? {
            return Err(Error::NotFound { what: "API key" });
        }
        audited.clone().with("name", &key.name).with("scopes", &key.scopes).insert(tx)?;
        Ok(key)
    });
    changed.await.map(record)
}

/// A new key in place of this one, which is dead from now on.
pub async fn rotate(app: &App, caller: &Caller, id: String) -> Result<CreatedKey, Error> {
    caller.require(Scope::KeysWrite)?;
    let (work_caller, wanted) = (caller.clone(), id.clone());
    let old = app.store.examine(move |tx| find_own(tx, &work_caller, &wanted)).await?;
    let request = CreateKey {
        name: old.name,
        scopes: Some(old.scopes),
        description: None,
        workspace_id: old.workspace_id,
        expires_at: old.expires_us.map(Timestamp::from_micros),
        metadata: None,
    };
    // The new one first: a failure in between leaves a key too many, never none.
    let made = create(app, caller, request).await?;
    revoke(app, caller, id).await?;
    Ok(made)
}

/// A key of this caller's that is not revoked.
fn find_own(tx: &mut Tx<'_>, caller: &Caller, id: &str) -> Result<ApiKey, Error> {
    let found = api_key::find(tx, &caller.tenant_id, id)?;
    let live = found.filter(|key| sees(caller, key) && key.revoked_us.is_none());
    live.ok_or(Error::NotFound { what: "API key" })
}

/// Revokes at once: the next request with the key is refused.
pub async fn revoke(app: &App, caller: &Caller, id: String) -> Result<(), Error> {
    caller.require(Scope::KeysWrite)?;
    let now_us = app.now_us();
    let audited = audit::row(caller, now_us, "api_key.revoked", "api_key", &id);
    let caller = caller.clone();
    app.store
        .decide(move |tx| {
            let key = api_key::find(tx, &caller.tenant_id, &id)?.filter(|key| sees(&caller, key));
            key.ok_or(Error::NotFound { what: "API key" })?;
            if api_key::revoke(tx, &caller.tenant_id, &id, now_us)? {
                audited.insert(tx)?;
            }
            Ok(())
        })
        .await
}

fn sees(caller: &Caller, key: &ApiKey) -> bool {
    caller.workspace_id.is_none() || caller.workspace_id == key.workspace_id
}

/// Who the credential belongs to.
pub async fn identify(app: &App, caller: &Caller) -> Result<Identity, Error> {
    let tenant_id = caller.tenant_id.clone();
    let tenant = app.store.read(move |tx| tenant::find(tx, &tenant_id)).await?;
    Ok(Identity {
        tenant_id: caller.tenant_id.clone(),
        tenant_name: tenant.map(|tenant| tenant.name).unwrap_or_default(),
        workspace_id: caller.workspace_id.clone(),
        principal: caller.principal(),
        key_id: caller.key_id.clone(),
        key_prefix: caller.key_prefix.clone(),
        scopes: caller.scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
    })
}

fn record(key: ApiKey) -> Key {
    Key {
        id: key.id,
        name: key.name,
        key_prefix: key.prefix,
        scopes: key.scopes,
        workspace_id: key.workspace_id,
        created_at: Timestamp::from_micros(key.created_us),
        expires_at: key.expires_us.map(Timestamp::from_micros),
        last_used_at: key.last_used_us.map(Timestamp::from_micros),
        revoked_at: key.revoked_us.map(Timestamp::from_micros),
    }
}
