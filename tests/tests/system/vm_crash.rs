//! Processes are killed at random under load, and nothing that was acknowledged is lost, doubled or left over.

use std::path::Path;

use roost_tests::crash::books::{self, Books};
use roost_tests::crash::check::{self, Kind};
use roost_tests::crash::{self, Trial};
use roost_tests::poll;
use roost_tests::stack::{Allowed, Stack, Wish};
use roost_tests::upstream::{HELD, Upstream};
use serde_json::json;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn vm_crash_loses_doubles_and_leaves_nothing() {
    let copies = tempfile::tempdir().unwrap();
    let (agent, scheduler) = (copies.path().join("agent"), copies.path().join("scheduler"));
    let trial = Trial { kills: 8, seed: 11, other_binaries: None, is_loud: false };
    let outcome = crash::run(&trial, |from_agent, from_scheduler| {
        copy_books(from_agent, from_scheduler, &agent, &scheduler)
    })
    .unwrap();
    let findings: Vec<String> = outcome.findings.0.iter().map(ToString::to_string).collect();
    assert!(findings.is_empty(), "{findings:#?}");
    assert_eq!(outcome.kills.values().sum::<usize>(), 8);
    let lines: usize =
        outcome.ledger.sandboxes.values().map(|sandbox| sandbox.lines.acknowledged.len()).sum();
    assert!(lines > 0 && !outcome.books.agent.deltas.is_empty(), "the load did nothing");
    assert!(outcome.books.scheduler.events.iter().any(|event| event.action.as_deref() == Some("allow")));

    // The same comparison over books that were tampered with, on the databases of this very run.
    let tamper = |which: &Path, sql: &str| {
        let changed = books::open(which).unwrap().execute(sql, []).unwrap();
        assert_eq!(changed, 1, "{sql}");
        let books = Books::read(&agent, &scheduler).unwrap();
        let found = check::check(&outcome.ledger, &books);
        assert!(!found.0.is_empty(), "nobody noticed: {sql}");
        found
    };
    assert_eq!(check::check(&outcome.ledger, &Books::read(&agent, &scheduler).unwrap()).0, []);
    let (ours, theirs) = (agent.join("agent.db"), scheduler.join("scheduler.db"));
    let first = "WHERE rowid = (SELECT min(rowid) FROM";
    let found = tamper(&theirs, &format!("DELETE FROM usage_delta {first} usage_delta)"));
    assert!(found.count(Kind::Lost) > 0, "{:?}", found.0);
    let again = "INSERT INTO usage_delta SELECT execution, seq + 1000, sandbox, from_us, to_us, wall_us, vcpu_alloc_us,
        mem_alloc_mib_us, cpu_used_us, mem_used_mib_us, disk_mib_us, snapshot_mib_us, net_egress_bytes,
        net_ingress_bytes FROM usage_delta WHERE sandbox IN (SELECT id FROM sandbox WHERE origin = 'tenant') LIMIT 1";
    tamper(&ours, again);
    let day = std::fs::read_dir(scheduler.join("audit")).unwrap().map(|entry| entry.unwrap().path());
    let day = day.filter(|path| path.extension().is_some_and(|ending| ending == "db")).max().unwrap();
    let allowed = "action = 'allow' AND status_code = 200";
    let before = check::check(&outcome.ledger, &Books::read(&agent, &scheduler).unwrap()).count(Kind::Lost);
    let one = format!("(SELECT min(rowid) FROM egress_event WHERE {allowed})");
    let found = tamper(&day, &format!("DELETE FROM egress_event WHERE rowid = {one}"));
    assert!(found.count(Kind::Lost) > before, "{:?}", found.0);

    std::fs::create_dir_all(agent.join("disks")).unwrap();
    assert_eq!(crash::files_of_sandboxes(&agent), Vec::<String>::new());
    std::fs::write(agent.join("disks/planted.ext4"), b"").unwrap();
    assert_eq!(crash::files_of_sandboxes(&agent).len(), 1);
}

/// The databases as they are at rest; their processes are still there.
fn copy_books(
    from_agent: &Path,
    from_scheduler: &Path,
    agent: &Path,
    scheduler: &Path,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(agent)?;
    std::fs::create_dir_all(scheduler.join("audit"))?;
    let copy = |from: &Path, to: &Path| -> anyhow::Result<()> {
        let text = to.to_string_lossy().into_owned();
        books::open(from)?.execute("VACUUM INTO ?1", [text])?;
        Ok(())
    };
    copy(&from_agent.join("agent.db"), &agent.join("agent.db"))?;
    copy(&from_scheduler.join("scheduler.db"), &scheduler.join("scheduler.db"))?;
    for entry in std::fs::read_dir(from_scheduler.join("audit"))? {
        let path = entry?.path();
        if let (Some(name), true) = (path.file_name(), path.extension().is_some_and(|ending| ending == "db"))
        {
            copy(&path, &scheduler.join("audit").join(name))?;
        }
    }
    Ok(())
}

#[test]
fn vm_call_cut_by_a_kill_of_egress_is_one_aborted_row() {
    let upstream = Upstream::start().unwrap();
    let wish = Wish { upstream: Some(Allowed::from(&upstream)), ..Wish::default() };
    let mut stack = Stack::for_test_with("aborted", &wish).unwrap();
    stack.expect_log("data plane disconnected");
    let tenant = stack.tenant().clone();
    let body = json!({ "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 1024 });
    let made = tenant.call("POST", "/sandboxes?wait=100", Some(&body)).unwrap().data().unwrap();
    let id = made["id"].as_str().unwrap();
    let path = format!("{HELD}once");
    let start = format!("(setsid curl -s -m 100 {} >/dev/null 2>&1 &)", upstream.url(&path));
    let exec = json!({ "command": start });
    tenant.call("POST", &format!("/sandboxes/{id}/exec"), Some(&exec)).unwrap().data().unwrap();
    poll::until("the call to arrive", DEADLINE, || Ok((upstream.seen().len() == 1).then_some(()))).unwrap();

    stack.kill_and_await("egress").unwrap();

    let rows = || -> anyhow::Result<Vec<serde_json::Value>> {
        let rows = tenant.call("GET", &format!("/egress/audit?resource_id={id}"), None)?.data()?;
        Ok(rows
            .as_array()
            .cloned()
            .unwrap_or_default()
            .into_iter()
            .filter(|row| row["path"] == *path)
            .collect())
    };
    let row = poll::until("the row to be ended", DEADLINE, || {
        Ok(rows()?.into_iter().find(|row| row["rejected_by"] == "aborted"))
    })
    .unwrap();
    assert_eq!(row["action"], "error", "{row}");
    upstream.release();
    // A second death does not end it a second time.
    stack.kill_and_await("egress").unwrap();
    let quick = json!({ "command": format!("curl -s -m 60 {}", upstream.url("/after")) });
    let answer = tenant.call("POST", &format!("/sandboxes/{id}/exec"), Some(&quick)).unwrap().data().unwrap();
    assert_eq!(answer["exit_code"], 0, "{answer}");
    poll::until("the later row", DEADLINE, || {
        let rows = tenant.call("GET", &format!("/egress/audit?resource_id={id}"), None)?.data()?;
        let rows = rows.as_array().cloned().unwrap_or_default();
        Ok(rows.iter().any(|row| row["path"] == "/after" && row["status_code"] == 200).then_some(()))
    })
    .unwrap();
    assert_eq!(rows().unwrap().len(), 1);
    assert_eq!(upstream.seen().len(), 2, "a call was sent again");
    stack.finish().unwrap();
}

#[test]
fn vm_start_is_finished_by_the_next_edge_when_the_first_is_killed() {
    let mut stack = Stack::for_test("start-cut").unwrap();
    for expected in ["data plane disconnected", "step failed, trying again"] {
        stack.expect_log(expected);
    }
    let tenant = stack.tenant().clone();
    let body = json!({ "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 1024 });
    let made = tenant.call("POST", "/sandboxes", Some(&body)).unwrap().data().unwrap();
    let id = made["id"].as_str().unwrap();
    let agent = stack.agent().unwrap();
    let execution = poll::until("the guest to be started", DEADLINE, || {
        let Ok(sandbox) = agent.inspect(id) else { return Ok(None) };
        Ok((sandbox["execution"]["phase"] == "attached").then(|| sandbox["execution"]["id"].clone()))
    })
    .unwrap();

    stack.kill_and_await("edge").unwrap();

    let sandbox = poll::until("the sandbox to run", DEADLINE, || {
        let sandbox = tenant.call("GET", &format!("/sandboxes/{id}"), None)?.data()?;
        anyhow::ensure!(sandbox["state"] != "error", "{}", sandbox["state_reason"]);
        Ok((sandbox["state"] == "running").then_some(sandbox))
    })
    .unwrap();
    assert_eq!(agent.inspect(id).unwrap()["execution"]["id"], execution, "{sandbox}");
    assert_eq!(agent.shell_text(id, "echo here").unwrap(), "here");
    stack.finish().unwrap();
}
