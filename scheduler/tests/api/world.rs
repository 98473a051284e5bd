//! A whole scheduler in this process, two tenants, and a client whose every answer is checked against the
//! document.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use http::{Method, Request};
use http_body_util::BodyExt;
use roost_daemon::clock::{Clock, System};
use roost_domain::id::{KeyId, TenantId};
use roost_domain::placeholder::{DEFAULT_MARKER, Format};
use roost_scheduler::app::{App, Brand, Limits, key};
use roost_scheduler::audit::Audit;
use roost_scheduler::fleet::{self, Fleet};
use roost_scheduler::http::{BASE, document, router};
use roost_scheduler::pki::Pki;
use roost_scheduler::secret::Vault;
use roost_scheduler::store::{Settings, Store, api_key, tenant};
use serde_json::{Value, json};
use tokio_stream::StreamExt;
use tower::ServiceExt;

use crate::conform::Conformance;
use crate::host::Host;

pub static DOCUMENT: LazyLock<Conformance> =
    LazyLock::new(|| Conformance::new(serde_json::to_value(document()).unwrap()));

const EVENT_STREAM: http::HeaderValue = http::HeaderValue::from_static("text/event-stream");

/// Everything a test may look at.
#[derive(Clone)]
pub struct World {
    pub app: Arc<App>,
    pub router: Router,
    pub host: Host,
    /// A tenant's key with the scope admin.
    pub key: String,
    pub tenant: String,
    pub clock: Arc<dyn Clock>,
    pub directory: Arc<tempfile::TempDir>,
}

/// What came back.
#[derive(Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub bytes: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    pub fn data(&self) -> Value {
        self.json()["data"].clone()
    }

    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or("").to_owned()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }
}

impl World {
    pub async fn start() -> World {
        World::with_memory(1_000_000).await
    }

    pub async fn with_memory(memory_mib: u64) -> World {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(Settings::Sqlite { path: directory.path().join("scheduler.db") }).unwrap();
        World::build(store, directory, memory_mib).await
    }

    /// On a store that is open already.
    pub async fn on(store: Store) -> World {
        World::build(store, tempfile::tempdir().unwrap(), 1_000_000).await
    }

    async fn build(store: Store, directory: tempfile::TempDir, memory_mib: u64) -> World {
        World::with_clock(store, directory, memory_mib, Arc::new(System)).await
    }

    pub async fn with_clock(
        store: Store,
        directory: tempfile::TempDir,
        memory_mib: u64,
        clock: Arc<dyn Clock>,
    ) -> World {
        let path = directory.path();
        let (app, pki) = wire(store.clone(), path, clock.clone());
        let host = Host::start(&store, &pki, path.join("guests"), clock.clone(), memory_mib).await;
        let (tenant, key) = add_tenant(&app, "one").await;
        let directory = Arc::new(directory);
        World { router: router(app.clone()), app, host, key, tenant, clock, directory }
    }

    /// Another scheduler on the same files and this store: what the one before kept in memory is gone.
    pub fn restart(&mut self, store: Store) {
        let (app, _) = wire(store, self.directory.path(), self.clock.clone());
        self.router = router(app.clone());
        self.app = app;
    }

    /// A further scheduler with the same files, the same host and this store.
    pub fn beside(&self, store: Store) -> World {
        let mut further = self.clone();
        further.restart(store);
        further
    }

    /// From now on everything is asked with the admin key of a new tenant.
    pub async fn enter_tenant(&mut self, name: &str) {
        (self.tenant, self.key) = add_tenant(&self.app, name).await;
    }

    /// Another tenant's admin key.
    pub async fn another_tenant(&self) -> String {
        add_tenant(&self.app, "two").await.1
    }

    /// A key of the first tenant with these scopes, perhaps of one workspace.
    pub async fn key_with(&self, scopes: &[&str], workspace: Option<&str>) -> String {
        add_key(&self.app, &self.tenant, scopes, workspace).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, Some(body)).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        self.call("PATCH", path, Some(body)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.call("PUT", path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, None).await
    }

    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.call_as(&self.key, method, path, body, &[]).await
    }

    pub async fn call_as(
        &self,
        key: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("{BASE}{path}"));
        if !key.is_empty() {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = match body {
            Some(body) => {
                request.header("content-type", "application/json").body(Body::from(body.to_string()))
            }
            None => request.body(Body::empty()),
        };
        self.send(request.unwrap()).await
    }

    /// Sends a request as it is; the answer must be one that the document allows.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let query = request.uri().query().unwrap_or("").to_owned();
        let (head, body) = request.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let answer = self.send_unchecked(Request::from_parts(head, Body::from(bytes.clone()))).await;
        if answer.status < 400 {
            DOCUMENT.check_request(method.as_str(), &path, &query, &bytes);
        }
        assert!(answer.headers.contains_key("x-request-id"), "{method} {path}");
        DOCUMENT.check(method.as_str(), &path, &answer);
        answer
    }

    pub async fn send_unchecked(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status.as_u16(), headers: parts.headers, bytes }
    }

    /// Opens a stream that does not end by itself and reads it until `good` finds what the test waits for.
    pub async fn read_stream(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        good: impl Fn(&str) -> bool,
    ) -> String {
        let mut request = Request::builder().uri(format!("{BASE}{path}"));
        request = request.header("authorization", format!("Bearer {}", self.key));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["content-type"]), (200, &EVENT_STREAM));
        let mut body = response.into_body().into_data_stream();
        let mut text = String::new();
        let reading = async {
            while !good(&text) {
                let chunk = body.next().await.expect("the stream goes on").unwrap();
                text.push_str(std::str::from_utf8(&chunk).unwrap());
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(20), reading).await;
        assert!(done.is_ok(), "{path} only said {text:?}");
        text
    }

    /// A small running sandbox.
    pub async fn sandbox(&self, extra: Value) -> Value {
        let mut body = json!({ "cpu_count": 1, "memory_mb": 256, "disk_size_mb": 512 });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let answer = self.post("/sandboxes?wait=20", body).await.expect(201);
        assert_eq!(answer.data()["state"], "running");
        answer.data()
    }

    pub async fn sandbox_id(&self) -> String {
        self.sandbox(json!({})).await["id"].as_str().unwrap().to_owned()
    }

    /// Asks until the answer is what the test waits for.
    pub async fn until(&self, path: &str, good: impl Fn(&Answer) -> bool) -> Answer {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let answer = self.get(path).await;
            if good(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{path} stayed {}", answer.text());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Everything the control audit says about one action.
    pub async fn audited(&self, action: &str) -> Vec<Value> {
        let rows = self.get(&format!("/audit-log?action={action}&limit=500")).await.expect(200).data();
        rows.as_array().unwrap().clone()
    }
}

/// A scheduler over this store with the authorities and keys of `path`, made there if they are not.
fn wire(store: Store, path: &std::path::Path, clock: Arc<dyn Clock>) -> (Arc<App>, Arc<Pki>) {
    // Certificates are compared with the machine's clock, whatever the test's says.
    let pki = Arc::new(Pki::ensure(&path.join("pki"), None, roost_daemon::clock::now_us()).unwrap());
    let master = Vault::ensure_master_key(&path.join("master.key")).unwrap();
    let format = Format::new(DEFAULT_MARKER, "miosa-tok-").unwrap();
    let vault = Vault::new(store.clone(), clock.clone(), master, format);
    let audit = Audit::in_directory(path.join("audit")).unwrap();
    let settings = fleet::Settings {
        issuer: "roost".into(),
        token_prefix: "miosa_pv_".into(),
        frame_ancestors: vec![],
        revocation_bound: Duration::from_secs(30),
    };
    let fleet = Fleet::new(store.clone(), clock.clone(), pki.clone(), vault.clone(), audit.clone(), settings);
    let brand = Brand { preview_domain: "preview.test".into(), ..Brand::default() };
    let app = App { store, clock, fleet, vault, audit, brand, limits: Limits::default() };
    (Arc::new(app), pki)
}

async fn add_tenant(app: &App, name: &str) -> (String, String) {
    let id = roost_daemon::ids::fresh::<TenantId>().to_string();
    let row = tenant::Tenant {
        id: id.clone(),
        name: name.into(),
        slug: name.into(),
        state: "active".into(),
        plan: json!({}),
        created_us: app.now_us(),
    };
    let workspace = tenant::Workspace {
        id: uuid::Uuid::new_v4().to_string(),
        tenant_id: id.clone(),
        slug: "default".into(),
        name: "Default".into(),
        external_workspace_id: None,
        is_default: true,
        created_us: app.now_us(),
    };
    let project = tenant::Project {
        id: uuid::Uuid::new_v4().to_string(),
        tenant_id: id.clone(),
        workspace_id: workspace.id.clone(),
        slug: "default".into(),
        name: "Default".into(),
        external_project_id: None,
        is_default: true,
        created_us: app.now_us(),
    };
    let inserted = app.store.write(move |tx| {
        tenant::insert(tx, &row)?;
        tenant::insert_workspace(tx, &workspace)?;
        tenant::insert_project(tx, &project)
    });
    assert!(inserted.await.unwrap());
    let key = add_key(app, &id, &["admin"], None).await;
    (id, key)
}

async fn add_key(app: &App, tenant: &str, scopes: &[&str], workspace: Option<&str>) -> String {
    let kind = if workspace.is_some() { "w" } else { "live" };
    let (plaintext, prefix, sha256) = key::generate("msk_", kind).unwrap();
    let row = api_key::ApiKey {
        id: roost_daemon::ids::fresh::<KeyId>().to_string(),
        tenant_id: tenant.to_owned(),
        workspace_id: workspace.map(str::to_owned),
        name: "test".into(),
        prefix,
        sha256,
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        rate_limit_rpm: None,
        actor: "test".into(),
        created_us: app.now_us(),
        expires_us: None,
        revoked_us: None,
        last_used_us: None,
    };
    app.store.write(move |tx| api_key::insert(tx, &row)).await.unwrap();
    plaintext.expose().to_owned()
}

/// Every operation of the document: method and path below the base.
pub fn operations() -> Vec<(Method, String)> {
    DOCUMENT.operations()
}
