//! Listing sandboxes: everything that matches, or page by page.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use roost_api::List;
use roost_api::sandbox::{ListSandboxes, Sandbox};

use super::record;
use crate::app::label::ExternalIds;
use crate::app::{App, Caller, Error, Scope};
use crate::store::sandbox::{self as table, Filter};

/// What an unpaged list answers at most.
const MAX_WHOLE: usize = 10_000;
const DEFAULT_PAGE: u32 = 20;
const MAX_PAGE: u32 = 100;

/// Clients without paging must get all matches; those that page get pages.
pub async fn list(app: &App, caller: &Caller, query: ListSandboxes) -> Result<List<Sandbox>, Error> {
    caller.require(Scope::SandboxesRead)?;
    let paged = query.limit.is_some() || query.cursor.is_some();
    let page = query.limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE);
    let mut filter = filter(caller, query)?;
    filter.limit = if paged { page + 1 } else { MAX_WHOLE as u32 + 1 };
    let mut rows = app.store.read(move |tx| table::list(tx, &filter)).await?;
    if !paged {
        if rows.len() > MAX_WHOLE {
            return Err(Error::TooManyMatches { limit: MAX_WHOLE });
        }
        return Ok(List::whole(rows.into_iter().map(|row| record(app, row)).collect()));
    }
    let more = rows.len() > page as usize;
    rows.truncate(page as usize);
    let next_cursor = rows.last().filter(|_| more).map(|row| write_cursor(row.created_us, &row.id));
    Ok(List::paged(rows.into_iter().map(|row| record(app, row)).collect(), page, next_cursor))
}

fn filter(caller: &Caller, query: ListSandboxes) -> Result<Filter, Error> {
    let states = states(query.state.as_deref())?;
    let external = ExternalIds::check(
        query.external_workspace_id.as_deref(),
        query.external_user_id.as_deref(),
        query.external_project_id.as_deref(),
    )?;
    if let (Some(own), Some(wanted)) = (&caller.workspace_id, &query.workspace_id)
        && own != wanted
    {
        return Err(Error::NotFound { what: "workspace" });
    }
    Ok(Filter {
        tenant_id: caller.tenant_id.clone(),
        workspace_id: caller.workspace_id.clone().or(query.workspace_id),
        project_id: query.project_id,
        external_workspace_id: external.workspace,
        external_user_id: external.user,
        external_project_id: external.project,
        include_destroyed: query.include_destroyed.unwrap_or(false)
            || states.iter().any(|state| state.starts_with("destroy")),
        states,
        template: query.template_id,
        tags: comma_separated(query.tags.as_deref()),
        newest_first: true,
        after: query.cursor.as_deref().map(read_cursor).transpose()?,
        ..Filter::default()
    })
}

fn comma_separated(text: Option<&str>) -> Vec<String> {
    text.unwrap_or("").split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn states(text: Option<&str>) -> Result<Vec<String>, Error> {
    const KNOWN: &[&str] = &[
        "creating",
        "running",
        "pausing",
        "paused",
        "resuming",
        "stopping",
        "stopped",
        "destroying",
        "destroyed",
        "error",
    ];
    let wanted = comma_separated(text)
        .into_iter()
        .map(|state| if state == "provisioning" { "creating".to_owned() } else { state });
    wanted
        .map(|state| {
            if KNOWN.contains(&state.as_str()) {
                Ok(state)
            } else {
                Err(Error::invalid("state", KNOWN.join(", ")))
            }
        })
        .collect()
}

/// Opaque to callers; the place after a row in the order of the list.
pub fn write_cursor(time_us: i64, id: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{time_us}:{id}"))
}

pub fn read_cursor(cursor: &str) -> Result<(i64, String), Error> {
    let refused = || Error::invalid("cursor", "hand back what next_cursor said");
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| refused())?;
    let text = String::from_utf8(bytes).map_err(|_| refused())?;
    let (time, id) = text.split_once(':').ok_or_else(refused)?;
    Ok((time.parse().map_err(|_| refused())?, id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_and_nonsense_is_refused() {
        let cursor = write_cursor(1_790_000_000_000_000, "sbx_1");
        assert_eq!(read_cursor(&cursor).unwrap(), (1_790_000_000_000_000, "sbx_1".to_owned()));
        for bad in ["", "!", "eA", &URL_SAFE_NO_PAD.encode("x:y")] {
            assert!(read_cursor(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn states_are_a_closed_set() {
        assert_eq!(states(Some("provisioning, running")).unwrap(), ["creating", "running"]);
        assert!(states(Some("sleeping")).is_err());
        assert!(states(None).unwrap().is_empty());
    }
}
