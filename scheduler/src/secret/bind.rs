//! Bindings: a secret given to one sandbox directly, whatever its scope.

use roost_domain::id::BindingId;
use roost_domain::sabotage::Defence;

use super::{Error, Plaintext, Vault, check};
use crate::store::sandbox::Sandbox;
use crate::store::secret::{Binding, Secret};
use crate::store::{Tx, sandbox, secret};

#[derive(Debug, Clone)]
pub struct NewBinding {
    pub tenant_id: String,
    pub secret_id: String,
    pub sandbox_id: String,
    /// None: under the secret's own logical key.
    pub expose_as_env: Option<String>,
    /// Proof of knowing it, for a secret that belongs to another end-customer than the sandbox.
    pub value: Option<Plaintext>,
    pub actor: String,
}

impl Vault {
    /// Binds a secret to a sandbox, in the caller's transaction.
    pub fn bind(&self, tx: &mut Tx<'_>, new: &NewBinding) -> Result<Binding, Error> {
        bind(self, tx, new)
    }

    /// Removes a binding; what was leased through it ends with the next change heard.
    pub fn unbind(&self, tx: &mut Tx<'_>, tenant: &str, id: &str) -> Result<(), Error> {
        if secret::remove_binding(tx, tenant, id, self.now_us())? { Ok(()) } else { Err(Error::NoBinding) }
    }
}

pub(super) fn bind(vault: &Vault, tx: &mut Tx<'_>, new: &NewBinding) -> Result<Binding, Error> {
    if let Some(env) = &new.expose_as_env {
        check::env(env)?;
    }
    let row = secret::find(tx, &new.tenant_id, &new.secret_id)?.ok_or(Error::NoSecret)?;
    let target = sandbox::find(tx, &new.tenant_id, &new.sandbox_id)?;
    let target = target.filter(|target| target.desired_run != "destroyed").ok_or(Error::NoSandbox)?;
    if is_of_another_customer(&row, &target) && !Defence::OtherCustomer.is_off() {
        let known = vault.open(tx, &row)?;
        if !new.value.as_ref().is_some_and(|value| value.is_same(&known)) {
            return Err(Error::NotTheirs);
        }
    }
    let expose_as_env = new.expose_as_env.clone().or_else(|| row.expose_as_env.clone());
    let logical_key = expose_as_env.clone().unwrap_or_else(|| row.logical_key.clone());
    let binding = Binding {
        id: roost_daemon::ids::fresh::<BindingId>().to_string(),
        tenant_id: new.tenant_id.clone(),
        secret_id: row.id.clone(),
        sandbox_id: target.id,
        logical_key: logical_key.clone(),
        expose_as_env,
        actor: new.actor.clone(),
        created_us: vault.now_us(),
    };
    if !secret::insert_binding(tx, &binding)? {
        return Err(Error::EnvTaken { logical_key });
    }
    secret::insert_logical_key(tx, &new.tenant_id, &logical_key)?;
    secret::touch(tx, &row.id, vault.now_us().max(row.updated_us + 1))?;
    Ok(binding)
}

/// An end-customer's own secret on a sandbox that is not theirs.
fn is_of_another_customer(row: &Secret, target: &Sandbox) -> bool {
    let owner = match row.scope.as_str() {
        "external_user" => &target.external_user_id,
        "external_workspace" => &target.external_workspace_id,
        _ => return false,
    };
    owner.as_deref() != Some(row.scope_key.as_str())
}
