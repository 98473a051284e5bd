//! Every operation on a sandbox in every state it can be found in: what works, and the refusal of what does not.

use serde_json::{Value, json};

use crate::host::Mood;
use crate::world::{DOCUMENT, World, operations};

/// What an operation needs of its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Nothing: what was is shown for good.
    Nothing,
    /// Not to be gone.
    Kept,
    /// A guest that answers.
    Guest,
    Extend,
    Pause,
    Stop,
    Resume,
    Destroy,
}

use Need::{Destroy, Extend, Guest, Kept, Nothing, Pause, Resume, Stop};

/// The need of an operation below `/sandboxes/{id}`; a new one wants a line here.
fn need(method: &str, rest: &str) -> Need {
    match (method, rest) {
        (
            "GET",
            ""
            | "/readiness"
            | "/readiness/stream"
            | "/env"
            | "/events"
            | "/secrets/resolution"
            | "/previews"
            | "/usage",
        ) => Nothing,
        ("DELETE", "") => Destroy,
        ("POST", "/pause") => Pause,
        ("POST", "/stop") => Stop,
        ("POST", "/resume" | "/start") => Resume,
        ("POST", "/extend") => Extend,
        ("PATCH", "" | "/tags") | ("PUT", "/env") | ("DELETE", "/env/{key}") => Kept,
        (_, rest)
            if ["/expose", "/preview-token", "/previews"].iter().any(|start| rest.starts_with(start)) =>
        {
            Kept
        }
        (_, rest)
            if ["/exec", "/commands", "/processes", "/files", "/fs"]
                .iter()
                .any(|start| rest.starts_with(start)) =>
        {
            Guest
        }
        _ => panic!("{method} /sandboxes/{{id}}{rest} has no line in the table of needs"),
    }
}

/// What must come of it; the first is a status, the second a code where it is a refusal.
fn expected(need: Need, state: &str) -> (&'static [u16], &'static str) {
    match (need, state) {
        (Nothing, _) => (&[200], ""),
        (Destroy, _) => (&[202, 204], ""),
        (_, "destroyed") => (&[404], "not_found"),
        (Guest, "running") => (&[200, 201, 204, 404], ""),
        (Guest | Pause | Extend, "creating") => (&[409], "SANDBOX_STARTING"),
        (Guest, _) | (Pause, "stopped" | "error") => (&[409], "RESOURCE_STATE"),
        (Extend, "running") => (&[200], ""),
        (Extend, _) => (&[409], "RESOURCE_STATE"),
        (Pause | Stop | Resume, _) => (&[200, 202], ""),
        (Kept, _) => (&[200, 201, 204], ""),
    }
}

fn body(method: &str, rest: &str) -> Option<Value> {
    Some(match (method, rest) {
        ("GET" | "DELETE", _) | (_, "/pause" | "/stop" | "/resume" | "/start") => return None,
        (_, "/exec" | "/exec/stream" | "/commands" | "/processes") => json!({ "command": "true" }),
        (_, "/fs/write") => json!({ "path": "/workspace/a", "content_base64": "" }),
        (_, "/files") => json!({ "path": "/workspace/a", "content": "" }),
        (_, "/fs/write-many" | "/files/write-many") => json!({ "files": [] }),
        (_, "/fs/stat" | "/files/stat") => json!({ "path": "/workspace" }),
        (_, "/tags") => json!({ "tags": [] }),
        (_, "/env") => json!({ "vars": [] }),
        (_, "/previews") => json!({ "port": 3000 }),
        _ => json!({}),
    })
}

/// A sandbox in this state, and one of its previews.
async fn made(world: &World, state: &str) -> (String, String) {
    world.host.set_mood(if state == "creating" { Mood::Slow } else { Mood::Prompt });
    if state == "error" {
        world.host.set_mood(Mood::Broken);
    }
    let body = json!({ "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 512, "auto_resume": false });
    let made = world.post("/sandboxes", body).await.expect(202).data();
    let id = made["id"].as_str().unwrap().to_owned();
    let path = format!("/sandboxes/{id}");
    let settled = if ["creating", "error"].contains(&state) { state } else { "running" };
    world.until(&path, |answer| answer.data()["state"] == settled).await;
    let preview = world.post(&format!("{path}/previews"), json!({ "port": 3000 })).await.expect(201).data();
    match state {
        "paused" => drop(world.post(&format!("{path}/pause"), json!({})).await.expect(200)),
        "stopped" => drop(world.post(&format!("{path}/stop"), json!({})).await.expect(200)),
        "destroyed" => drop(world.delete(&path).await.expect(202)),
        _ => {}
    }
    world.until(&path, |answer| answer.data()["state"] == state).await;
    (id, preview["id"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_in_every_state_does_it_or_says_why_not() {
    let world = World::start().await;
    let mut findings = Vec::new();
    let mut cases = 0;
    for state in ["creating", "running", "paused", "stopped", "error", "destroyed"] {
        for (method, template) in operations() {
            let Some(rest) = template.strip_prefix("/sandboxes/{id}") else { continue };
            let need = need(method.as_str(), rest);
            let document = DOCUMENT.operation(method.as_str(), &template);
            let streams = document.pointer("/responses/200/content/text~1event-stream").is_some();
            // Those that go on are read by tests of their own; here they would not end, or not before the state does.
            if streams && (need == Nothing || state == "running") {
                continue;
            }
            // It is on its way already: such a call waits for the end of that, as the create's own does.
            if (need, state) == (Resume, "creating") {
                continue;
            }
            // Some change the state, so each has a sandbox of its own, on a host that now does as it is told.
            let (id, preview) = made(&world, state).await;
            world.host.set_mood(Mood::Prompt);
            let rest = rest
                .replace("{preview_id}", &preview)
                .replace("{pid}", "1")
                .replace("{key}", "NONE")
                .replace("{path}", "workspace/a");
            let query = if rest.ends_with("/fs/download") { "?path=a" } else { "" };
            let path = format!("/sandboxes/{id}{rest}{query}");
            let own = template.strip_prefix("/sandboxes/{id}").unwrap_or_default();
            let (statuses, code) = expected(need, state);
            let answer = world.call(method.as_str(), &path, body(method.as_str(), own)).await;
            let absent = state != "destroyed" && path.ends_with("/env/NONE") && answer.status == 404;
            let good = statuses.contains(&answer.status) && (code.is_empty() || answer.code() == code);
            if !good && !absent {
                findings.push(format!(
                    "{method} {template} while {state}: {} {}",
                    answer.status,
                    answer.text()
                ));
            }
            if good && code == "RESOURCE_STATE" {
                let message = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
                if !message.contains(state) || !message.contains(';') {
                    findings.push(format!(
                        "{method} {template} while {state} does not say what to do: {message}"
                    ));
                }
            }
            cases += 1;
        }
    }
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
    assert!(cases > 200, "{cases}");
}
