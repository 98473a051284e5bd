//! After the last kill: everything comes to rest, what was acknowledged is there, all is taken down in order.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use super::load::{LOG, bring_up, content};
use super::scene::{PAGE, PAGE_PORT, Scene, Vm};
use crate::poll;
use crate::stack::Stack;
use crate::upstream::Upstream;

const REST_DEADLINE: Duration = Duration::from_secs(120);
/// States of the API in which nothing is under way.
const AT_REST: [&str; 4] = ["running", "paused", "stopped", "error"];

/// Both sides agree on every sandbox; then each VM is looked into.
pub(super) fn settle_and_verify(scene: &Scene) -> anyhow::Result<()> {
    poll::until("both sides to agree on every sandbox", REST_DEADLINE, || {
        let (theirs, ours) = (scene.tenant.list()?, scene.cli.list()?);
        Ok(agree(&theirs, &ours).then_some(()))
    })?;
    for vm in &scene.vms {
        if vm.vital().is_none() && !bring_up(scene, vm) {
            continue;
        }
        note(scene, verify_lines(scene, vm));
        note(scene, verify_files(scene, vm));
    }
    note(scene, verify_preview(scene, &scene.vms[0]));
    Ok(())
}

/// What cannot be looked at any more is as bad as what is wrong; the rest is looked at all the same.
fn note(scene: &Scene, looked: anyhow::Result<()>) {
    if let Err(error) = looked {
        scene.violation(format!("{error:#}"));
    }
}

fn agree(theirs: &[Value], ours: &[Value]) -> bool {
    let is_at_rest =
        |sandbox: &Value| sandbox["state"].as_str().is_some_and(|state| AT_REST.contains(&state));
    let on_host = |id: &Value| ours.iter().find(|sandbox| sandbox["id"] == *id).map(|found| &found["state"]);
    let is_same = |sandbox: &Value| match on_host(&sandbox["id"]).and_then(Value::as_str) {
        Some("failed") => sandbox["state"] == "error",
        state => sandbox["state"].as_str() == state,
    };
    let there = ours.iter().filter(|sandbox| sandbox["state"] != "destroyed").count();
    theirs.iter().all(|sandbox| is_at_rest(sandbox) && is_same(sandbox)) && there == theirs.len()
}

fn verify_lines(scene: &Scene, vm: &Vm) -> anyhow::Result<()> {
    let text = scene.shell(&vm.id, &format!("cat {LOG} 2>/dev/null || true"));
    let text = text.with_context(|| format!("reading the log in {}", vm.id))?;
    let Some(sandbox) = scene.ledger().sandboxes.get(&vm.id).cloned() else { return Ok(()) };
    for line in find_line_faults(&sandbox.lines, &text) {
        scene.violation(format!("{}: {line}", vm.id));
    }
    Ok(())
}

/// Each acknowledged line is there, none is there twice, none came from nowhere.
fn find_line_faults(lines: &super::ledger::Lines, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for line in text.lines() {
        match line.parse::<u64>() {
            Ok(number) if !lines.asked.contains(&number) => {
                faults.push(format!("line {number} was never asked for"))
            }
            Ok(number) if !seen.insert(number) => faults.push(format!("line {number} is there twice")),
            Ok(_) => {}
            Err(_) => faults.push(format!("a torn line: {line:?}")),
        }
    }
    let lost = lines.acknowledged.difference(&seen);
    faults.extend(lost.map(|number| format!("line {number} was acknowledged and is lost")));
    faults
}

fn verify_files(scene: &Scene, vm: &Vm) -> anyhow::Result<()> {
    let Some(sandbox) = scene.ledger().sandboxes.get(&vm.id).cloned() else { return Ok(()) };
    for (path, file) in sandbox.files.iter().filter(|(_, file)| file.acknowledged) {
        let answer = scene.call("GET", &format!("/sandboxes/{}/fs/download?path={path}", vm.id), None);
        let answer = answer.with_context(|| format!("reading {path}"))?;
        let is_known = file.versions.iter().any(|version| answer.bytes == content(*version).as_bytes());
        if !is_known {
            let versions = &file.versions;
            scene.violation(format!("{path} in {} is none of the versions {versions:?}", vm.id));
        }
    }
    Ok(())
}

fn verify_preview(scene: &Scene, vm: &Vm) -> anyhow::Result<()> {
    let path = format!("/sandboxes/{}/previews", vm.id);
    // Whether the viewer came to make it or not.
    scene.call("POST", &path, Some(&json!({ "port": PAGE_PORT })));
    let previews = scene.ask("GET", &path, None).context("the previews were not listed")?;
    let id = previews[0]["id"].as_str().context("there is no preview")?;
    let path = format!("/sandboxes/{}/previews/{id}/share", vm.id);
    scene.ledger().shares.asked += 1;
    let answer = scene.call("POST", &path, Some(&json!({ "expires_in_sec": 600 }))).context("no share")?;
    let url = answer.body["share_url"].as_str().context("no share")?.to_owned();
    scene.ledger().shares.acknowledged += 1;
    poll::until("the preview to be back", REST_DEADLINE, || {
        Ok(scene.fetch(&url).filter(|(status, page)| *status == 200 && page == PAGE).map(drop))
    })
}

/// Destroys every sandbox and waits until both sides have written down all there is.
pub(super) fn destroy_all(stack: &Stack, scene: &Scene, upstream: &Upstream) -> anyhow::Result<()> {
    let ids: Vec<String> = scene.ledger().sandboxes.keys().cloned().collect();
    for sandbox in ids {
        if let Some(sandbox) = scene.ledger().sandboxes.get_mut(&sandbox) {
            sandbox.clock.ending(Instant::now());
        }
    }
    scene.tenant.destroy_all()?;
    let (agent, scheduler) = (stack.agent_state(), stack.place().root.join("scheduler"));
    let arrived = upstream.seen().len();
    poll::until("the books to be closed", REST_DEADLINE, || {
        let books = super::books::Books::read(&agent, &scheduler)?;
        let is_gone = |state: &String| state == "destroyed";
        let events = &books.scheduler.events;
        let is_closed = books.agent.outbox == 0
            && books.agent.sandboxes.values().all(is_gone)
            && events.len() >= arrived
            && events.iter().all(|event| event.action.is_some());
        Ok(is_closed.then_some(()))
    })
    // What is still missing is for the comparison to say.
    .or_else(|error| {
        eprintln!("{error:#}");
        Ok::<_, anyhow::Error>(())
    })?;
    let mut ledger = scene.ledger();
    for sandbox in ledger.sandboxes.values_mut() {
        sandbox.clock.over(Instant::now());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Lines;
    use super::*;

    #[test]
    fn every_fault_of_a_log_is_found() {
        let lines = Lines { asked: (1..=5).collect(), acknowledged: [1, 2, 4].into() };
        assert_eq!(find_line_faults(&lines, "1\n2\n3\n4"), Vec::<String>::new());
        for (text, fault) in [
            ("1\n4", "line 2 was acknowledged and is lost"),
            ("1\n2\n2\n4", "line 2 is there twice"),
            ("1\n2\n4\n9", "line 9 was never asked for"),
            ("1\n2\n4\n\0\0", "a torn line: \"\\0\\0\""),
        ] {
            assert_eq!(find_line_faults(&lines, text), [fault]);
        }
    }

    #[test]
    fn sides_agree_only_at_rest_and_on_the_same() {
        let sandbox = |id: &str, state: &str| json!({ "id": id, "state": state });
        let cases = [
            (vec![sandbox("a", "running")], vec![sandbox("a", "running"), sandbox("b", "destroyed")], true),
            (vec![sandbox("a", "error")], vec![sandbox("a", "failed")], true),
            (vec![sandbox("a", "running")], vec![sandbox("a", "paused")], false),
            (vec![sandbox("a", "pausing")], vec![sandbox("a", "pausing")], false),
            (vec![], vec![sandbox("a", "running")], false),
            (vec![sandbox("a", "running")], vec![], false),
        ];
        for (theirs, ours, expected) in cases {
            assert_eq!(agree(&theirs, &ours), expected, "{theirs:?} {ours:?}");
        }
    }
}
