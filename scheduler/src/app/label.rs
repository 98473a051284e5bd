//! The labels of a row: checking them on the way in, and showing them in audit rows.

use roost_api::Timestamp;
use roost_api::preview::ShareIssuedMetadata;
use roost_domain::external_id::ExternalId;
use roost_domain::slug::Slug;

use super::Error;
use crate::store::sandbox::Sandbox;

/// The caller's own three names, kept byte for byte; a blank one is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExternalIds {
    pub workspace: Option<String>,
    pub user: Option<String>,
    pub project: Option<String>,
}

impl ExternalIds {
    pub fn check(workspace: Option<&str>, user: Option<&str>, project: Option<&str>) -> Result<Self, Error> {
        Ok(Self {
            workspace: check_external_id("external_workspace_id", workspace)?,
            user: check_external_id("external_user_id", user)?,
            project: check_external_id("external_project_id", project)?,
        })
    }
}

pub fn check_external_id(field: &'static str, value: Option<&str>) -> Result<Option<String>, Error> {
    let id =
        ExternalId::parse_optional(value).map_err(|problem| Error::invalid(field, problem.to_string()))?;
    Ok(id.map(|id| id.as_str().to_owned()))
}

/// A slug that the caller chose: taken as it is or refused.
pub fn check_slug(field: &str, slug: &str) -> Result<Slug, Error> {
    Slug::parse(slug).map_err(|problem| Error::invalid(field, problem.to_string()))
}

/// The identity of a row, as the audit shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribution {
    pub workspace_id: String,
    pub project_id: String,
    pub external: ExternalIds,
}

impl From<&Sandbox> for Attribution {
    fn from(sandbox: &Sandbox) -> Self {
        Self {
            workspace_id: sandbox.workspace_id.clone(),
            project_id: sandbox.project_id.clone(),
            external: ExternalIds {
                workspace: sandbox.external_workspace_id.clone(),
                user: sandbox.external_user_id.clone(),
                project: sandbox.external_project_id.clone(),
            },
        }
    }
}

impl Attribution {
    /// The metadata that `preview.share_token.issued` promises, and nothing else.
    pub fn share_issued(&self, expires_at: Timestamp, token_prefix: String) -> ShareIssuedMetadata {
        ShareIssuedMetadata {
            workspace_id: self.workspace_id.clone(),
            project_id: self.project_id.clone(),
            external_workspace_id: self.external.workspace.clone(),
            external_user_id: self.external.user.clone(),
            expires_at,
            token_prefix,
        }
    }
}
