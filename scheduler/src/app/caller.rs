//! Who calls: what the credential says and nothing that the request says.
//!
//! Owns the scopes and the two questions every operation asks first (may this caller do it; whose rows may it
//! see). Must not read a request: external ids and the body never widen what a caller may reach.

use std::collections::BTreeSet;

use roost_domain::sabotage::Defence;

use super::Error;

/// What a key may do. `admin` includes everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Admin,
    SandboxesRead,
    SandboxesWrite,
    PreviewsWrite,
    SecretsRead,
    SecretsWrite,
    UsageRead,
    AuditRead,
    SettingsRead,
    SettingsWrite,
    KeysRead,
    KeysWrite,
}

const SCOPES: &[(Scope, &str)] = &[
    (Scope::Admin, "admin"),
    (Scope::SandboxesRead, "sandboxes:read"),
    (Scope::SandboxesWrite, "sandboxes:write"),
    (Scope::PreviewsWrite, "previews:write"),
    (Scope::SecretsRead, "secrets:read"),
    (Scope::SecretsWrite, "secrets:write"),
    (Scope::UsageRead, "usage:read"),
    (Scope::AuditRead, "audit:read"),
    (Scope::SettingsRead, "settings:read"),
    (Scope::SettingsWrite, "settings:write"),
    (Scope::KeysRead, "keys:read"),
    (Scope::KeysWrite, "keys:write"),
];

impl Scope {
    pub fn as_str(self) -> &'static str {
        SCOPES.iter().find(|(scope, _)| *scope == self).map_or("admin", |(_, name)| name)
    }

    pub fn words() -> Vec<&'static str> {
        SCOPES.iter().map(|(_, word)| *word).collect()
    }

    pub fn parse(name: &str) -> Option<Self> {
        SCOPES.iter().find(|(_, known)| *known == name).map(|(scope, _)| *scope)
    }

    /// Writing includes reading.
    fn granted_by(self) -> &'static [Scope] {
        match self {
            Scope::SandboxesRead => &[Scope::SandboxesRead, Scope::SandboxesWrite],
            Scope::SandboxesWrite => &[Scope::SandboxesWrite],
            Scope::PreviewsWrite => &[Scope::PreviewsWrite, Scope::SandboxesWrite],
            Scope::SecretsRead => &[Scope::SecretsRead, Scope::SecretsWrite],
            Scope::SettingsRead => &[Scope::SettingsRead, Scope::SettingsWrite],
            Scope::KeysRead => &[Scope::KeysRead, Scope::KeysWrite],
            Scope::SecretsWrite => &[Scope::SecretsWrite],
            Scope::UsageRead => &[Scope::UsageRead],
            Scope::AuditRead => &[Scope::AuditRead],
            Scope::SettingsWrite => &[Scope::SettingsWrite],
            Scope::KeysWrite => &[Scope::KeysWrite],
            Scope::Admin => &[],
        }
    }
}

/// The holder of a checked credential.
#[derive(Debug, Clone)]
pub struct Caller {
    pub tenant_id: String,
    pub key_id: String,
    pub key_prefix: String,
    pub scopes: BTreeSet<Scope>,
    /// Set for workspace-scoped keys: nothing outside this workspace exists for them.
    pub workspace_id: Option<String>,
    /// The request this call belongs to, for audit rows.
    pub request_id: String,
}

impl Caller {
    pub fn require(&self, scope: Scope) -> Result<(), Error> {
        let granted =
            self.scopes.contains(&Scope::Admin) || scope.granted_by().iter().any(|s| self.scopes.contains(s));
        if granted || Defence::Scopes.is_off() {
            Ok(())
        } else {
            Err(Error::ScopeMissing { scope: scope.as_str() })
        }
    }

    /// Who did it, as audit rows name it: never the whole key.
    pub fn actor(&self) -> String {
        format!("api_key:{}", self.key_prefix)
    }

    /// The owner of secrets and sandboxes for which nobody else is named.
    pub fn principal(&self) -> String {
        self.key_id.clone()
    }

    /// True where a row of this workspace exists for the caller.
    pub fn sees_workspace(&self, workspace_id: &str) -> bool {
        self.workspace_id.as_deref().is_none_or(|own| own == workspace_id) || Defence::WorkspaceKey.is_off()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(scopes: &[Scope]) -> Caller {
        Caller {
            tenant_id: "ten_1".into(),
            key_id: "key_1".into(),
            key_prefix: "msk_live_abc".into(),
            scopes: scopes.iter().copied().collect(),
            workspace_id: None,
            request_id: "req_1".into(),
        }
    }

    #[test]
    fn writing_includes_reading_and_admin_everything_but_nothing_else_does() {
        assert!(caller(&[Scope::SandboxesWrite]).require(Scope::SandboxesRead).is_ok());
        assert!(caller(&[Scope::SandboxesRead]).require(Scope::SandboxesWrite).is_err());
        for (scope, name) in SCOPES {
            assert!(caller(&[Scope::Admin]).require(*scope).is_ok(), "{name}");
            assert!(caller(&[]).require(*scope).is_err(), "{name}");
            assert_eq!(Scope::parse(name), Some(*scope));
            assert_eq!(scope.as_str(), *name);
        }
    }

    #[test]
    fn only_admin_grants_admin() {
        let everything_else: Vec<Scope> =
            SCOPES.iter().map(|(scope, _)| *scope).filter(|s| *s != Scope::Admin).collect();
        assert!(caller(&everything_else).require(Scope::Admin).is_err());
    }
}
