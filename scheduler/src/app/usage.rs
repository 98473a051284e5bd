//! Usage as tenants see it: per group, per sandbox, and in all.

use std::collections::BTreeMap;

use roost_api::Timestamp;
use roost_api::usage::{SandboxUsage, UsageAmounts, UsageParameters, UsageReport, UsageResult, UsageSummary};
use roost_domain::duration::{Period, parse_moment_us};

use super::label::ExternalIds;
use super::{App, Caller, Error, Scope, sandbox};
use crate::store::{execution, usage::Filter};
use crate::usage::{self, Group, Grouping};

const SECOND_US: f64 = 1e6;
const MIB_PER_GIB: f64 = 1024.0;
/// Gigabytes in a gibibyte.
const GB_PER_GIB: f64 = 1.073_741_824;

/// Sums per group. Every group of one report adds up to its total.
pub async fn report(app: &App, caller: &Caller, query: UsageParameters) -> Result<UsageReport, Error> {
    caller.require(Scope::UsageRead)?;
    let word = query.group_by.clone().unwrap_or_else(|| Grouping::ExternalUser.word().to_owned());
    let known: Vec<&str> = Grouping::ALL.iter().map(|(word, _)| *word).collect();
    let grouping = Grouping::parse(&word).ok_or_else(|| Error::invalid("group_by", known.join(", ")))?;
    let now_us = app.now_us();
    let filter = filter(caller, query, now_us)?;
    let (from_us, to_us) = (filter.from_us, filter.to_us);
    let report = app.store.read(move |tx| usage::report(tx, &filter, grouping, now_us)).await?;
    let result = |group: &Group| UsageResult {
        group: BTreeMap::from([(grouping.word().to_owned(), group.key.clone())]),
        amounts: amounts(group),
    };
    Ok(UsageReport {
        period_start: Timestamp::from_micros(from_us),
        period_end: Timestamp::from_micros(to_us),
        group_by: word,
        total: amounts(&report.total),
        results: report.groups.iter().map(result).collect(),
        as_of: Timestamp::from_micros(report.as_of_us),
    })
}

/// Everything in one sum; the month so far unless a period is given.
pub async fn summary(app: &App, caller: &Caller, query: UsageParameters) -> Result<UsageSummary, Error> {
    caller.require(Scope::UsageRead)?;
    let now_us = app.now_us();
    let filter = filter(caller, query, now_us)?;
    let (from_us, to_us) = (filter.from_us, filter.to_us);
    let report = app.store.read(move |tx| usage::report(tx, &filter, Grouping::Sandbox, now_us)).await?;
    Ok(UsageSummary {
        period_start: Timestamp::from_micros(from_us),
        period_end: Timestamp::from_micros(to_us),
        amounts: amounts(&report.total),
        sandboxes: report.total.sandboxes,
        as_of: Timestamp::from_micros(report.as_of_us),
    })
}

/// What one sandbox has used in its whole life.
pub async fn of_sandbox(app: &App, caller: &Caller, reference: &str) -> Result<SandboxUsage, Error> {
    caller.require(Scope::SandboxesRead)?;
    let row = sandbox::row(app, caller, reference).await?;
    let now_us = app.now_us();
    let filter = Filter {
        tenant_id: caller.tenant_id.clone(),
        sandbox_id: Some(row.id.clone()),
        from_us: 0,
        to_us: now_us + 1,
        ..empty_filter()
    };
    let id = row.id.clone();
    let read = app.store.read(move |tx| {
        let report = usage::report(tx, &filter, Grouping::Sandbox, now_us)?;
        Ok((report.total, execution::count(tx, &id)?))
    });
    let (total, launches) = read.await?;
    let record = sandbox::record(app, row);
    Ok(SandboxUsage {
        sandbox_id: record.id,
        state: record.state,
        runtime_sec: (total.sandbox_wall_us + total.computer_wall_us) as f64 / SECOND_US,
        provisioned_vcpu_ms: whole(total.vcpu_alloc_us / 1000),
        provisioned_memory_mb_ms: whole(total.mem_alloc_mib_us / 1000),
        active_cpu_ms: whole(total.cpu_used_us / 1000),
        network_ingress_bytes: whole(total.net_ingress_bytes),
        network_egress_bytes: whole(total.net_egress_bytes),
        creation_count: u64::try_from(launches).unwrap_or(0),
        estimated_cost_cents: 0.0,
        timeout_sec: record.timeout_sec,
        timeout_remaining_ms: record.timeout_remaining_ms,
    })
}

fn empty_filter() -> Filter {
    Filter {
        tenant_id: String::new(),
        workspace_id: None,
        project_id: None,
        external_workspace_id: None,
        external_user_id: None,
        external_project_id: None,
        sandbox_id: None,
        from_us: 0,
        to_us: 0,
    }
}

fn filter(caller: &Caller, query: UsageParameters, now_us: i64) -> Result<Filter, Error> {
    let (from_us, to_us) = period(&query, now_us)?;
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
        sandbox_id: None,
        from_us,
        to_us,
    })
}

fn period(query: &UsageParameters, now_us: i64) -> Result<(i64, i64), Error> {
    let moment = |field: &str, text: &str| {
        parse_moment_us(text).map_err(|problem| Error::invalid(field, problem.to_string()))
    };
    let (from_us, to_us) = match (&query.start, &query.end, &query.period) {
        (None, None, period) => {
            let period = Period::parse(period.as_deref().unwrap_or("month-to-date"));
            period.map_err(|problem| Error::invalid("period", problem.to_string()))?.span_us(now_us)
        }
        (Some(start), end, None | Some(_)) => {
            let to_us = end.as_deref().map_or(Ok(now_us), |end| moment("end", end))?;
            (moment("start", start)?, to_us)
        }
        (None, Some(_), _) => return Err(Error::invalid("start", "is needed together with end")),
    };
    if from_us >= to_us { Err(Error::invalid("start", "must lie before end")) } else { Ok((from_us, to_us)) }
}

fn amounts(group: &Group) -> UsageAmounts {
    let seconds = |us: i128| us as f64 / SECOND_US;
    let gib_seconds = |mib_us: i128| mib_us as f64 / MIB_PER_GIB / SECOND_US;
    let stored = gib_seconds(group.disk_mib_us + group.snapshot_mib_us);
    UsageAmounts {
        sandbox_seconds: seconds(group.sandbox_wall_us),
        computer_seconds: seconds(group.computer_wall_us),
        vcpu_seconds: seconds(group.vcpu_alloc_us),
        memory_gib_seconds: gib_seconds(group.mem_alloc_mib_us),
        cpu_seconds: seconds(group.cpu_used_us),
        memory_used_gib_seconds: gib_seconds(group.mem_used_mib_us),
        disk_gib_seconds: gib_seconds(group.disk_mib_us),
        snapshot_gib_seconds: gib_seconds(group.snapshot_mib_us),
        storage_gb_hours: stored * GB_PER_GIB / 3600.0,
        egress_bytes: whole(group.net_egress_bytes),
        ingress_bytes: whole(group.net_ingress_bytes),
        credit_cents: 0.0,
    }
}

fn whole(amount: i128) -> u64 {
    u64::try_from(amount).unwrap_or(if amount < 0 { 0 } else { u64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: i64 = 1_795_521_600_000_000; // 2026-11-24T12:00:00Z

    fn span(period: Option<&str>, start: Option<&str>, end: Option<&str>) -> Result<(i64, i64), Error> {
        let text = |text: Option<&str>| text.map(str::to_owned);
        let query = UsageParameters {
            period: text(period),
            start: text(start),
            end: text(end),
            ..Default::default()
        };
        super::period(&query, NOW_US)
    }

    #[test]
    fn periods() {
        assert_eq!(span(Some("7d"), None, None).unwrap(), (NOW_US - 7 * 86_400_000_000, NOW_US));
        assert_eq!(span(None, None, None).unwrap().1, NOW_US);
        let (from_us, to_us) =
            span(None, Some("2026-11-01T00:00:00Z"), Some("2026-11-02T00:00:00Z")).unwrap();
        assert_eq!(to_us - from_us, 86_400_000_000);
        assert!(span(Some("soon"), None, None).is_err());
        assert!(span(None, None, Some("2026-11-02T00:00:00Z")).is_err());
        assert!(span(None, Some("2026-11-02T00:00:00Z"), Some("2026-11-01T00:00:00Z")).is_err());
    }

    #[test]
    fn amounts_are_in_the_units_their_names_say() {
        let group = Group {
            sandbox_wall_us: 2_500_000,
            mem_alloc_mib_us: 512 * 2_000_000,
            disk_mib_us: 1024 * 3600 * 1_000_000,
            net_egress_bytes: 7,
            ..Group::default()
        };
        let amounts = amounts(&group);
        assert_eq!(
            (amounts.sandbox_seconds, amounts.memory_gib_seconds, amounts.egress_bytes),
            (2.5, 1.0, 7)
        );
        assert!((amounts.storage_gb_hours - GB_PER_GIB).abs() < 1e-9);
    }
}
