//! Load by what passes: sandboxes that live for a moment, shares that are minted, used and revoked.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{UP_DEADLINE, rest};
use crate::crash::scene::{PAGE, PAGE_PORT, Scene, USER};

const RETRY: Duration = Duration::from_millis(300);
/// An end that is answered while nobody else is down is seen everywhere within this.
const REVOKE_DEADLINE: Duration = Duration::from_secs(60);

pub(in crate::crash) fn sandbox_body(name: &str) -> Value {
    // Outlives the trial: one that is paused by its timeout gets another VMM, and that would look like a loss.
    json!({
        "name": name, "external_user_id": USER, "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 1024,
        "timeout_sec": 24 * 3600,
    })
}

/// Creates a sandbox as a careful client does, uses it once, destroys it.
pub(super) fn create_and_destroy(scene: &Scene) {
    let mut number = 0;
    while !scene.is_over() {
        number += 1;
        let name = format!("mayfly-{number}");
        let asked = Instant::now();
        scene.ledger().creates.insert(name.clone(), None);
        let Some(id) = create(scene, &name) else { continue };
        {
            let mut ledger = scene.ledger();
            ledger.creates.insert(name, Some(id.clone()));
            ledger.sandboxes.entry(id.clone()).or_default().clock.asked(asked);
        }
        if scene.await_state(&id, &["running", "error", "stopped"], UP_DEADLINE).as_deref() == Some("running")
        {
            if let Some(sandbox) = scene.ledger().sandboxes.get_mut(&id) {
                sandbox.clock.running(Instant::now());
            }
            scene.shell(&id, "echo here");
        } else {
            scene.violation(format!("{id} was created and never ran"));
        }
        destroy(scene, &id);
        rest(scene, 1000);
    }
}

/// The same request until it is answered: it creates once.
fn create(scene: &Scene, name: &str) -> Option<String> {
    let header = format!("Idempotency-Key: {name}");
    let begun = Instant::now();
    while begun.elapsed() < UP_DEADLINE {
        let body = sandbox_body(name);
        let further = ["-H", header.as_str(), "--max-time", "30"];
        let answer = scene.tenant.call_with("POST", "/sandboxes", Some(&body), &further);
        if let Some(data) = answer.ok().and_then(|answer| answer.data().ok()) {
            return data["id"].as_str().map(str::to_owned);
        }
        // The trial is over: whoever asks for the sandboxes there are will find it, if it is one.
        if scene.is_over() {
            return None;
        }
        std::thread::sleep(RETRY);
    }
    scene.violation(format!("{name} was not created within {} s", UP_DEADLINE.as_secs()));
    None
}

fn destroy(scene: &Scene, id: &str) {
    if let Some(sandbox) = scene.ledger().sandboxes.get_mut(id) {
        sandbox.clock.ending(Instant::now());
    }
    let begun = Instant::now();
    while begun.elapsed() < UP_DEADLINE {
        let status = scene.call("DELETE", &format!("/sandboxes/{id}"), None).map(|answer| answer.status);
        if let Some(sandbox) = scene.ledger().sandboxes.get_mut(id) {
            sandbox.destroy_acknowledged |= matches!(status, Some(200..300));
            // 202: it is being taken down.
            if matches!(status, Some(204 | 404)) {
                sandbox.clock.over(Instant::now());
                return;
            }
        }
        std::thread::sleep(RETRY);
    }
    scene.violation(format!("{id} was not destroyed within {} s", UP_DEADLINE.as_secs()));
}

/// A share of the first VM's page: minted, used, revoked, refused.
pub(super) fn share_and_view(scene: &Scene) {
    let vm = &scene.vms[0];
    let body = json!({ "port": PAGE_PORT });
    let preview = loop {
        if scene.is_over() {
            return;
        }
        if let Some(made) = scene.ask("POST", &format!("/sandboxes/{}/previews", vm.id), Some(&body)) {
            break made["id"].as_str().unwrap_or_default().to_owned();
        }
        std::thread::sleep(RETRY);
    };
    let path = format!("/sandboxes/{}/previews/{preview}/share", vm.id);
    while !scene.is_over() {
        scene.ledger().shares.asked += 1;
        let answer = scene.call("POST", &path, Some(&json!({ "expires_in_sec": 600 })));
        let url = answer.and_then(|answer| answer.body["share_url"].as_str().map(str::to_owned));
        if let Some(url) = url {
            scene.ledger().shares.acknowledged += 1;
            view(scene, &url);
            if scene.call("DELETE", &path, None).is_some_and(|answer| (200..300).contains(&answer.status)) {
                refuse(scene, &url);
            }
        }
        rest(scene, 500);
    }
}

fn view(scene: &Scene, url: &str) {
    if let Some((200, page)) = scene.fetch(url) {
        scene.ledger().previews += 1;
        if page != PAGE {
            scene.violation(format!("the preview showed {page:?}"));
        }
    }
}

/// A revoked share is refused, at the latest when everyone is back.
fn refuse(scene: &Scene, url: &str) {
    let begun = Instant::now();
    while begun.elapsed() < REVOKE_DEADLINE {
        match scene.fetch(url) {
            Some((200, _)) | None => std::thread::sleep(RETRY),
            Some(_) => return,
        }
    }
    scene.violation(format!("a revoked share still opened the page after {} s", REVOKE_DEADLINE.as_secs()));
}
