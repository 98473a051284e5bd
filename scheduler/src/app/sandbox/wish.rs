//! A create request with everything checked that can be checked without the store. Pure.

use std::collections::BTreeMap;

use roost_api::sandbox::{CreateSandbox, OnTimeout};
use roost_domain::slug::Slug;
use roost_domain::spec::{self, Geometry, Size, TIMEOUT_S_DEFAULT};
use serde_json::Value;

use crate::app::label::{self, ExternalIds};
use crate::app::workspace::Reference;
use crate::app::{Error, text};

pub const DEFAULT_TEMPLATE: &str = "miosa-sandbox";

/// What is to be made.
#[derive(Debug, Clone)]
pub struct Wish {
    /// None: named after its id.
    pub name: Option<String>,
    /// None: derived from the name, never refused.
    pub slug: Option<Slug>,
    pub template: String,
    pub geometry: Geometry,
    pub environment: BTreeMap<String, String>,
    pub metadata: BTreeMap<String, Value>,
    pub tags: Vec<String>,
    pub timeout_s: Option<i64>,
    pub idle_timeout_s: Option<i64>,
    pub on_timeout: OnTimeout,
    pub persistent: bool,
    pub always_on: bool,
    pub auto_resume: bool,
    pub fail_fast: bool,
    pub external: ExternalIds,
    pub owner_user_id: Option<String>,
    pub workspace: Reference,
    pub project: Reference,
}

pub fn check(request: CreateSandbox) -> Result<Wish, Error> {
    let geometry = choose_geometry(&request)?;
    let external = ExternalIds::check(
        request.external_workspace_id.as_deref(),
        request.external_user_id.as_deref(),
        request.external_project_id.as_deref(),
    )?;
    let persistent = request.persistent.unwrap_or(true);
    let always_on = request.always_on.unwrap_or(false);
    let timeout_s = match request.timeout_sec {
        Some(seconds) => Some(check_timeout("timeout_sec", seconds)?),
        None if always_on => None,
        None => Some(TIMEOUT_S_DEFAULT.into()),
    };
    let default_on_timeout = if persistent { OnTimeout::Pause } else { OnTimeout::Destroy };
    Ok(Wish {
        name: request.name.as_deref().map(|name| text::check_name("name", name)).transpose()?,
        slug: request.slug.as_deref().map(|slug| label::check_slug("slug", slug)).transpose()?,
        template: request.template_id.unwrap_or_else(|| DEFAULT_TEMPLATE.to_owned()),
        geometry,
        environment: text::check_environment("env", request.env.unwrap_or_default())?,
        metadata: text::check_metadata(request.metadata.unwrap_or_default())?,
        tags: text::check_tags(request.tags.unwrap_or_default())?,
        timeout_s,
        idle_timeout_s: request
            .idle_timeout_sec
            .map(|seconds| check_timeout("idle_timeout_sec", seconds))
            .transpose()?,
        on_timeout: request.on_timeout.unwrap_or(default_on_timeout),
        persistent,
        always_on,
        auto_resume: request.auto_resume.unwrap_or(true),
        fail_fast: request.fail_fast.unwrap_or(false),
        workspace: Reference {
            id: request.workspace_id,
            slug: request
                .workspace_slug
                .as_deref()
                .map(|slug| label::check_slug("workspace_slug", slug))
                .transpose()?
                .map(|slug| slug.to_string()),
            name: request
                .workspace_name
                .as_deref()
                .map(|name| text::check_name("workspace_name", name))
                .transpose()?,
            external: external.workspace.clone(),
        },
        project: Reference {
            id: request.project_id,
            slug: request
                .project_slug
                .as_deref()
                .map(|slug| label::check_slug("project_slug", slug))
                .transpose()?
                .map(|slug| slug.to_string()),
            name: request
                .project_name
                .as_deref()
                .map(|name| text::check_name("project_name", name))
                .transpose()?,
            external: external.project.clone(),
        },
        owner_user_id: label::check_external_id("owner_user_id", request.owner_user_id.as_deref())?,
        external,
    })
}

fn choose_geometry(request: &CreateSandbox) -> Result<Geometry, Error> {
    let size = request.size.as_deref().map(str::parse::<Size>).transpose();
    let size = size.map_err(|problem| Error::invalid("size", problem.to_string()))?;
    let chosen = Geometry::choose(size, request.cpu_count, request.memory_mb, request.disk_size_mb);
    chosen.map_err(|problem| {
        let field = match problem {
            spec::Error::Memory(_) => "memory_mb",
            spec::Error::Disk(_) => "disk_size_mb",
            spec::Error::Contradiction { .. } => "size",
            _ => "cpu_count",
        };
        Error::invalid(field, problem.to_string())
    })
}

pub fn check_timeout(field: &str, seconds: u64) -> Result<i64, Error> {
    let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
    match spec::check_timeout_s(seconds) {
        Ok(seconds) => Ok(seconds.into()),
        Err(_) => Err(Error::invalid(field, format!("1 to {} seconds", spec::TIMEOUT_S_MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(request: CreateSandbox) -> Result<Wish, Error> {
        check(request)
    }

    #[test]
    fn defaults() {
        let wish = wish(CreateSandbox::default()).unwrap();
        assert_eq!((wish.template.as_str(), wish.geometry), (DEFAULT_TEMPLATE, Size::Xs.geometry()));
        assert_eq!((wish.timeout_s, wish.on_timeout), (Some(300), OnTimeout::Pause));
        assert!(wish.persistent && wish.auto_resume && !wish.always_on);
    }

    #[test]
    fn always_on_has_no_default_timeout_and_the_unpersistent_is_destroyed() {
        let request = CreateSandbox { always_on: Some(true), persistent: Some(false), ..Default::default() };
        let wish = wish(request).unwrap();
        assert_eq!((wish.timeout_s, wish.on_timeout), (None, OnTimeout::Destroy));
    }

    #[test]
    fn a_blank_label_is_none() {
        let request = CreateSandbox { external_user_id: Some("  ".into()), ..Default::default() };
        assert_eq!(wish(request).unwrap().external, ExternalIds::default());
    }

    #[test]
    fn timeouts_have_bounds() {
        for seconds in [0, u64::from(spec::TIMEOUT_S_MAX) + 1, u64::MAX] {
            let request = CreateSandbox { timeout_sec: Some(seconds), ..Default::default() };
            assert!(wish(request).is_err(), "{seconds}");
        }
    }
}
