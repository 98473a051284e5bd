//! What must be true of the store and the host after any fault, whether or not the client called again.

use std::collections::BTreeMap;

use roost_domain::desired::Run;
use roost_proto::host::State;
use roost_scheduler::store::audit_log::{self, AuditRow};
use roost_scheduler::store::event;
use roost_scheduler::store::quota::{self, Subject};
use roost_scheduler::store::sandbox::{self, Sandbox};
use roost_scheduler::store::{host, params};

use super::flow::{NEW_VALUE, OLD_VALUE};
use super::rig::Rig;

pub async fn check(rig: &Rig, context: &str) {
    let rows = rig.rows().await;
    quota_is_what_lives(rig, &rows, context).await;
    reservations_are_what_is_placed(rig, context).await;
    host_holds_what_is_wanted(rig, &rows, context);
    for row in &rows {
        events_tell_the_life(rig, row, context).await;
        one_audit_row_for_each_decision(rig, row, context).await;
    }
}

async fn quota_is_what_lives(rig: &Rig, rows: &[Sandbox], context: &str) {
    let tenant = rig.world.tenant.clone();
    let subject = Subject { tenant_id: tenant.clone(), subject: "tenant", subject_id: tenant };
    let used = rig.store.read(move |tx| quota::find_use(tx, &subject)).await.unwrap();
    let used =
        used.map_or((0, 0, 0, 0), |used| (used.sandboxes, used.concurrent, used.memory_mib, used.disk_mib));
    let live: Vec<&Sandbox> = rows.iter().filter(|row| row.desired_run != "destroyed").collect();
    let running: Vec<&&Sandbox> = live.iter().filter(|row| row.desired_run == "running").collect();
    let signed = |value: u64| i64::try_from(value).unwrap();
    let expected = (
        live.len() as i64,
        running.len() as i64,
        running.iter().map(|row| signed(row.memory_mib)).sum(),
        live.iter().map(|row| signed(row.disk_mib)).sum(),
    );
    assert_eq!(used, expected, "{context}: quota in use");
}

async fn reservations_are_what_is_placed(rig: &Rig, context: &str) {
    let id = rig.world.host.id.clone();
    let (row, placed) = rig
        .store
        .read(move |tx| Ok((host::find(tx, &id)?.unwrap(), sandbox::list_placed(tx, &id)?)))
        .await
        .unwrap();
    let reserved = (row.memory_reserved_mib, row.disk_reserved_mib);
    let sums = placed
        .iter()
        .fold((0, 0), |(memory, disk), row| (memory + row.memory_reserved_mib, disk + row.disk_reserved_mib));
    assert_eq!(reserved, sums, "{context}: reserved on the host");
}

/// The host never holds what the store does not know, nor a later wish than the store's.
fn host_holds_what_is_wanted(rig: &Rig, rows: &[Sandbox], context: &str) {
    let held = rig.world.host.held.lock().unwrap();
    for row in rows {
        let Some((standing, status)) = held.get(&row.id) else { continue };
        assert!(standing.desired.generation <= row.generation, "{context}: {standing:?} {row:?}");
        if row.observed_generation == row.generation {
            assert_eq!(standing.desired.run.text(), row.desired_run, "{context}");
            let gone = standing.desired.run == Run::Destroyed;
            assert_eq!(status.state() == State::Destroyed, gone, "{context}");
        }
    }
}

/// The events of a sandbox are one walk through its life, without a step twice or left out.
async fn events_tell_the_life(rig: &Rig, row: &Sandbox, context: &str) {
    let kinds = events(rig, row).await;
    assert_eq!(kinds.first().map(String::as_str), Some("sandbox.created"), "{context}: {kinds:?}");
    for pair in kinds.windows(2) {
        let legal: &[&str] = match pair[0].as_str() {
            "sandbox.created" => &["sandbox.running", "sandbox.destroying"],
            "sandbox.running" | "sandbox.resumed" => {
                &["sandbox.paused", "sandbox.stopped", "sandbox.destroying"]
            }
            "sandbox.paused" | "sandbox.stopped" => &["sandbox.resumed", "sandbox.destroying"],
            "sandbox.destroying" => &["sandbox.destroyed"],
            _ => &[],
        };
        assert!(legal.contains(&pair[1].as_str()), "{context}: {kinds:?}");
    }
    if row.observed_generation == row.generation {
        let last: &[&str] = match row.state.as_str() {
            "running" => &["sandbox.running", "sandbox.resumed"],
            "paused" => &["sandbox.paused"],
            "stopped" => &["sandbox.stopped"],
            "destroyed" => &["sandbox.destroyed"],
            other => panic!("{context}: {other}"),
        };
        assert!(last.contains(&kinds.last().unwrap().as_str()), "{context}: {kinds:?} is {}", row.state);
    }
}

pub async fn events(rig: &Rig, row: &Sandbox) -> Vec<String> {
    let (tenant, id) = (row.tenant_id.clone(), row.id.clone());
    let read = rig.store.read(move |tx| event::list_after(tx, &tenant, Some(&id), (0, ""), 100));
    read.await.unwrap().into_iter().map(|event| event.kind).collect()
}

/// Each decision raised the generation by one, and is one row of the audit log.
async fn one_audit_row_for_each_decision(rig: &Rig, row: &Sandbox, context: &str) {
    let decided = audits(rig, "")
        .await
        .into_iter()
        .filter(|audited| audited.resource_id == row.id && audited.action.starts_with("sandbox."));
    let actions: Vec<String> = decided.map(|audited| audited.action).collect();
    assert_eq!(actions.len() as u64, row.generation, "{context}: {actions:?}");
    assert_eq!(actions[0], "sandbox.created", "{context}");
}

/// The tenant's audit rows of one action, or all, oldest first.
pub async fn audits(rig: &Rig, action: &str) -> Vec<AuditRow> {
    let filter = audit_log::Filter {
        tenant_id: rig.world.tenant.clone(),
        action: (!action.is_empty()).then(|| action.to_owned()),
        limit: 100,
        ..audit_log::Filter::default()
    };
    rig.store.read(move |tx| audit_log::list(tx, &filter)).await.unwrap()
}

/// How many rows a statement counts.
pub async fn count(rig: &Rig, sql: &'static str, id: &str) -> i64 {
    let id = id.to_owned();
    rig.store.read(move |tx| tx.query_one("count", sql, params![&id])?.int("n")).await.unwrap()
}

/// No value of a secret is in any file of the scheduler; the names beside them are.
pub fn check_files(rig: &Rig) {
    let directory = rig.world.directory.path();
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    let mut searched = 0;
    for file in ["scheduler.db", "scheduler.db-wal"].map(|name| directory.join(name)) {
        let Ok(bytes) = std::fs::read(&file) else { continue };
        searched += 1;
        for needle in [OLD_VALUE, NEW_VALUE, "sandbox.created"] {
            let count = bytes.windows(needle.len()).filter(|part| *part == needle.as_bytes()).count();
            *found.entry(needle).or_default() += count;
        }
    }
    if searched > 0 {
        assert!(found["sandbox.created"] > 0, "the search finds what is there");
        assert_eq!((found[OLD_VALUE], found[NEW_VALUE]), (0, 0), "values in clear");
    }
}
