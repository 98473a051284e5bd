//! The product's own books, read from its databases: the agent's, the scheduler's, the audit of each day.
//!
//! Reads only. What the rows have to say to each other is `check`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use rusqlite::{Connection, OpenFlags, Row};

/// The amounts of a row of usage, in this order in both databases.
pub const AMOUNTS: [&str; 9] = [
    "wall_us",
    "vcpu_alloc_us",
    "mem_alloc_mib_us",
    "cpu_used_us",
    "mem_used_mib_us",
    "disk_mib_us",
    "snapshot_mib_us",
    "net_egress_bytes",
    "net_ingress_bytes",
];
pub const WALL: usize = 0;

pub type Amounts = [i64; 9];

/// Both sides.
#[derive(Debug, Clone, Default)]
pub struct Books {
    pub agent: Agent,
    pub scheduler: Scheduler,
}

#[derive(Debug, Clone, Default)]
pub struct Agent {
    pub deltas: Vec<Delta>,
    pub executions: Vec<Execution>,
    /// State by id.
    pub sandboxes: BTreeMap<String, String>,
    /// Rows the scheduler has not acknowledged.
    pub outbox: i64,
}

#[derive(Debug, Clone, Default)]
pub struct Scheduler {
    pub deltas: Vec<Delta>,
    /// Sums by sandbox.
    pub rollups: BTreeMap<String, Amounts>,
    pub sandboxes: Vec<Sandbox>,
    pub events: Vec<Event>,
    /// Control audit: (action, resource).
    pub actions: Vec<(String, String)>,
}

/// One immutable row of usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    pub execution: String,
    pub seq: i64,
    pub sandbox: String,
    pub from_us: i64,
    pub to_us: i64,
    pub amounts: Amounts,
}

#[derive(Debug, Clone)]
pub struct Execution {
    pub id: String,
    pub started_us: Option<i64>,
    pub ended_us: Option<i64>,
    pub end_cause: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Sandbox {
    pub id: String,
    pub name: String,
    pub state: String,
}

/// One outbound call in the audit.
#[derive(Debug, Clone)]
pub struct Event {
    pub id: String,
    pub path: String,
    pub time_us: i64,
    pub completed_us: Option<i64>,
    pub action: Option<String>,
    pub rejected_by: Option<String>,
    pub status: Option<i64>,
}

impl Books {
    /// `agent` and `scheduler` are the state directories, or copies of them.
    pub fn read(agent: &Path, scheduler: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            agent: read_agent(&agent.join("agent.db"))?,
            scheduler: read_scheduler(&scheduler.join("scheduler.db"), &scheduler.join("audit"))?,
        })
    }
}

/// A database that its owner may be writing meanwhile.
pub fn open(path: &Path) -> anyhow::Result<Connection> {
    // Not read-only: a reader of a journal that nobody has open must be able to make its index.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection =
        Connection::open_with_flags(path, flags).with_context(|| format!("opening {}", path.display()))?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(connection)
}

fn read_agent(path: &Path) -> anyhow::Result<Agent> {
    let db = open(path)?;
    let tenants = "SELECT id FROM sandbox WHERE origin = 'tenant'";
    let executions = list(
        &db,
        &format!("SELECT id, started_us, ended_us, end_cause FROM execution WHERE sandbox IN ({tenants})"),
        |row| {
            let (id, started_us) = (row.get(0)?, row.get(1)?);
            Ok(Execution { id, started_us, ended_us: row.get(2)?, end_cause: row.get(3)? })
        },
    )?;
    let sandboxes = list(&db, "SELECT id, state FROM sandbox WHERE origin = 'tenant'", |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    Ok(Agent {
        deltas: list_deltas(&db, ["execution", "sandbox"], &format!("sandbox IN ({tenants})"))?,
        executions,
        sandboxes: sandboxes.into_iter().collect(),
        outbox: db.query_row("SELECT count(*) FROM outbox", [], |row| row.get(0))?,
    })
}

fn read_scheduler(path: &Path, audit: &Path) -> anyhow::Result<Scheduler> {
    let db = open(path)?;
    let sums: Vec<String> = AMOUNTS.iter().map(|name| format!("sum({name})")).collect();
    let sql = format!("SELECT {}, sandbox_id FROM usage_rollup GROUP BY sandbox_id", sums.join(", "));
    let rollups = list(&db, &sql, |row| Ok((row.get(AMOUNTS.len())?, amounts(row, 0)?)))?;
    let sandboxes = list(&db, "SELECT id, name, state FROM sandbox", |row| {
        Ok(Sandbox { id: row.get(0)?, name: row.get(1)?, state: row.get(2)? })
    })?;
    let actions =
        list(&db, "SELECT action, resource_id FROM audit_log", |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut events = Vec::new();
    for entry in std::fs::read_dir(audit).with_context(|| format!("listing {}", audit.display()))? {
        let day = entry?.path();
        if day.extension().is_some_and(|ending| ending == "db") {
            events.extend(read_events(&day)?);
        }
    }
    let deltas = list_deltas(&db, ["execution_id", "sandbox_id"], "true")?;
    Ok(Scheduler { deltas, rollups: rollups.into_iter().collect(), sandboxes, events, actions })
}

fn read_events(day: &Path) -> anyhow::Result<Vec<Event>> {
    let sql = "SELECT event_id, coalesce(path, ''), time_us, completed_us, action, rejected_by, status_code
               FROM egress_event WHERE path IS NOT NULL";
    list(&open(day)?, sql, |row| {
        Ok(Event {
            id: row.get(0)?,
            path: row.get(1)?,
            time_us: row.get(2)?,
            completed_us: row.get(3)?,
            action: row.get(4)?,
            rejected_by: row.get(5)?,
            status: row.get(6)?,
        })
    })
}

fn list_deltas(db: &Connection, [execution, sandbox]: [&str; 2], which: &str) -> anyhow::Result<Vec<Delta>> {
    let sql = format!(
        "SELECT {execution}, seq, {sandbox}, from_us, to_us, {} FROM usage_delta WHERE {which} ORDER BY 1, 2",
        AMOUNTS.join(", ")
    );
    list(db, &sql, |row| {
        Ok(Delta {
            execution: row.get(0)?,
            seq: row.get(1)?,
            sandbox: row.get(2)?,
            from_us: row.get(3)?,
            to_us: row.get(4)?,
            amounts: amounts(row, 5)?,
        })
    })
}

fn amounts(row: &Row<'_>, first: usize) -> rusqlite::Result<Amounts> {
    let mut amounts = Amounts::default();
    for (index, amount) in amounts.iter_mut().enumerate() {
        *amount = row.get(first + index)?;
    }
    Ok(amounts)
}

fn list<T>(
    db: &Connection,
    sql: &str,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> anyhow::Result<Vec<T>> {
    let mut statement = db.prepare(sql).with_context(|| sql.to_owned())?;
    let rows = statement.query_map([], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}
