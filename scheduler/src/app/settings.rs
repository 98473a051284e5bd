//! A tenant's settings: one named value each, with its default here.

use roost_api::settings::{PatchSettings, PreviewSettings, SecretSettings, SecuritySettings, Settings};
use serde_json::{Value, json};

use super::{App, Caller, Error, Scope, audit};
use crate::store::setting::{self, Setting};
use crate::store::{self, Tx};

pub const END_USER_CREDENTIALS: &str = crate::secret::SWITCH_SETTING;
pub const FRAME_ANCESTORS: &str = "previews.frame_ancestors";
pub const MAX_SHARE_TTL: &str = "previews.max_share_ttl_sec";
pub const UNBOUND_HOSTS: &str = crate::secret::UNBOUND_SETTING;

const MAX_FRAME_ANCESTORS: usize = 20;
const MIN_SHARE_TTL_S: u64 = 60;

pub async fn get(app: &App, caller: &Caller) -> Result<Settings, Error> {
    caller.require(Scope::SettingsRead)?;
    let (tenant_id, limit) = (caller.tenant_id.clone(), app.limits.max_share_ttl_s);
    Ok(app.store.read(move |tx| read(tx, &tenant_id, limit)).await?)
}

/// Changes what is given. A workspace's key does not change what holds for the whole tenant.
pub async fn change(app: &App, caller: &Caller, request: PatchSettings) -> Result<Settings, Error> {
    caller.require(Scope::SettingsWrite)?;
    if caller.workspace_id.is_some() {
        return Err(Error::WorkspaceForbidden);
    }
    let changes = check(request, app.limits.max_share_ttl_s)?;
    let (now_us, limit) = (app.now_us(), app.limits.max_share_ttl_s);
    let names: Vec<&str> = changes.iter().map(|(name, _)| *name).collect();
    let audited =
        audit::row(caller, now_us, "settings.updated", "tenant", &caller.tenant_id).with("settings", &names);
    let caller = caller.clone();
    let written = app.store.write(move |tx| {
        for (name, value) in &changes {
            let row = Setting {
                tenant_id: caller.tenant_id.clone(),
                name: (*name).to_owned(),
                value: value.clone(),
                actor: caller.actor(),
                updated_us: now_us,
            };
            setting::set(tx, &row)?;
        }
        if !changes.is_empty() {
            audited.record(tx)?;
        }
        read(tx, &caller.tenant_id, limit)
    });
    Ok(written.await?)
}

/// The settings of a tenant as they hold now.
pub fn read(tx: &mut Tx<'_>, tenant_id: &str, max_share_ttl_s: u64) -> Result<Settings, store::Error> {
    let rows = setting::list(tx, tenant_id)?;
    let value = |name: &str| rows.iter().find(|row| row.name == name).map(|row| &row.value);
    let ancestors = value(FRAME_ANCESTORS).and_then(Value::as_array);
    Ok(Settings {
        security: SecuritySettings {
            allow_end_user_scoped_credentials: value(END_USER_CREDENTIALS)
                .and_then(Value::as_bool)
                .unwrap_or(true),
        },
        previews: PreviewSettings {
            frame_ancestors: ancestors
                .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
                .unwrap_or_default(),
            max_share_ttl_sec: value(MAX_SHARE_TTL)
                .and_then(Value::as_u64)
                .unwrap_or(max_share_ttl_s)
                .min(max_share_ttl_s),
        },
        secrets: SecretSettings {
            unbound_hosts: value(UNBOUND_HOSTS).and_then(Value::as_str).unwrap_or("refuse").to_owned(),
        },
    })
}

fn check(request: PatchSettings, max_share_ttl_s: u64) -> Result<Vec<(&'static str, Value)>, Error> {
    let mut changes = Vec::new();
    if let Some(allow) = request.security.allow_end_user_scoped_credentials {
        changes.push((END_USER_CREDENTIALS, json!(allow)));
    }
    if let Some(origins) = request.previews.frame_ancestors {
        if origins.len() > MAX_FRAME_ANCESTORS {
            return Err(Error::invalid(FRAME_ANCESTORS, format!("at most {MAX_FRAME_ANCESTORS}")));
        }
        for origin in &origins {
            check_origin(origin)?;
        }
        changes.push((FRAME_ANCESTORS, json!(origins)));
    }
    if let Some(seconds) = request.previews.max_share_ttl_sec {
        if !(MIN_SHARE_TTL_S..=max_share_ttl_s).contains(&seconds) {
            return Err(Error::invalid(MAX_SHARE_TTL, format!("{MIN_SHARE_TTL_S} to {max_share_ttl_s}")));
        }
        changes.push((MAX_SHARE_TTL, json!(seconds)));
    }
    if let Some(unbound) = request.secrets.unbound_hosts {
        if !matches!(unbound.as_str(), "refuse" | "allow") {
            return Err(Error::invalid(UNBOUND_HOSTS, "refuse or allow"));
        }
        changes.push((UNBOUND_HOSTS, json!(unbound)));
    }
    Ok(changes)
}

/// It is put into a header as it stands: scheme, host, perhaps a port, and nothing that could end a
/// directive.
fn check_origin(origin: &str) -> Result<(), Error> {
    let problem =
        || Error::invalid(FRAME_ANCESTORS, "origins like https://app.example.com or https://*.example.com");
    let (scheme, authority) = origin.split_once("://").ok_or_else(problem)?;
    let local = authority == "localhost"
        || authority.starts_with("localhost:")
        || authority.starts_with("127.0.0.1:");
    if scheme != "https" && !(scheme == "http" && local) {
        return Err(problem());
    }
    let host = authority.strip_prefix("*.").unwrap_or(authority);
    roost_domain::host_name::Host::parse_authority(host).map(|_| ()).map_err(|_| problem())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_cannot_smuggle_a_directive() {
        for good in [
            "https://app.cliniciq.com",
            "https://*.example.com",
            "https://a.example:8443",
            "http://localhost:4000",
        ] {
            assert!(check_origin(good).is_ok(), "{good}");
        }
        for bad in [
            "*",
            "https://*",
            "app.example.com",
            "http://app.example.com",
            "https://a.example; script-src *",
            "https://a.example/x",
            "https://a.example\r\nX: y",
            "https://",
            "data:",
            "https://u@a.example",
            "'self'",
        ] {
            assert!(check_origin(bad).is_err(), "{bad}");
        }
    }
}
