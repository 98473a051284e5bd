//! The operator's socket: who may open it, and what the commands leave behind.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use roost_daemon::clock::{self, Clock as _};
use roost_daemon::shutdown::Shutdown;
use roost_scheduler::admin::{
    self, Answer, Command, Error, HostCommand, KeyCommand, Operator, TenantCommand,
};
use roost_scheduler::store::{Settings, Store, api_key, audit_log, tenant};
use sha2::{Digest as _, Sha256};

struct Scene {
    store: Store,
    socket: PathBuf,
    shutdown: Shutdown,
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(Settings::Sqlite { path: directory.path().join("scheduler.db") }).unwrap();
        let (socket, shutdown) = (directory.path().join("run/scheduler.sock"), Shutdown::new());
        let listener = admin::bind(&socket).unwrap();
        let operator =
            Operator { store: store.clone(), clock: Arc::new(clock::System), key_prefix: "msk_".into() };
        tokio::spawn(admin::serve(listener, operator, shutdown.clone()));
        Scene { store, socket, shutdown, directory }
    }

    async fn call(&self, command: Command) -> Result<Answer, Error> {
        let socket = self.socket.clone();
        tokio::task::spawn_blocking(move || admin::call(&socket, &command)).await.unwrap()
    }

    async fn tenant(&self, name: &str) -> (String, String) {
        match self.call(Command::Tenant(TenantCommand::Create { name: name.into() })).await.unwrap() {
            Answer::Tenant { id, slug, .. } => (id, slug),
            other => panic!("{other:?}"),
        }
    }
}

fn create_key(tenant: &str) -> KeyCommand {
    KeyCommand::Create {
        tenant: tenant.into(),
        name: "ci".into(),
        workspace: None,
        scopes: vec![],
        days: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_a_key_and_its_end() {
    let scene = Scene::new();
    let (id, slug) = scene.tenant("Clinic One").await;
    assert_eq!(slug, "clinic-one");
    let again =
        scene.call(Command::Tenant(TenantCommand::Create { name: "Clinic One".into() })).await.unwrap_err();
    assert!(again.to_string().contains("exists"), "{again}");
    let tenant_id = id.clone();
    let defaults = scene.store.read(move |tx| {
        let workspace = tenant::get_default_workspace(tx, &tenant_id)?;
        Ok((workspace.id.clone(), tenant::get_default_project(tx, &workspace.id)?))
    });
    let (workspace, _) = defaults.await.unwrap();
    let Answer::Made { secret, id: key_id, .. } = scene.call(Command::Key(create_key(&slug))).await.unwrap()
    else {
        panic!("no key");
    };
    assert!(secret.starts_with("msk_live_") && secret.len() >= 9 + 27, "at least 160 random bits");
    let sha256 = Sha256::digest(secret.as_bytes()).to_vec();
    let now_us = clock::System.now_us();
    let live = move |sha256: Vec<u8>| {
        move |tx: &mut roost_scheduler::store::Tx<'_>| api_key::find_live(tx, &sha256, now_us)
    };
    let row = scene.store.read(live(sha256.clone())).await.unwrap().unwrap();
    assert_eq!(
        (row.prefix.len(), row.prefix.as_str(), row.tenant_id.as_str()),
        (12, &secret[..12], id.as_str())
    );
    let confined = KeyCommand::Create {
        tenant: id.clone(),
        name: "w".into(),
        workspace: Some("default".into()),
        scopes: vec!["sandboxes:read".into()],
        days: Some(1),
    };
    let Answer::Made { secret: confined, .. } = scene.call(Command::Key(confined)).await.unwrap() else {
        panic!()
    };
    assert!(confined.starts_with("msk_w_"));
    let row = scene.store.read(live(Sha256::digest(confined.as_bytes()).to_vec())).await.unwrap().unwrap();
    assert_eq!((row.workspace_id, row.scopes), (Some(workspace), vec!["sandboxes:read".to_owned()]));
    let revoke = Command::Key(KeyCommand::Revoke { tenant: slug.clone(), key: key_id });
    scene.call(revoke.clone()).await.unwrap();
    assert!(scene.store.read(live(sha256)).await.unwrap().is_none());
    assert!(scene.call(revoke).await.is_err(), "it is revoked already");
    let Answer::Keys(keys) = scene.call(Command::Key(KeyCommand::List { tenant: slug })).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(keys.iter().map(|key| key[2].as_str()).collect::<Vec<_>>(), ["revoked", "live"]);
    let filter = audit_log::Filter { tenant_id: id, limit: 10, ..Default::default() };
    let rows = scene.store.read(move |tx| audit_log::list(tx, &filter)).await.unwrap();
    let actions: Vec<&str> = rows.iter().map(|row| row.action.as_str()).collect();
    assert_eq!(actions, ["tenant.created", "api_key.created", "api_key.created", "api_key.revoked"]);
    let bytes = std::fs::read(scene.directory.path().join("scheduler.db-wal")).unwrap();
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds(&secret[..12]) && !holds(&secret[9..]), "the prefix is stored, the key is not");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_name_what_is_wrong() {
    let scene = Scene::new();
    let (_, slug) = scene.tenant("Acme").await;
    let unknown_scope = KeyCommand::Create {
        tenant: slug.clone(),
        name: "x".into(),
        workspace: None,
        scopes: vec!["everything".into()],
        days: None,
    };
    let unknown_workspace = KeyCommand::Create {
        tenant: slug,
        name: "x".into(),
        workspace: Some("nowhere".into()),
        scopes: vec![],
        days: None,
    };
    for (command, says) in [
        (Command::Key(create_key("nobody")), "no tenant \"nobody\""),
        (Command::Key(unknown_scope), "no scope \"everything\""),
        (Command::Key(unknown_workspace), "no workspace \"nowhere\""),
        (Command::Host(HostCommand::Cordon { host: "host_x".into() }), "no host \"host_x\""),
        (Command::Tenant(TenantCommand::Create { name: " ".into() }), "a name has"),
    ] {
        let error = scene.call(command).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_the_operators_alone_and_taken_once() {
    let scene = Scene::new();
    let mode = std::fs::metadata(&scene.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(
        matches!(admin::bind(&scene.socket), Err(Error::Socket { step: "take", .. })),
        "another one listens"
    );
    let plain = scene.directory.path().join("file");
    std::fs::write(&plain, "precious").unwrap();
    assert!(admin::bind(&plain).is_err());
    assert_eq!(std::fs::read_to_string(&plain).unwrap(), "precious");
    let stale = scene.directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    admin::bind(&stale).unwrap();
    let nobody = scene.directory.path().join("nobody.sock");
    let error = admin::call(&nobody, &Command::Tenant(TenantCommand::List)).unwrap_err();
    assert!(error.to_string().contains("is it running"), "{error}");
    scene.shutdown.request();
}
