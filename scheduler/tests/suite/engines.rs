//! Runs one test on both engines: a SQLite file and a database of its own in PostgreSQL.
//!
//! PostgreSQL is the cluster that `ROOST_TEST_POSTGRES` names, else a private one made for this process from Debian's
//! binaries and removed at the end.

use std::future::Future;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use roost_scheduler::store::{Settings, Store};

const VARIABLE: &str = "ROOST_TEST_POSTGRES";
const HOW: &str = "install the package postgresql, or set ROOST_TEST_POSTGRES to the URL of a cluster whose user may \
                   create databases";

/// Runs `test` once on SQLite and once on PostgreSQL.
pub fn on_both<F: Future<Output = ()>>(test: impl Fn(Store) -> F) {
    on_both_settings(|settings| {
        let store = Store::open(settings).unwrap();
        runtime().block_on(test(store));
    });
}

/// For tests that open the store themselves.
pub fn on_both_settings(test: impl Fn(Settings)) {
    let directory = tempfile::tempdir().unwrap();
    test(Settings::Sqlite { path: directory.path().join("scheduler.db") });
    on_postgres_settings(test);
}

/// For tests whose SQLite half is elsewhere.
#[allow(dead_code, reason = "not every package of tests has such")]
pub fn on_postgres<F: Future<Output = ()>>(test: impl Fn(Store) -> F) {
    on_postgres_settings(|settings| {
        let store = Store::open(settings).unwrap();
        runtime().block_on(test(store));
    });
}

pub fn on_postgres_settings(test: impl Fn(Settings)) {
    let cluster = Cluster::find_or_start();
    let database = Database::create(&cluster.url);
    test(Settings::Postgres { url: database.url.clone(), connections: 6 });
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A database of its own in a cluster, dropped with this value.
struct Database {
    cluster: String,
    name: String,
    url: String,
}

impl Database {
    fn create(cluster: &str) -> Self {
        let name = format!("roost_test_{}", uuid::Uuid::new_v4().simple());
        statement(cluster, &format!("CREATE DATABASE {name}"));
        let (base, options) =
            cluster.split_once('?').map_or((cluster, String::new()), |(b, o)| (b, format!("?{o}")));
        let (server, _) = base.rsplit_once('/').expect("the URL names a database");
        Self { url: format!("{server}/{name}{options}"), cluster: cluster.to_owned(), name }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        statement(&self.cluster, &format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }
}

fn statement(url: &str, sql: &str) {
    let mut client = postgres::Client::connect(url, postgres::NoTls).unwrap_or_else(|e| panic!("{e}: {HOW}"));
    client.batch_execute(sql).unwrap();
}

struct Cluster {
    url: String,
    private: Option<(Child, PathBuf)>,
}

impl Cluster {
    fn find_or_start() -> Self {
        match std::env::var(VARIABLE) {
            Ok(url) => Self { url, private: None },
            Err(_) => Self::start(),
        }
    }

    fn start() -> Self {
        let binaries = binaries();
        let directory = PathBuf::from(format!("/tmp/roost-pg-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700)).unwrap();
        let (uid, gid) = postgres_user();
        chown(&directory, Some(uid), Some(gid)).unwrap();
        let data = directory.join("data");
        let initdb = as_postgres(&binaries.join("initdb"))
            .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data)
            .current_dir(&directory)
            .output()
            .unwrap();
        assert!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
        let server = as_postgres(&binaries.join("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(&directory)
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60"])
            .current_dir(&directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let url =
            format!("postgres://postgres@{}/postgres", directory.display().to_string().replace('/', "%2F"));
        let cluster = Self { url, private: Some((server, directory)) };
        let deadline = Instant::now() + Duration::from_secs(30);
        while postgres::Client::connect(&cluster.url, postgres::NoTls).is_err() {
            assert!(Instant::now() < deadline, "the private PostgreSQL does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        cluster
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some((mut server, directory)) = self.private.take() {
            // SIGINT is PostgreSQL's fast shutdown; a kill would leave its shared memory behind.
            let _ = Command::new("kill").args(["-INT", &server.id().to_string()]).status();
            let _ = server.wait();
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

fn binaries() -> PathBuf {
    let versions =
        std::fs::read_dir("/usr/lib/postgresql").unwrap_or_else(|_| panic!("no PostgreSQL here: {HOW}"));
    let mut found: Vec<PathBuf> = versions.flatten().map(|entry| entry.path().join("bin")).collect();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("no PostgreSQL here: {HOW}"))
}

fn postgres_user() -> (u32, u32) {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd
        .lines()
        .find(|line| line.starts_with("postgres:"))
        .unwrap_or_else(|| panic!("no user postgres: {HOW}"));
    let mut fields = line.split(':').skip(2);
    let mut number = || fields.next().unwrap().parse().unwrap();
    (number(), number())
}

fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
    command
}
