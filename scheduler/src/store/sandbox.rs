//! Table `sandbox`: what a tenant has, what it wants of it, and what a host last reported.
//!
//! Wanted: `desired_run`, `generation`, `placement_epoch`, `host_id`; only this scheduler changes them. Observed:
//! `state` … `boot_us`; only reports of the host that holds the placement change them. Labels (`external_*`) are set
//! at creation and no statement here changes them.

use std::collections::BTreeMap;

use roost_domain::sabotage::Defence;

use super::record::{self, Conditions, record};
use super::{Error, Tx, Value, params};

record! {
    pub struct Sandbox in "sandbox" {
        id: String,
        tenant_id: String,
        workspace_id: String,
        project_id: String,
        external_workspace_id: Option<String>,
        external_user_id: Option<String>,
        external_project_id: Option<String>,
        owner_user_id: Option<String>,
        /// Who created it, like `api_key:msk_live_abcd`.
        actor: String,
        /// `sandbox` or `computer`.
        kind: String,
        name: String,
        slug: String,
        /// The domain its previews live under; slugs are unique below it.
        preview_domain: String,
        metadata: BTreeMap<String, serde_json::Value>,
        tags: Vec<String>,
        template: String,
        size: String,
        vcpus: u64,
        memory_mib: u64,
        disk_mib: u64,
        environment: BTreeMap<String, String>,
        timeout_s: Option<i64>,
        /// When the timeout strikes, if the sandbox is running.
        deadline_us: Option<i64>,
        idle_timeout_s: Option<i64>,
        /// `pause` or `destroy`.
        on_timeout: String,
        persistent: bool,
        always_on: bool,
        auto_resume: bool,
        region: Option<String>,
        /// The id of the first ancestor: what placeholders and synthetic addresses are bound to.
        lineage: String,
        forked_from: Option<String>,
        host_name: String,
        /// Counts changes of what is sent to the host beside the desired state.
        spec_version: u64,
        /// `running`, `paused`, `stopped` or `destroyed`.
        desired_run: String,
        generation: u64,
        placement_epoch: u64,
        /// When the generation only takes over a host's local transition: that transition's number. Otherwise 0.
        adopted_seq: u64,
        host_id: Option<String>,
        /// What this sandbox has reserved on its host right now.
        memory_reserved_mib: u64,
        disk_reserved_mib: u64,
        /// `creating`, `running`, `pausing`, `paused`, `resuming`, `stopping`, `stopped`, `destroying`, `destroyed`
        /// or `failed` (tenants see `error`).
        state: String,
        state_reason: String,
        observed_generation: u64,
        local_seq: u64,
        local_cause: String,
        execution_id: Option<String>,
        changed_us: i64,
        /// `cold`, `snapshot` or empty.
        boot_path: String,
        boot_us: Option<i64>,
        created_us: i64,
        updated_us: i64,
        started_us: Option<i64>,
        ready_us: Option<i64>,
        destroyed_us: Option<i64>,
    }
}

/// What to list; every field that is set narrows.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub tenant_id: String,
    pub workspace_id: Option<String>,
    pub project_id: Option<String>,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub states: Vec<String>,
    pub template: Option<String>,
    /// All of them.
    pub tags: Vec<String>,
    pub metadata: BTreeMap<String, String>,
    /// Part of name or slug.
    pub search: Option<String>,
    pub created_after_us: Option<i64>,
    pub created_before_us: Option<i64>,
    pub include_destroyed: bool,
    pub newest_first: bool,
    /// Rows after this one: its (created, id).
    pub after: Option<(i64, String)>,
    pub offset: u32,
    pub limit: u32,
}

impl Filter {
    fn conditions(&self) -> Result<Conditions, Error> {
        let mut where_ = Conditions::new("tenant_id", &self.tenant_id);
        where_.push_if("workspace_id", "=", &self.workspace_id);
        where_.push_if("project_id", "=", &self.project_id);
        where_.push_if("external_workspace_id", "=", &self.external_workspace_id);
        where_.push_if("external_user_id", "=", &self.external_user_id);
        where_.push_if("external_project_id", "=", &self.external_project_id);
        where_.push_any("state", &self.states);
        where_.push_if("template", "=", &self.template);
        for tag in &self.tags {
            where_.push_json_member("tags", &json(tag)?);
        }
        for (key, value) in &self.metadata {
            where_.push_json_member("metadata", &format!("{}:{}", json(key)?, json(value)?));
        }
        if let Some(search) = &self.search {
            let pattern = where_.place(record::containing(&search.to_lowercase()));
            where_.push_clause(format!(
                "(LOWER(name) LIKE {pattern} ESCAPE '\\' OR LOWER(slug) LIKE {pattern} ESCAPE '\\')"
            ));
        }
        where_.push_if("created_us", ">=", &self.created_after_us);
        where_.push_if("created_us", "<", &self.created_before_us);
        if !self.include_destroyed {
            where_.push_clause("desired_run <> 'destroyed'");
        }
        Ok(where_)
    }
}

fn json(text: &str) -> Result<String, Error> {
    serde_json::to_string(text).map_err(|source| Error::Json { column: "(parameter)".into(), source })
}

/// False if its slug is taken in its workspace or under its preview domain (or its id exists).
pub fn insert(tx: &mut Tx<'_>, sandbox: &Sandbox) -> Result<bool, Error> {
    if !record::insert_if_absent(tx, sandbox)? {
        return Ok(false);
    }
    if let Some(host) = &sandbox.host_id {
        insert_placement(tx, &sandbox.id, sandbox.placement_epoch, host, sandbox.created_us)?;
    }
    Ok(true)
}

/// True if the sandbox was ever on that host.
pub fn was_ever_placed(tx: &mut Tx<'_>, id: &str, host: &str) -> Result<bool, Error> {
    let sql = "SELECT epoch FROM placement WHERE sandbox_id = ?1 AND host_id = ?2 LIMIT 1";
    Ok(tx.find_one(sql, params![id, host])?.is_some())
}

fn insert_placement(tx: &mut Tx<'_>, id: &str, epoch: u64, host: &str, now_us: i64) -> Result<(), Error> {
    let sql = "INSERT INTO placement (sandbox_id, epoch, host_id, from_us) VALUES (?1, ?2, ?3, ?4)";
    tx.execute(sql, params![id, epoch, host, now_us]).map(|_| ())
}

/// True if the sandbox was on that host under that epoch, now or earlier.
pub fn was_placed(tx: &mut Tx<'_>, id: &str, epoch: u64, host: &str) -> Result<bool, Error> {
    let sql = "SELECT epoch FROM placement WHERE sandbox_id = ?1 AND epoch = ?2 AND host_id = ?3";
    Ok(tx.find_one(sql, params![id, epoch, host])?.is_some())
}

/// When the sandbox was given to the next host after that epoch, if it was.
pub fn find_placement_end(tx: &mut Tx<'_>, id: &str, epoch: i64) -> Result<Option<i64>, Error> {
    let sql = "SELECT from_us FROM placement WHERE sandbox_id = ?1 AND epoch > ?2 ORDER BY epoch LIMIT 1";
    tx.find_one(sql, params![id, epoch])?.map(|row| row.int("from_us")).transpose()
}

pub fn find(tx: &mut Tx<'_>, tenant: &str, id: &str) -> Result<Option<Sandbox>, Error> {
    if Defence::Tenancy.is_off() {
        return find_any(tx, id);
    }
    record::find(tx, "WHERE tenant_id = ?1 AND id = ?2", params![tenant, id])
}

/// Whoever it belongs to: for hosts' reports and routes, never for a tenant's call.
pub fn find_any(tx: &mut Tx<'_>, id: &str) -> Result<Option<Sandbox>, Error> {
    record::find(tx, "WHERE id = ?1", params![id])
}

pub fn find_by_slug(tx: &mut Tx<'_>, tenant: &str, slug: &str) -> Result<Option<Sandbox>, Error> {
    let tail =
        "WHERE tenant_id = ?1 AND slug = ?2 AND desired_run <> 'destroyed' ORDER BY created_us DESC LIMIT 1";
    record::find(tx, tail, params![tenant, slug])
}

pub fn find_by_name(tx: &mut Tx<'_>, tenant: &str, name: &str) -> Result<Option<Sandbox>, Error> {
    let tail =
        "WHERE tenant_id = ?1 AND name = ?2 AND desired_run <> 'destroyed' ORDER BY created_us DESC LIMIT 1";
    record::find(tx, tail, params![tenant, name])
}

/// By the slug below a preview domain, as a browser names it.
pub fn find_by_domain(tx: &mut Tx<'_>, domain: &str, slug: &str) -> Result<Option<Sandbox>, Error> {
    let tail = "WHERE preview_domain = ?1 AND slug = ?2 AND desired_run <> 'destroyed'";
    record::find(tx, tail, params![domain, slug])
}

/// True if the slug is taken in the workspace (rather than only under the domain).
pub fn is_slug_in_workspace(tx: &mut Tx<'_>, workspace: &str, slug: &str) -> Result<bool, Error> {
    let sql = "SELECT id FROM sandbox WHERE workspace_id = ?1 AND slug = ?2 AND desired_run <> 'destroyed'";
    Ok(tx.find_one(sql, params![workspace, slug])?.is_some())
}

pub fn list(tx: &mut Tx<'_>, filter: &Filter) -> Result<Vec<Sandbox>, Error> {
    let mut where_ = filter.conditions()?;
    let (order, beyond) = if filter.newest_first { ("DESC", "<") } else { ("ASC", ">") };
    if let Some((created_us, id)) = &filter.after {
        let (created, id) = (where_.place(*created_us), where_.place(id));
        where_.push_clause(format!(
            "(created_us {beyond} {created} OR (created_us = {created} AND id {beyond} {id}))"
        ));
    }
    let (limit, offset) = (where_.place(filter.limit), where_.place(filter.offset));
    let (where_, params) = where_.finish();
    let tail = format!("{where_} ORDER BY created_us {order}, id {order} LIMIT {limit} OFFSET {offset}");
    record::list(tx, &tail, &params)
}

/// How many match, by state.
pub fn count_by_state(tx: &mut Tx<'_>, filter: &Filter) -> Result<BTreeMap<String, i64>, Error> {
    let (where_, params) = filter.conditions()?.finish();
    let sql = format!("SELECT state, COUNT(*) AS n FROM sandbox {where_} GROUP BY state");
    tx.query(&sql, &params)?.iter().map(|row| Ok((row.text("state")?, row.int("n")?))).collect()
}

/// How many there are of all tenants that are not destroyed, by state.
pub fn count_live(tx: &mut Tx<'_>) -> Result<BTreeMap<String, i64>, Error> {
    let sql = "SELECT state, COUNT(*) AS n FROM sandbox WHERE destroyed_us IS NULL GROUP BY state";
    tx.query(sql, params![])?.iter().map(|row| Ok((row.text("state")?, row.int("n")?))).collect()
}

/// What is placed on a host and not gone.
pub fn list_placed(tx: &mut Tx<'_>, host: &str) -> Result<Vec<Sandbox>, Error> {
    record::list(tx, "WHERE host_id = ?1 AND destroyed_us IS NULL ORDER BY id", params![host])
}

/// Sandboxes wanted running whose deadline has passed.
pub fn list_overdue(tx: &mut Tx<'_>, now_us: i64, limit: u32) -> Result<Vec<Sandbox>, Error> {
    let tail = "WHERE deadline_us IS NOT NULL AND deadline_us <= ?1 AND desired_run = 'running'
        ORDER BY deadline_us LIMIT ?2";
    record::list(tx, tail, params![now_us, limit])
}

/// Wants `run`; the new generation, or `None` if the sandbox is absent or wanted destroyed.
pub fn set_desired(tx: &mut Tx<'_>, id: &str, run: &str, now_us: i64) -> Result<Option<u64>, Error> {
    let sql =
        "UPDATE sandbox SET desired_run = ?2, generation = generation + 1, adopted_seq = 0, updated_us = ?3
        WHERE id = ?1 AND desired_run <> 'destroyed'";
    if !record::changed(tx, sql, params![id, run, now_us])? {
        return Ok(None);
    }
    let row = tx.query_one("sandbox", "SELECT generation FROM sandbox WHERE id = ?1", params![id])?;
    row.uint("generation").map(Some)
}

/// Gives the sandbox to a host under a new placement epoch; the old host is fenced by it. The reservation must have
/// been made in the same transaction.
pub fn set_placement(tx: &mut Tx<'_>, sandbox: &Sandbox, host: &str, now_us: i64) -> Result<bool, Error> {
    let sql =
        "UPDATE sandbox SET host_id = ?2, placement_epoch = placement_epoch + 1, generation = generation + 1,
        adopted_seq = 0,
        memory_reserved_mib = memory_mib, disk_reserved_mib = disk_mib, execution_id = NULL, updated_us = ?4
        WHERE id = ?1 AND placement_epoch = ?3";
    if !record::changed(tx, sql, params![&sandbox.id, host, sandbox.placement_epoch, now_us])? {
        return Ok(false);
    }
    insert_placement(tx, &sandbox.id, sandbox.placement_epoch + 1, host, now_us)?;
    Ok(true)
}

/// Notes what the sandbox now has reserved on its host; the host's sum is changed beside it.
pub fn set_reservation(tx: &mut Tx<'_>, id: &str, memory_mib: u64, disk_mib: u64) -> Result<(), Error> {
    let sql = "UPDATE sandbox SET memory_reserved_mib = ?2, disk_reserved_mib = ?3 WHERE id = ?1";
    tx.execute(sql, params![id, memory_mib, disk_mib]).map(|_| ())
}

/// The fields a tenant may change; what is `None` stays. False if the slug is taken.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    pub name: Option<String>,
    pub slug: Option<String>,
    pub metadata: Option<BTreeMap<String, serde_json::Value>>,
    pub tags: Option<Vec<String>>,
    pub environment: Option<BTreeMap<String, String>>,
    pub timeout_s: Option<Option<i64>>,
    pub deadline_us: Option<Option<i64>>,
    pub idle_timeout_s: Option<Option<i64>>,
    pub on_timeout: Option<String>,
    pub always_on: Option<bool>,
    pub auto_resume: Option<bool>,
}

/// Changes what a tenant may change. [`Error::Unique`] if the slug is taken.
pub fn update(
    tx: &mut Tx<'_>,
    tenant: &str,
    id: &str,
    changes: &Changes,
    now_us: i64,
) -> Result<bool, Error> {
    let mut sets = vec!["updated_us = ?3".to_owned(), "spec_version = spec_version + 1".to_owned()];
    let mut params = vec![Value::from(tenant), Value::from(id), Value::from(now_us)];
    let mut set = |column: &str, value: Value| {
        params.push(value);
        sets.push(format!("{column} = ?{}", params.len()));
    };
    if let Some(name) = &changes.name {
        set("name", name.into());
    }
    if let Some(slug) = &changes.slug {
        set("slug", slug.into());
    }
    if let Some(metadata) = &changes.metadata {
        set("metadata", Value::json(metadata)?);
    }
    if let Some(tags) = &changes.tags {
        set("tags", Value::json(tags)?);
    }
    if let Some(environment) = &changes.environment {
        set("environment", Value::json(environment)?);
    }
    let numbers = [
        ("timeout_s", changes.timeout_s),
        ("deadline_us", changes.deadline_us),
        ("idle_timeout_s", changes.idle_timeout_s),
    ];
    for (column, number) in numbers {
        if let Some(number) = number {
            set(column, number.into());
        }
    }
    if let Some(on_timeout) = &changes.on_timeout {
        set("on_timeout", on_timeout.into());
    }
    for (column, flag) in [("always_on", changes.always_on), ("auto_resume", changes.auto_resume)] {
        if let Some(flag) = flag {
            set(column, flag.into());
        }
    }
    let sql = format!(
        "UPDATE sandbox SET {} WHERE tenant_id = ?1 AND id = ?2 AND desired_run <> 'destroyed'",
        sets.join(", ")
    );
    record::changed(tx, &sql, &params)
}

/// What a host reported, already judged newer than what is stored.
#[derive(Debug, Clone)]
pub struct Observed {
    pub id: String,
    pub host_id: String,
    pub placement_epoch: u64,
    pub state: String,
    pub state_reason: String,
    pub generation: u64,
    pub local_seq: u64,
    pub local_cause: String,
    pub execution_id: Option<String>,
    pub changed_us: i64,
    pub boot_path: String,
    pub boot_us: Option<i64>,
    pub started_us: Option<i64>,
    pub ready_us: Option<i64>,
    pub destroyed_us: Option<i64>,
}

/// Stores a report unless the placement is another one or something newer is stored.
pub fn record_observed(tx: &mut Tx<'_>, seen: &Observed, now_us: i64) -> Result<bool, Error> {
    let by_its_host = match Defence::HostOwnReports.is_off() {
        true => "(host_id = ?2 OR TRUE) AND (placement_epoch = ?3 OR TRUE)",
        false => "host_id = ?2 AND placement_epoch = ?3",
    };
    let sql = format!(
        "UPDATE sandbox SET state = ?4, state_reason = ?5, observed_generation = ?6, local_seq = ?7,
        local_cause = ?8, execution_id = ?9, changed_us = ?10,
        boot_path = ?11, boot_us = ?12, started_us = ?13, ready_us = ?14, destroyed_us = ?15, updated_us = ?16
        WHERE id = ?1 AND {by_its_host} AND destroyed_us IS NULL
        AND (observed_generation < ?6 OR (observed_generation = ?6 AND local_seq < ?7)
            OR (observed_generation = ?6 AND local_seq = ?7 AND changed_us <= ?10))"
    );
    let params = params![
        &seen.id,
        &seen.host_id,
        seen.placement_epoch,
        &seen.state,
        &seen.state_reason,
        seen.generation,
        seen.local_seq,
        &seen.local_cause,
        &seen.execution_id,
        seen.changed_us,
        &seen.boot_path,
        seen.boot_us,
        seen.started_us,
        seen.ready_us,
        seen.destroyed_us,
        now_us
    ];
    record::changed(tx, &sql, params)
}

/// Puts what is wanted above what a host was told before this store was restored; false if it was changed meanwhile.
pub fn recover(
    tx: &mut Tx<'_>,
    id: &str,
    known_generation: u64,
    run: &str,
    generation: u64,
    now_us: i64,
) -> Result<bool, Error> {
    let sql = "UPDATE sandbox SET desired_run = ?3, generation = ?4, adopted_seq = 0, updated_us = ?5
        WHERE id = ?1 AND generation = ?2";
    record::changed(tx, sql, params![id, known_generation, run, generation, now_us])
}

/// Makes a host's local transition the wanted state, by compare-and-set on the generation it was made under.
pub fn adopt_local(
    tx: &mut Tx<'_>,
    id: &str,
    base_generation: u64,
    run: &str,
    seq: u64,
    now_us: i64,
) -> Result<bool, Error> {
    let sql =
        "UPDATE sandbox SET desired_run = ?3, generation = generation + 1, adopted_seq = ?4, updated_us = ?5
        WHERE id = ?1 AND generation = ?2 AND desired_run <> 'destroyed'";
    record::changed(tx, sql, params![id, base_generation, run, seq, now_us])
}

/// Ids of sandboxes changed at or after `since_us`, with the time of the change.
pub fn list_updated(tx: &mut Tx<'_>, since_us: i64, limit: u32) -> Result<Vec<(String, i64)>, Error> {
    let sql = "SELECT id, updated_us FROM sandbox WHERE updated_us >= ?1 ORDER BY updated_us LIMIT ?2";
    let rows = tx.query(sql, params![since_us, limit])?;
    rows.iter().map(|row| Ok((row.text("id")?, row.int("updated_us")?))).collect()
}
