//! Reports: sums per group over a period.

use std::collections::BTreeMap;

use roost_domain::usage::{HOUR_US, hour_start};

use super::OPEN_US_MAX;
use crate::store::sandbox::Sandbox;
use crate::store::usage::{self as table, Amounts, COLUMNS, Filter, SandboxSum};
use crate::store::{Error, Tx};

/// What a report is grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    ExternalUser,
    ExternalWorkspace,
    ExternalProject,
    Workspace,
    Project,
    Sandbox,
}

impl Grouping {
    pub const ALL: [(&'static str, Grouping); 6] = [
        ("external_user_id", Grouping::ExternalUser),
        ("external_workspace_id", Grouping::ExternalWorkspace),
        ("external_project_id", Grouping::ExternalProject),
        ("workspace_id", Grouping::Workspace),
        ("project_id", Grouping::Project),
        ("sandbox_id", Grouping::Sandbox),
    ];

    pub fn parse(word: &str) -> Option<Grouping> {
        Grouping::ALL.into_iter().find(|(known, _)| *known == word).map(|(_, grouping)| grouping)
    }

    pub fn word(self) -> &'static str {
        Grouping::ALL.into_iter().find(|(_, grouping)| *grouping == self).map_or("", |(word, _)| word)
    }

    fn key(self, sum: &SandboxSum) -> Option<String> {
        match self {
            Grouping::ExternalUser => sum.external_user_id.clone(),
            Grouping::ExternalWorkspace => sum.external_workspace_id.clone(),
            Grouping::ExternalProject => sum.external_project_id.clone(),
            Grouping::Workspace => Some(sum.workspace_id.clone()),
            Grouping::Project => Some(sum.project_id.clone()),
            Grouping::Sandbox => Some(sum.sandbox_id.clone()),
        }
    }
}

/// The sums of one group; sandboxes and computers are told apart where time is counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// None for what carries no such label.
    pub key: Option<String>,
    pub sandbox_wall_us: i128,
    pub computer_wall_us: i128,
    pub vcpu_alloc_us: i128,
    pub mem_alloc_mib_us: i128,
    pub cpu_used_us: i128,
    pub mem_used_mib_us: i128,
    pub disk_mib_us: i128,
    pub snapshot_mib_us: i128,
    pub net_egress_bytes: i128,
    pub net_ingress_bytes: i128,
    /// How many sandboxes the sums are of.
    pub sandboxes: u64,
}

impl Group {
    fn add(&mut self, kind: &str, amounts: &Amounts) {
        let [wall, vcpu, memory, cpu, memory_used, disk, snapshot, egress, ingress] = *amounts;
        match kind {
            "computer" => self.computer_wall_us += wall,
            _ => self.sandbox_wall_us += wall,
        }
        self.vcpu_alloc_us += vcpu;
        self.mem_alloc_mib_us += memory;
        self.cpu_used_us += cpu;
        self.mem_used_mib_us += memory_used;
        self.disk_mib_us += disk;
        self.snapshot_mib_us += snapshot;
        self.net_egress_bytes += egress;
        self.net_ingress_bytes += ingress;
    }
}

/// Sums per group and over all; `groups` add up to `total` exactly.
#[derive(Debug, Clone)]
pub struct Report {
    pub groups: Vec<Group>,
    pub total: Group,
    /// The estimated part of `total`: time that no delta covers yet.
    pub estimated_us: i128,
    pub as_of_us: i64,
}

/// The period `[filter.from_us, filter.to_us)`, in one consistent view. A delta belongs to the period it begins in.
pub fn report(tx: &mut Tx<'_>, filter: &Filter, grouping: Grouping, now_us: i64) -> Result<Report, Error> {
    let mut per_sandbox: BTreeMap<String, SandboxSum> = BTreeMap::new();
    for sum in closed(tx, filter)? {
        add(&mut per_sandbox, sum);
    }
    let mut estimated_us = 0;
    for sum in open(tx, filter, now_us)? {
        estimated_us += sum.amounts[0];
        add(&mut per_sandbox, sum);
    }
    let mut groups: BTreeMap<Option<String>, Group> = BTreeMap::new();
    let mut total = Group::default();
    for sum in per_sandbox.values() {
        let key = grouping.key(sum);
        let group = groups.entry(key.clone()).or_insert_with(|| Group { key, ..Group::default() });
        for group in [group, &mut total] {
            group.add(&sum.kind, &sum.amounts);
            group.sandboxes += 1;
        }
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    let wall = |group: &Group| group.sandbox_wall_us + group.computer_wall_us;
    groups.sort_by(|one, other| wall(other).cmp(&wall(one)).then_with(|| one.key.cmp(&other.key)));
    Ok(Report { groups, total, estimated_us, as_of_us: now_us })
}

fn add(per_sandbox: &mut BTreeMap<String, SandboxSum>, sum: SandboxSum) {
    match per_sandbox.get_mut(&sum.sandbox_id) {
        None => {
            per_sandbox.insert(sum.sandbox_id.clone(), sum);
        }
        Some(known) => known.amounts.iter_mut().zip(sum.amounts).for_each(|(total, more)| *total += more),
    }
}

/// Whole hours from the roll-up, the hours the period only touches from their deltas.
fn closed(tx: &mut Tx<'_>, filter: &Filter) -> Result<Vec<SandboxSum>, Error> {
    let up = |us: i64| hour_start(us.saturating_add(HOUR_US - 1));
    let (first_hour, last_hour) = (up(filter.from_us), hour_start(filter.to_us));
    let between = |from_us, to_us| Filter { from_us, to_us, ..filter.clone() };
    if first_hour >= last_hour {
        return table::sum_deltas(tx, filter);
    }
    let mut sums = table::sum_hours(tx, &between(first_hour, last_hour))?;
    for (from_us, to_us) in [(filter.from_us, first_hour), (last_hour, filter.to_us)] {
        if from_us < to_us {
            sums.extend(table::sum_deltas(tx, &between(from_us, to_us))?);
        }
    }
    Ok(sums)
}

/// What running sandboxes have used since their last delta, by what is allocated to them.
fn open(tx: &mut Tx<'_>, filter: &Filter, now_us: i64) -> Result<Vec<SandboxSum>, Error> {
    let until_us = now_us.min(filter.to_us);
    let mut sums = Vec::new();
    if until_us <= filter.from_us {
        return Ok(sums);
    }
    for row in table::list_running(tx, filter)? {
        let Some(execution) = &row.execution_id else { continue };
        let covered_us = table::find_last_end(tx, execution)?.or(row.started_us).unwrap_or(until_us);
        let silent_us = now_us.saturating_sub(covered_us);
        let open_us = until_us.saturating_sub(covered_us.max(filter.from_us));
        if open_us > 0 && silent_us <= OPEN_US_MAX {
            sums.push(estimate(&row, open_us));
        }
    }
    Ok(sums)
}

fn estimate(row: &Sandbox, open_us: i64) -> SandboxSum {
    let open_us = i128::from(open_us);
    let mut amounts: Amounts = [0; COLUMNS.len()];
    amounts[0] = open_us;
    amounts[1] = open_us * i128::from(row.vcpus);
    amounts[2] = open_us * i128::from(row.memory_mib);
    SandboxSum {
        sandbox_id: row.id.clone(),
        workspace_id: row.workspace_id.clone(),
        project_id: row.project_id.clone(),
        external_workspace_id: row.external_workspace_id.clone(),
        external_user_id: row.external_user_id.clone(),
        external_project_id: row.external_project_id.clone(),
        kind: row.kind.clone(),
        amounts,
    }
}
