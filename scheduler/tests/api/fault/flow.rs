//! The flows: what each needs, what its client calls, and what must be true of it at the end.

use std::time::Duration;

use roost_domain::token;
use roost_scheduler::secret::{Error as VaultError, Outcome};
use roost_scheduler::store::{params, preview, sandbox, secret};
use roost_scheduler::sweep;
use serde_json::{Value, json};

use super::invariant::{audits, count, events};
use super::rig::{PATIENCE, Rig, Scene};
use crate::previews::verify;
use crate::world::Answer;

pub type Heard = Answer;

pub const OLD_VALUE: &str = "sk-old-sesame-0123456789";
pub const NEW_VALUE: &str = "sk-new-sesame-9876543210";
const TIMEOUT_S: i64 = 300;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    CreateKeyed,
    CreateUnkeyed,
    Exec,
    Upload,
    Pause,
    Resume,
    Stop,
    SetSecret,
    RotateSecret,
    Mint,
    Revoke,
    Destroy,
    Timeout,
}

impl Flow {
    /// What is there before anything goes wrong.
    pub async fn prepare(self, rig: &mut Rig) -> Scene {
        let mut scene = Scene { key: uuid::Uuid::new_v4().to_string(), ..Scene::default() };
        if matches!(self, Flow::CreateKeyed | Flow::CreateUnkeyed) {
            // A key's first use is a write of its own.
            rig.world.get("/sandboxes").await.expect(200);
            return scene;
        }
        let extra = if self == Flow::Timeout { json!({ "timeout_sec": TIMEOUT_S }) } else { json!({}) };
        scene.sandbox = rig.world.sandbox(extra).await["id"].as_str().unwrap().to_owned();
        let path = format!("/sandboxes/{}", scene.sandbox);
        match self {
            Flow::Exec | Flow::RotateSecret => {
                let made = rig.world.post("/egress/secrets", secret_body(OLD_VALUE)).await.expect(201);
                scene.other = made.data()["id"].as_str().unwrap().to_owned();
            }
            Flow::Upload => {
                rig.world.post(&format!("{path}/fs/write"), upload("old")).await.expect(200);
            }
            Flow::Resume => {
                rig.world.post(&format!("{path}/pause"), json!({})).await.expect(200);
            }
            Flow::Mint | Flow::Revoke | Flow::Destroy => {
                let made = rig.world.post(&format!("{path}/previews"), json!({ "port": 3000 })).await;
                scene.other = made.expect(201).data()["id"].as_str().unwrap().to_owned();
            }
            _ => {}
        }
        if self == Flow::Mint {
            // So that the key that signs is made in the flow too.
            rig.store.write(|tx| tx.execute("DELETE FROM signing_key", params![])).await.unwrap();
        }
        if self == Flow::Revoke {
            let minted = rig.world.post(&self.path(&scene), json!({})).await.expect(201).json();
            scene.token = minted["preview_token"].as_str().unwrap().to_owned();
        }
        scene
    }

    fn path(self, scene: &Scene) -> String {
        let (sandbox, other) = (&scene.sandbox, &scene.other);
        match self {
            Flow::CreateKeyed | Flow::CreateUnkeyed => "/sandboxes?wait=20".to_owned(),
            Flow::Exec => format!("/sandboxes/{sandbox}/exec"),
            Flow::Upload => format!("/sandboxes/{sandbox}/fs/write"),
            Flow::Pause => format!("/sandboxes/{sandbox}/pause"),
            Flow::Resume => format!("/sandboxes/{sandbox}/resume"),
            Flow::Stop => format!("/sandboxes/{sandbox}/stop"),
            Flow::SetSecret => "/egress/secrets".to_owned(),
            Flow::RotateSecret => format!("/egress/secrets/{other}"),
            Flow::Mint | Flow::Revoke => format!("/sandboxes/{sandbox}/previews/{other}/share"),
            Flow::Destroy | Flow::Timeout => format!("/sandboxes/{sandbox}"),
        }
    }

    /// One call of the client, or one turn of the sweep.
    pub async fn call(self, rig: &Rig, scene: &Scene) -> Heard {
        let (world, path) = (&rig.world, self.path(scene));
        match self {
            Flow::CreateKeyed => {
                let key = [("idempotency-key", scene.key.as_str())];
                world.call_as(&world.key, "POST", &path, Some(small()), &key).await
            }
            Flow::CreateUnkeyed => world.post(&path, small()).await,
            Flow::Exec => {
                let command = "printf 'ran %s\\n' \"$OPENAI_API_KEY\" >> ran; echo done";
                world.post(&path, json!({ "command": command })).await
            }
            Flow::Upload => world.post(&path, upload("new")).await,
            Flow::Pause | Flow::Resume | Flow::Stop => world.post(&path, json!({})).await,
            Flow::SetSecret => world.post(&path, secret_body(NEW_VALUE)).await,
            Flow::RotateSecret => world.patch(&path, json!({ "value": NEW_VALUE })).await,
            Flow::Mint => world.post(&path, json!({})).await,
            Flow::Revoke | Flow::Destroy => world.delete(&path).await,
            Flow::Timeout => {
                rig.pass_us(TIMEOUT_S * 1_000_000 + 1);
                let swept = sweep::end_overdue(&world.app).await.is_ok();
                Answer { status: if swept { 200 } else { 503 }, ..Answer::default() }
            }
        }
    }

    /// How long what is behind an answer may take. A sweep answers nobody: what failed is there at its next turn.
    pub fn patience(self) -> Duration {
        if self == Flow::Timeout { Duration::from_secs(2) } else { PATIENCE }
    }

    /// What is true once the client was answered `heard` after so many calls.
    pub async fn check(self, rig: &Rig, scene: &Scene, heard: &[Heard], calls: usize, context: &str) {
        match self {
            Flow::CreateKeyed | Flow::CreateUnkeyed => created(self, rig, heard, calls, context).await,
            Flow::Exec => ran(rig, scene, heard, calls, context),
            Flow::Upload => {
                let text = std::fs::read_to_string(home(rig, scene).join("file")).unwrap();
                assert_eq!(text, content("new"), "{context}");
            }
            Flow::Pause => changed(rig, "sandbox.paused", "paused", context).await,
            Flow::Stop => changed(rig, "sandbox.stopped", "stopped", context).await,
            Flow::Timeout => changed(rig, "sandbox.paused", "paused", context).await,
            Flow::Resume => changed(rig, "sandbox.resumed", "running", context).await,
            Flow::SetSecret | Flow::RotateSecret => stored(self, rig, scene, context).await,
            Flow::Mint => minted(rig, scene, heard, context).await,
            Flow::Revoke => revoked(rig, scene, context).await,
            Flow::Destroy => destroyed(rig, scene, context).await,
        }
    }
}

fn small() -> Value {
    json!({ "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 512 })
}

fn secret_body(value: &str) -> Value {
    json!({ "name": "OPENAI_API_KEY", "value": value, "expose_as_env": "OPENAI_API_KEY", "scope": "tenant" })
}

fn content(which: &str) -> String {
    format!("{which} ").repeat(50_000)
}

fn upload(which: &str) -> Value {
    use base64::Engine as _;
    let content = base64::engine::general_purpose::STANDARD.encode(content(which));
    json!({ "path": "/workspace/file", "content_base64": content })
}

fn home(rig: &Rig, scene: &Scene) -> std::path::PathBuf {
    rig.world.directory.path().join("guests").join(&scene.sandbox)
}

async fn created(flow: Flow, rig: &Rig, heard: &[Heard], calls: usize, context: &str) {
    let rows = rig.rows().await;
    let mut ids: Vec<String> =
        heard.iter().map(|answer| answer.data()["id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids.dedup();
    for id in &ids {
        assert!(rows.iter().any(|row| row.id == *id), "{context}: {id} was answered and is not there");
    }
    let expected = if flow == Flow::CreateKeyed { 1..=1 } else { ids.len()..=calls };
    assert!(expected.contains(&rows.len()), "{context}: {} sandboxes", rows.len());
    assert_eq!(ids.len(), if flow == Flow::CreateKeyed { 1 } else { heard.len() }, "{context}");
    assert_eq!(audits(rig, "sandbox.created").await.len(), rows.len(), "{context}");
    for row in &rows {
        assert_eq!(row.state, "running", "{context}");
        assert_eq!(events(rig, row).await, ["sandbox.created", "sandbox.running"], "{context}");
    }
}

/// Nothing but a client repeats a command, and what was answered ran.
fn ran(rig: &Rig, scene: &Scene, heard: &[Heard], calls: usize, context: &str) {
    let text = std::fs::read_to_string(home(rig, scene).join("ran")).unwrap();
    let count = text.lines().count();
    assert!((heard.len()..=calls).contains(&count), "{context}: {count} runs of {calls} calls");
    assert!(text.lines().all(|line| line.contains("MIOSA") && !line.contains("sesame")), "{context}: {text}");
    for answer in heard {
        assert_eq!(answer.json()["stdout"], "done\n", "{context}");
    }
}

async fn changed(rig: &Rig, action: &str, state: &str, context: &str) {
    let row = rig.rows().await.remove(0);
    assert_eq!((row.state.as_str(), row.desired_run.as_str()), (state, state), "{context}");
    assert_eq!(audits(rig, action).await.len(), 1, "{context}");
    let told = events(rig, &row).await;
    assert_eq!(told.iter().filter(|kind| *kind == action).count(), 1, "{context}: {told:?}");
}

/// One secret, whose value opens and is the new one; each version is one row of the audit log.
async fn stored(flow: Flow, rig: &Rig, scene: &Scene, context: &str) {
    let filter = secret::Filter { tenant_id: rig.world.tenant.clone(), ..secret::Filter::default() };
    let rows = rig.store.read(move |tx| secret::list(tx, &filter)).await.unwrap();
    assert_eq!(rows.len(), 1, "{context}");
    let (made, rotated) =
        (audits(rig, "secret.created").await.len(), audits(rig, "secret.rotated").await.len());
    assert_eq!((made, (made + rotated) as u64), (1, rows[0].version), "{context}");
    assert!(flow == Flow::SetSecret || rotated >= 1, "{context}");
    assert_eq!(value(rig, &scene.sandbox).await, NEW_VALUE, "{context}");
    let versions = "SELECT COUNT(*) AS n FROM secret_version WHERE secret_id = ?1";
    assert_eq!(count(rig, versions, &rows[0].id).await, 1, "{context}: only the newest is kept");
}

/// What egress would put in place of the sandbox's placeholder.
async fn value(rig: &Rig, id: &str) -> String {
    let vault = rig.world.app.vault.clone();
    let id = id.to_owned();
    let asked = rig.store.read(move |tx| sandbox::find_any(tx, &id)).await.unwrap().unwrap();
    let placeholder = vault.environment(&asked).await.unwrap()["OPENAI_API_KEY"].clone();
    let resolved = rig.store.examine(move |tx| {
        vault.resolve(tx, &asked, std::slice::from_ref(&placeholder), Duration::from_secs(30))
    });
    let resolved: Result<_, VaultError> = resolved.await;
    match resolved.unwrap().remove(0).1 {
        Outcome::Lease(lease) => String::from_utf8(lease.secret_bytes().to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Every token that was answered is signed by a key hosts have, under the generation they compare with.
async fn minted(rig: &Rig, scene: &Scene, heard: &[Heard], context: &str) {
    let row = find_preview(rig, &scene.other).await;
    let (id, now_us) = (scene.other.clone(), rig.world.app.now_us());
    let live = rig.store.read(move |tx| preview::list_live_tokens(tx, &id, now_us)).await.unwrap();
    for answer in heard {
        let text = answer.json()["preview_token"].as_str().unwrap().to_owned();
        let parts = token::split(&text, "miosa").unwrap();
        let claims = verify(&rig.world, parts.jwt).await;
        assert_eq!(claims.generation, u64::try_from(row.share_generation).unwrap(), "{context}");
        assert!(live.iter().any(|token| token.tid == parts.tid), "{context}: {} is not listed", parts.tid);
    }
    assert_eq!(audits(rig, "preview.share_token.issued").await.len(), live.len(), "{context}");
}

async fn revoked(rig: &Rig, scene: &Scene, context: &str) {
    let row = find_preview(rig, &scene.other).await;
    let claims = verify(&rig.world, token::split(&scene.token, "miosa").unwrap().jwt).await;
    assert!(claims.generation < u64::try_from(row.share_generation).unwrap(), "{context}");
    let (id, now_us) = (scene.other.clone(), rig.world.app.now_us());
    let live = rig.store.read(move |tx| preview::list_live_tokens(tx, &id, now_us)).await.unwrap();
    assert_eq!(live.len(), 0, "{context}");
    let revoked = audits(rig, "preview.share_token.revoked").await.len();
    assert_eq!(revoked as i64, row.share_generation - 1, "{context}");
}

async fn find_preview(rig: &Rig, id: &str) -> preview::Preview {
    let (tenant, id) = (rig.world.tenant.clone(), id.to_owned());
    rig.store.read(move |tx| preview::find(tx, &tenant, &id)).await.unwrap().unwrap()
}

async fn destroyed(rig: &Rig, scene: &Scene, context: &str) {
    changed(rig, "sandbox.destroyed", "destroyed", context).await;
    assert!(!home(rig, scene).exists(), "{context}: its files are there");
    let (tenant, id) = (rig.world.tenant.clone(), scene.other.clone());
    let left = rig.store.read(move |tx| preview::find(tx, &tenant, &id)).await.unwrap();
    assert!(left.is_none_or(|row| row.deleted_us.is_some()), "{context}: its preview is there");
}
