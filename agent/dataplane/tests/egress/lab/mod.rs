//! The world of one test: namespaces, a certificate authority, upstreams, and egress in between.

mod authority;
mod guest;
mod leases;
mod upstream;
mod world;

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use roost_dataplane::control::{self, Attachment, Handler};
use roost_dataplane::egress::{Connect, Egress, Host, Settings, UpstreamRoots};
use roost_domain::Ulid;
use roost_domain::audit::{Completion, Intent, Record};
use roost_domain::host_name::Pattern;
use roost_domain::id::{ExecutionId, SandboxId};
use roost_proto::dataplane::Origin;

pub(crate) use authority::Root;
pub(crate) use guest::{Guest, Reply};
pub(crate) use leases::{FakeLeases, SECRET, credential, placeholder};
pub(crate) use upstream::{Upstream, raw, raw_tls};
pub(crate) use world::{PUBLIC, World};

/// Names that were looked up beyond this host, in this process.
pub(crate) static LOOKUPS: AtomicUsize = AtomicUsize::new(0);

/// Answers for every name the tests use; nothing asks a real resolver.
#[derive(Debug, Clone, Copy)]
struct FakeResolver;

impl roost_dial::Resolve for FakeResolver {
    async fn resolve(&self, host: &Host) -> std::io::Result<Vec<IpAddr>> {
        LOOKUPS.fetch_add(1, Ordering::Relaxed);
        let public = IpAddr::V4(PUBLIC);
        match host.as_str() {
            "rebound.example.com" => Ok(vec![Ipv4Addr::LOCALHOST.into()]),
            "half.example.com" => Ok(vec![public, Ipv4Addr::new(169, 254, 169, 254).into()]),
            "mapped.example.com" => Ok(vec!["::ffff:10.0.0.1".parse().unwrap()]),
            "unknown.example.com" => Err(std::io::Error::other("no such name")),
            name if name.ends_with(".example.com") || name.ends_with(".example.net") => Ok(vec![public]),
            name => panic!("the tests ask for no such name: {name}"),
        }
    }
}

fn connector(settings: roost_dial::Settings) -> Arc<dyn Connect> {
    Arc::new(roost_dial::Connector::with(settings, FakeResolver, roost_dial::TcpDialler))
}

/// What a test may want otherwise.
pub(crate) struct Options {
    pub(crate) settings: Settings,
    pub(crate) origin: Origin,
    /// Whether the host has joined, so that TLS can be inspected.
    pub(crate) joined: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { settings: Settings::default(), origin: Origin::Tenant, joined: true }
    }
}

pub(crate) struct Lab {
    pub(crate) egress: Arc<Egress>,
    pub(crate) guest: Guest,
    pub(crate) leases: Arc<FakeLeases>,
    pub(crate) attachment: Attachment,
    /// Signs what upstreams show; trusted for `*.example.com` only.
    pub(crate) upstream_root: Root,
    pub(crate) directory: PathBuf,
    world: World,
    _temporary: tempfile::TempDir,
}

/// Runs a test in a fresh world.
pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F) {
    run_with(Options::default(), test);
}

pub(crate) fn run_with<F: Future<Output = ()>>(options: Options, test: impl FnOnce(Lab) -> F) {
    let world = World::build();
    block_on(async { test(Lab::start(world, options).await).await });
}

/// Runs a test on threads of the namespace that the calling one is in.
pub(crate) fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let test = async { tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs") };
    runtime.block_on(test);
}

impl Lab {
    async fn start(world: World, mut options: Options) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("egress");
        std::fs::create_dir(&directory).unwrap();
        let upstream_root = Root::new("upstream test root");
        let roots_file = temporary.path().join("upstream-roots.pem");
        std::fs::write(&roots_file, upstream_root.pem()).unwrap();
        let host = Pattern::parse("*.example.com").unwrap();
        options.settings.upstream_roots.push(UpstreamRoots { host, file: roots_file });

        let egress_root = Root::new("egress test root");
        let leases = Arc::new(FakeLeases::default());
        if options.joined {
            // The agent's part of joining: the request is made at the first start, the certificate put beside
            // it.
            drop(open(&options.settings, &directory, &leases));
            let request = std::fs::read_to_string(directory.join("egress-ca.csr")).unwrap();
            std::fs::write(directory.join("egress-ca.pem"), egress_root.sign_authority(&request)).unwrap();
        }
        let egress = Arc::new(open(&options.settings, &directory, &leases));
        let attachment = Attachment {
            execution: ExecutionId::from_ulid(Ulid::generate()),
            sandbox: Some(SandboxId::from_ulid(Ulid::generate())),
            lineage: Some(SandboxId::from_ulid(Ulid::generate())),
            generation: 1,
            origin: options.origin,
            guest: None,
        };
        let guest = world.guest(egress_root);
        let lab = Self {
            egress,
            guest,
            leases,
            attachment,
            upstream_root,
            directory,
            world,
            _temporary: temporary,
        };
        lab.egress.attach(lab.attachment.clone(), lab.descriptors()).await.unwrap();
        lab
    }

    /// A fresh listener and DNS socket of the guest's namespace, and its dns.map.
    pub(crate) fn descriptors(&self) -> Vec<OwnedFd> {
        self.world.descriptors(&self.dns_map())
    }

    pub(crate) fn dns_map(&self) -> PathBuf {
        self.directory.parent().unwrap().join("dns.map")
    }

    /// A process over another directory, as after a crash.
    pub(crate) fn open_at(&self, directory: &Path, settings: &Settings) -> Egress {
        open(settings, directory, &self.leases)
    }

    /// Every row of this run whose intent is written, oldest first.
    pub(crate) fn rows(&self) -> Vec<Row> {
        rows(&self.directory.join("audit/shipped"))
    }

    /// Waits until there are this many complete rows, and checks that there are no more.
    pub(crate) async fn complete_rows(&self, count: usize) -> Vec<Row> {
        let rows = eventually("complete rows", || {
            let rows = self.rows();
            let complete = rows.len() >= count && rows.iter().all(|row| row.completion.is_some());
            complete.then_some(rows)
        });
        let rows = rows.await;
        assert_eq!(rows.len(), count, "{rows:#?}");
        rows
    }

    pub(crate) async fn only_row(&self) -> (Intent, Completion) {
        let row = self.complete_rows(1).await.remove(0);
        (row.intent, row.completion.unwrap())
    }
}

fn open(settings: &Settings, directory: &Path, leases: &Arc<FakeLeases>) -> Egress {
    Egress::open(settings.clone(), directory, Arc::clone(leases) as _, connector, control::notices().0)
        .unwrap()
}

/// Both records of a call.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) intent: Intent,
    pub(crate) completion: Option<Completion>,
}

impl Row {
    pub(crate) fn rejected_by(&self) -> Option<&str> {
        self.completion.as_ref()?.rejected_by.as_deref()
    }
}

/// The rows of a journal. Fails on a second completion and on one without an intent.
pub(crate) fn rows(journal: &Path) -> Vec<Row> {
    let mut segments: Vec<PathBuf> =
        std::fs::read_dir(journal).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    segments.sort();
    let mut rows: Vec<Row> = Vec::new();
    let mut places = HashMap::new();
    for segment in segments {
        for line in std::fs::read_to_string(segment)
            .unwrap()
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
        {
            match serde_json::from_str(line).unwrap() {
                Record::Intent(intent) => {
                    places.insert(intent.event_id.clone(), rows.len());
                    rows.push(Row { intent, completion: None });
                }
                Record::Completion(completion) => {
                    let place = places.get(&completion.event_id).expect("a completion follows its intent");
                    let former = rows[*place].completion.replace(completion);
                    assert!(former.is_none(), "completed twice: {former:?}");
                }
            }
        }
    }
    rows
}

/// Polls until there is an answer; fails at the deadline.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
