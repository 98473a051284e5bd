//! Load on VMs that stay: commands, files, calls to the world; pause and resume.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{await_end, bring_up, rest};
use crate::crash::scene::{ENV, Scene, Vm};
use crate::upstream::SLOW;

const FILES: u64 = 8;
const CALLS_AT_ONCE: usize = 4;
const LINES_OF_FILE: usize = 200;
const PAUSE_DEADLINE: Duration = Duration::from_secs(90);
pub(in crate::crash) const LOG: &str = "/workspace/log";

/// The content of a file in a version.
pub(in crate::crash) fn content(version: u64) -> String {
    format!("version {version}\n").repeat(LINES_OF_FILE)
}

/// Calls to the world from one VM, without pause: whenever egress is killed, some are under way.
pub(super) fn call(scene: &Scene, index: usize) {
    let vm = &scene.vms[index];
    let mut number = 0;
    while !scene.is_over() {
        if vm.vital().is_none() {
            rest(scene, 300);
            continue;
        }
        let paths: Vec<String> = (0..CALLS_AT_ONCE)
            .map(|call| {
                number += 1;
                let prefix = if call % 2 == 0 { SLOW } else { "/quick/" };
                format!("{prefix}{index}-{number}")
            })
            .collect();
        call_outside(scene, vm, &paths);
    }
}

/// Commands and files in one VM.
pub(super) fn work(scene: &Scene, index: usize) {
    let vm = &scene.vms[index];
    let mut number = 0;
    while !scene.is_over() {
        if vm.vital().is_none() {
            await_end(scene, vm);
            bring_up(scene, vm);
            continue;
        }
        number += 1;
        write_file(scene, vm, number);
        append(scene, vm, number);
        rest(scene, 100);
    }
}

/// A line that is on the disk when it is acknowledged.
fn append(scene: &Scene, vm: &Vm, number: u64) {
    with(scene, vm, |sandbox| {
        sandbox.lines.asked.insert(number);
    });
    let text = format!("echo {number} >> {LOG} && sync -f {LOG}");
    if scene.shell(&vm.id, &text).is_some() {
        with(scene, vm, |sandbox| {
            sandbox.lines.acknowledged.insert(number);
        });
    }
}

/// A file that is on the disk when it is acknowledged.
fn write_file(scene: &Scene, vm: &Vm, version: u64) {
    let path = format!("/workspace/file-{}", version % FILES);
    with(scene, vm, |sandbox| sandbox.files.entry(path.clone()).or_default().ask(version));
    let body = json!({ "path": path, "content_base64": STANDARD.encode(content(version)) });
    let is_written = scene.ask("POST", &format!("/sandboxes/{}/fs/write", vm.id), Some(&body)).is_some()
        && scene.shell(&vm.id, "sync -f /workspace").is_some();
    if is_written {
        with(scene, vm, |sandbox| sandbox.files.entry(path.clone()).or_default().acknowledge(version));
        let path = format!("/sandboxes/{}/fs/download?path={path}", vm.id);
        let answer = scene.call("GET", &path, None).filter(|answer| answer.status == 200);
        // Cut in the middle, it is no answer: curl says so.
        if answer.is_some_and(|answer| answer.bytes != content(version).as_bytes()) {
            scene.violation(format!("{path} is not what was written and acknowledged"));
        }
    }
}

/// One after the other, each on a connection of its own: on one it has used before, curl would ask again by itself.
fn call_outside(scene: &Scene, vm: &Vm, paths: &[String]) {
    let mut text = format!(
        "curl -s -m 30 -w '%{{http_code}}\n' -H \"Authorization: Bearer ${ENV}\" -H 'Connection: close'"
    );
    for path in paths {
        scene.ledger().calls.entry(path.clone()).or_default();
        text.push_str(&format!(" -o /dev/null {}{path}", scene.outside));
    }
    // Its own exit code tells of the last one only; the numbers are what counts.
    let Some((_, answers)) = scene.exec(&vm.id, &text) else { return };
    let mut ledger = scene.ledger();
    for (path, answer) in paths.iter().zip(answers.lines()) {
        if let Some(call) = ledger.calls.get_mut(path) {
            call.status = answer.parse().ok().filter(|status| *status != 0);
        }
    }
}

/// Pauses and resumes; what runs inside goes on.
pub(super) fn pause_and_resume(scene: &Scene, vm: &Vm) {
    while !scene.is_over() {
        let known = vm.vital().take();
        let Some(known) = known else {
            await_end(scene, vm);
            bring_up(scene, vm);
            continue;
        };
        with(scene, vm, |sandbox| sandbox.clock.ending(Instant::now()));
        let path = format!("/sandboxes/{}/pause", vm.id);
        let mut is_paused = false;
        let begun = Instant::now();
        while !is_paused && begun.elapsed() < PAUSE_DEADLINE {
            scene.call("POST", &path, Some(&json!({})));
            is_paused = scene.await_state(&vm.id, &["paused"], Duration::from_secs(5)).is_some();
        }
        if is_paused {
            with(scene, vm, |sandbox| sandbox.clock.over(Instant::now()));
            scene.ledger().pauses += 1;
        } else {
            scene.violation(format!("{} was not paused within {} s", vm.id, PAUSE_DEADLINE.as_secs()));
        }
        resume_same(scene, vm, &known);
        rest(scene, 1500);
    }
}

fn resume_same(scene: &Scene, vm: &Vm, known: &crate::crash::scene::Vital) {
    if !bring_up(scene, vm) {
        return;
    }
    let begun = Instant::now();
    while begun.elapsed() < PAUSE_DEADLINE {
        match scene.has_marker(vm, known) {
            Some(true) => return,
            Some(false) if vm.vital().is_some() => {
                scene.violation(format!("what ran in {} before the pause is gone", vm.id));
                return;
            }
            // Killed meanwhile.
            _ if vm.vital().is_none() => return,
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

fn with(scene: &Scene, vm: &Vm, change: impl FnOnce(&mut crate::crash::ledger::Sandbox)) {
    change(scene.ledger().sandboxes.entry(vm.id.clone()).or_default());
}
