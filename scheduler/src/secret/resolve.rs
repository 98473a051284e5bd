//! Which value a placeholder means for the sandbox that sent it, and why.
//!
//! ```text
//! placeholder ──body is the HMAC of (lineage, one of the tenant's keys)?──no──▶ foreign
//!      └──yes──▶ six steps (roost_domain::resolver) ──none──▶ none (the placeholder goes out untouched)
//!                         └──found──▶ lease
//! ```

use std::time::Duration;

use roost_domain::external_id::ExternalId;
use roost_domain::host_name::Pattern;
use roost_domain::id::{SandboxId, SecretId};
use roost_domain::resolver::{self, Asker, Candidate, EndUserCredentials, Owner, Skipped, Step};
use roost_domain::sabotage::Defence;

use super::key::{Key, Purpose, place};
use super::{Error, Plaintext, Vault, explain_skipped, find_switch};
use crate::store::sandbox::Sandbox;
use crate::store::secret::{Binding, Secret};
use crate::store::{Tx, sandbox, secret};

/// What the answer to one placeholder is.
#[derive(Debug)]
pub enum Outcome {
    Lease(Box<Lease>),
    /// Nothing resolves: the reason per step.
    Nothing {
        reason: String,
    },
    /// Not a placeholder of this sandbox's lineage.
    Foreign {
        reason: &'static str,
    },
}

/// A value on its way to one egress process.
#[derive(Debug)]
pub struct Lease {
    pub secret: Secret,
    pub logical_key: String,
    pub step: Step,
    value: Plaintext,
    pub expires_us: i64,
}

impl Lease {
    /// The value, for the one message that carries it to the egress process.
    pub fn secret_bytes(&self) -> &[u8] {
        self.value.expose()
    }
}

/// For one key: who wins, and why the others do not.
#[derive(Debug, Clone)]
pub struct Explanation {
    pub logical_key: String,
    pub env: Option<String>,
    pub found: Option<(Step, Secret)>,
    /// Steps before the one that matched, with their reasons.
    pub skipped: Vec<(Step, Skipped)>,
}

/// Everything the walk needs about one sandbox, read once.
pub(super) struct Known {
    asker: Asker,
    bound: Vec<(Binding, Secret)>,
    in_scope: Vec<Secret>,
    switch: EndUserCredentials,
}

impl Vault {
    /// Answers an egress process. `asked` is the sandbox as this scheduler knows it, not as the host says.
    pub fn resolve(
        &self,
        tx: &mut Tx<'_>,
        asked: &Sandbox,
        placeholders: &[String],
        bound: Duration,
    ) -> Result<Vec<(String, Outcome)>, Error> {
        let now_us = self.now_us();
        let known = Known::read(tx, asked)?;
        let key = self.shared.master.find_data_key(tx, &asked.tenant_id, Purpose::Placeholder)?;
        let keys = secret::list_logical_keys(tx, &asked.tenant_id)?;
        let bodies: Vec<(String, &String)> = match &key {
            None => vec![],
            Some(key) => {
                keys.iter().filter_map(|logical| Some((self.body(key, asked, logical)?, logical))).collect()
            }
        };
        let mut outcomes = Vec::new();
        for placeholder in placeholders {
            let logical = self.shared.format.body_of(placeholder).map(|body| {
                bodies.iter().find(|(known, _)| known == body).map(|(_, logical)| logical.as_str())
            });
            let outcome = match logical {
                None => Outcome::Foreign { reason: "not_a_placeholder" },
                Some(None) => Outcome::Foreign { reason: "other_lineage" },
                Some(Some(logical)) => self.lease(tx, &known, logical, now_us, bound)?,
            };
            outcomes.push((placeholder.clone(), outcome));
        }
        Ok(outcomes)
    }

    fn lease(
        &self,
        tx: &mut Tx<'_>,
        known: &Known,
        logical: &str,
        now_us: i64,
        bound: Duration,
    ) -> Result<Outcome, Error> {
        let candidates = known.candidates(logical);
        let resolution = resolver::resolve(&known.asker, &candidates, known.switch, now_us);
        let Some((step, winner)) = resolution.found else {
            return Ok(Outcome::Nothing { reason: explain_skipped(&resolution.skipped) });
        };
        let secret = known.secret(&winner.secret).ok_or(Error::NoSecret)?.clone();
        let value = self.open(tx, &secret)?;
        let bound_us = now_us.saturating_add(i64::try_from(bound.as_micros()).unwrap_or(i64::MAX));
        let expires_us = secret.expires_us.map_or(bound_us, |expires_us| expires_us.min(bound_us));
        Ok(Outcome::Lease(Box::new(Lease {
            logical_key: logical.to_owned(),
            step,
            value,
            expires_us,
            secret,
        })))
    }

    /// For every key the sandbox could ask for: which secret it would get now, and why not the others.
    pub async fn explain(&self, tenant: &str, sandbox_id: &str) -> Result<Vec<Explanation>, Error> {
        let (tenant, id, now_us) = (tenant.to_owned(), sandbox_id.to_owned(), self.now_us());
        let read = self.shared.store.read(move |tx| {
            let Some(asked) = sandbox::find(tx, &tenant, &id)? else { return Ok(None) };
            Ok(Some(Known::read(tx, &asked)?))
        });
        let known = read.await?.ok_or(Error::NoSandbox)?;
        Ok(known.explain(now_us))
    }

    /// The text of a placeholder's body; none if the key is not one that can be written.
    fn body(&self, key: &Key, asked: &Sandbox, logical: &str) -> Option<String> {
        let placeholder = self.placeholder(key, asked, logical);
        self.shared.format.body_of(&placeholder).map(str::to_owned)
    }

    pub(super) fn placeholder(&self, key: &Key, asked: &Sandbox, logical: &str) -> String {
        let lineage = if Defence::PlaceholderLineage.is_off() { "" } else { &asked.lineage };
        let digest = key.authenticate(&place(&["placeholder", lineage, logical]));
        self.shared.format.compose(logical, &digest)
    }
}

impl Known {
    pub(super) fn read(tx: &mut Tx<'_>, asked: &Sandbox) -> Result<Known, crate::store::Error> {
        let mut scopes = vec![("tenant", ""), ("workspace", asked.workspace_id.as_str())];
        let labelled = [
            ("user", &asked.owner_user_id),
            ("external_user", &asked.external_user_id),
            ("external_workspace", &asked.external_workspace_id),
        ];
        scopes.extend(labelled.iter().filter_map(|(scope, key)| Some((*scope, key.as_deref()?))));
        Ok(Known {
            asker: asker(asked)?,
            bound: secret::list_bound(tx, &asked.id)?,
            in_scope: secret::list_in_scopes(tx, &asked.tenant_id, &scopes)?,
            switch: find_switch(tx, &asked.tenant_id)?,
        })
    }

    /// Secrets with this key: bound ones under the key of their binding, the others under their own.
    fn candidates(&self, logical: &str) -> Vec<Candidate> {
        let bound = self.bound.iter().filter(|(binding, _)| binding.logical_key == logical);
        let bound = bound.filter_map(|(_, row)| candidate(row, Some(self.asker.sandbox)));
        let in_scope = self.in_scope.iter().filter(|row| row.logical_key == logical);
        bound.chain(in_scope.filter_map(|row| candidate(row, None))).collect()
    }

    fn secret(&self, id: &SecretId) -> Option<&Secret> {
        let id = id.to_string();
        self.bound.iter().map(|(_, row)| row).chain(&self.in_scope).find(|row| row.id == id)
    }

    /// Every key with the variable it shows as, if it shows as one.
    fn keys(&self) -> std::collections::BTreeMap<String, Option<String>> {
        let in_scope = self.in_scope.iter().map(|row| (row.logical_key.clone(), row.expose_as_env.clone()));
        let bound = self
            .bound
            .iter()
            .map(|(binding, _)| (binding.logical_key.clone(), binding.expose_as_env.clone()));
        let mut keys = std::collections::BTreeMap::new();
        for (key, env) in in_scope.chain(bound) {
            let known = keys.entry(key).or_insert(None);
            *known = known.take().or(env);
        }
        keys
    }

    pub(super) fn explain(&self, now_us: i64) -> Vec<Explanation> {
        let explain = |(logical_key, env): (String, Option<String>)| {
            let candidates = self.candidates(&logical_key);
            let resolution = resolver::resolve(&self.asker, &candidates, self.switch, now_us);
            let found =
                resolution.found.and_then(|(step, row)| Some((step, self.secret(&row.secret)?.clone())));
            Explanation { found, skipped: resolution.skipped, logical_key, env }
        };
        self.keys().into_iter().map(explain).collect()
    }
}

fn asker(asked: &Sandbox) -> Result<Asker, crate::store::Error> {
    let unknown = |column, word: &str| crate::store::Error::UnknownWord { column, word: word.to_owned() };
    let label = |column, text: &Option<String>| {
        let parsed = ExternalId::parse_optional(text.as_deref());
        parsed.map_err(|_| unknown(column, text.as_deref().unwrap_or_default()))
    };
    Ok(Asker {
        sandbox: SandboxId::parse(&asked.id).map_err(|_| unknown("sandbox.id", &asked.id))?,
        owner_user_id: asked.owner_user_id.clone(),
        external_user: label("external_user_id", &asked.external_user_id)?,
        external_workspace: label("external_workspace_id", &asked.external_workspace_id)?,
        workspace_id: asked.workspace_id.clone(),
    })
}

/// A row as the resolver sees it; a row it cannot see never resolves.
fn candidate(row: &Secret, bound_to: Option<SandboxId>) -> Option<Candidate> {
    let owner = match row.scope.as_str() {
        "user" => Owner::User(row.scope_key.clone()),
        "external_user" => Owner::ExternalUser(ExternalId::parse(&row.scope_key).ok()?),
        "external_workspace" => Owner::ExternalWorkspace(ExternalId::parse(&row.scope_key).ok()?),
        "workspace" => Owner::Workspace(row.scope_key.clone()),
        "tenant" => Owner::Tenant,
        _ => return None,
    };
    Some(Candidate {
        secret: SecretId::parse(&row.id).ok()?,
        owner,
        bound_to: bound_to.into_iter().collect(),
        enabled: row.enabled,
        expires_us: row.expires_us,
        allowed_hosts: row.allowed_hosts.iter().filter_map(|host| Pattern::parse(host).ok()).collect(),
    })
}
