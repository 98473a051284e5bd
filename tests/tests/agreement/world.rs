//! Two agents' stores, one scheduler's, and what each side does with a message.

use std::sync::Arc;
use std::time::Duration;

use roost_agent::link;
use roost_agent::sandbox::record;
use roost_agent::store as agent;
use roost_daemon::clock;
use roost_domain::desired::{Cause, Run};
use roost_domain::id::SandboxId;
use roost_domain::lifecycle::State;
use roost_domain::placeholder::Format;
use roost_proto::host::{self as proto, SandboxStatus, SyncRequest, UploadRequest};
use roost_scheduler::app;
use roost_scheduler::app::sandbox::run::{self, Decision};
use roost_scheduler::audit::Audit;
use roost_scheduler::fleet::{self, Fleet};
use roost_scheduler::pki::Pki;
use roost_scheduler::secret::Vault;
use roost_scheduler::store::quota::{self, Amount, QuotaUse, Subject};
use roost_scheduler::store::sandbox::{self, Sandbox};
use roost_scheduler::store::{Settings, Store, Tx, host, params};

use crate::message::{Event, Message};
use crate::rows;

/// More rounds than any exchange needs to come to rest.
const ROUNDS: usize = 8;

/// The scheduler.
#[derive(Debug)]
pub struct Side {
    store: Store,
    fleet: Fleet,
    _directory: tempfile::TempDir,
}

impl Side {
    pub async fn start() -> Side {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let store = Store::open(Settings::Sqlite { path: path.join("scheduler.db") }).unwrap();
        let clock = Arc::new(clock::System);
        let pki = Arc::new(Pki::ensure(&path.join("pki"), None, clock::now_us()).unwrap());
        let master = Vault::ensure_master_key(&path.join("master.key")).unwrap();
        let vault = Vault::new(store.clone(), clock.clone(), master, Format::default());
        let audit = Audit::in_directory(path.join("audit")).unwrap();
        let settings = fleet::Settings {
            issuer: "roost".into(),
            token_prefix: "miosa".into(),
            frame_ancestors: vec![],
            revocation_bound: Duration::from_secs(30),
        };
        let fleet = Fleet::new(store.clone(), clock, pki, vault, audit, settings);
        Side { store, fleet, _directory: directory }
    }
}

/// What a backup of the scheduler holds of a case.
#[derive(Debug, Clone)]
struct Backup {
    row: Sandbox,
    used: QuotaUse,
    hosts: Vec<host::Host>,
}

pub struct World<'a> {
    side: &'a Side,
    id: String,
    hosts: [String; 2],
    agents: [agent::Store; 2],
    agent_backups: [Option<record::Sandbox>; 2],
    backup: Option<Backup>,
    wire: Vec<Message>,
    /// Generation of the last call.
    called: u64,
}

impl<'a> World<'a> {
    pub async fn new(side: &'a Side) -> World<'a> {
        let owner = rows::owner(&side.store).await;
        let hosts = [rows::host(), rows::host()];
        for host in &hosts {
            rows::insert_host(&side.store, host).await;
        }
        let hosts = hosts.map(|host| host.id);
        let mut row = rows::sandbox(&owner);
        row.host_id = Some(hosts[0].clone());
        (row.memory_reserved_mib, row.disk_reserved_mib) = (row.memory_mib, row.disk_mib);
        let (placed, id) = (row.clone(), row.id.clone());
        let made = side.store.write(move |tx| {
            for subject in quota::subjects(&placed) {
                assert!(quota::reserve(tx, &subject, Amount::resting(&placed))?);
                assert!(quota::reserve(tx, &subject, Amount::running(&placed))?);
            }
            let on = placed.host_id.as_deref().unwrap();
            assert!(host::reserve(tx, on, placed.memory_mib, placed.disk_mib)?);
            sandbox::insert(tx, &placed)
        });
        assert!(made.await.unwrap());
        let agents = [(), ()].map(|()| agent::Store::open(":memory:".as_ref()).unwrap());
        World {
            side,
            id,
            hosts,
            agents,
            agent_backups: [None, None],
            backup: None,
            wire: Vec::new(),
            called: 1,
        }
    }

    pub async fn apply(&mut self, event: Event) {
        match event {
            Event::Call(run) => self.call(run).await,
            Event::Local(host, run) => self.decide_locally(host, run).await,
            Event::Act(host) => self.act(host).await,
            Event::Sync(host) => {
                let held = self.write_agent(host, agent::sandbox::list).await;
                let statuses = held.iter().map(SandboxStatus::from).collect();
                self.wire.push(Message::Statuses(host, statuses));
            }
            Event::Upload(host) => {
                let rows = self.write_agent(host, agent::outbox::list_batch).await;
                self.wire.push(Message::Rows(host, rows));
            }
            Event::Exchange(host) => self.exchange(host).await,
            Event::Move => self.move_away().await,
            Event::BackUpScheduler => self.backup = Some(self.back_up().await),
            Event::RestoreScheduler => {
                if let Some(backup) = self.backup.clone() {
                    self.called = backup.row.generation;
                    self.restore(backup).await;
                }
            }
            Event::BackUpHost(host) => self.agent_backups[host] = self.find_held(host).await,
            Event::RestoreHost(host) => {
                if let Some(backup) = self.agent_backups[host].clone() {
                    self.restore_agent(host, backup).await;
                }
            }
            Event::Deliver(_) | Event::Lose(_) if self.wire.is_empty() => {}
            Event::Deliver(at) => self.deliver(self.wire[at % self.wire.len()].clone()).await,
            Event::Lose(at) => drop(self.wire.swap_remove(at % self.wire.len())),
        }
    }

    async fn exchange(&mut self, host: usize) {
        let under_way = std::mem::take(&mut self.wire);
        for event in [Event::Upload(host), Event::Sync(host)] {
            Box::pin(self.apply(event)).await;
            while !self.wire.is_empty() {
                let next = self.wire.remove(0);
                self.deliver(next).await;
            }
        }
        self.wire = under_way;
        self.act(host).await;
    }

    async fn deliver(&mut self, message: Message) {
        let before = self.row().await;
        let mut statuses = Vec::new();
        match message {
            Message::Statuses(host, sandboxes) => {
                statuses.clone_from(&sandboxes);
                let request = SyncRequest {
                    host_id: self.hosts[host].clone(),
                    info: None,
                    sandboxes,
                    time_us: clock::now_us(),
                };
                let reply = self.side.fleet.sync(&self.hosts[host], request).await.unwrap();
                let wishes = reply.ensure.into_iter().map(|wish| Message::Wish(host, Box::new(wish)));
                self.wire.extend(wishes);
            }
            Message::Rows(host, rows) => {
                let told = rows.iter().filter_map(|row| match &row.row {
                    Some(proto::outbox_row::Row::Status(status)) => Some(status.clone()),
                    _ => None,
                });
                statuses.extend(told);
                let request = UploadRequest { host_id: self.hosts[host].clone(), rows };
                let reply = self.side.fleet.upload(&self.hosts[host], request).await.unwrap();
                self.wire.push(Message::Acked(host, reply.acked_seq));
            }
            Message::Acked(host, seq) => {
                self.write_agent(host, move |tx| agent::outbox::remove_acked(tx, seq)).await;
            }
            Message::Wish(host, wish) => {
                let draft = link::draft(*wish).unwrap();
                self.write_agent(host, move |tx| agent::sandbox::accept(tx, &draft)).await;
            }
        }
        self.check_call_stands(&before, &statuses).await;
    }

    /// Only a host's decision on top of the last call changes what that wanted; or that the sandbox is destroyed.
    async fn check_call_stands(&self, before: &Sandbox, statuses: &[SandboxStatus]) {
        let after = self.row().await;
        if after.desired_run == before.desired_run {
            return;
        }
        let justifies = |status: &SandboxStatus| {
            let on_top = status.local_seq > 0 && status.local_base_generation >= self.called;
            on_top || (status.wanted_run() == proto::Run::Destroyed && after.desired_run == "destroyed")
        };
        assert!(statuses.iter().any(justifies), "{before:?} became {after:?} by {statuses:?}");
    }

    async fn call(&mut self, run: Run) {
        let decision = match run {
            Run::Running => Decision::Resume,
            Run::Paused => Decision::Pause,
            Run::Stopped => Decision::Stop,
            Run::Destroyed => Decision::Destroy,
        };
        let id = self.id.clone();
        let decided = self.side.store.decide(move |tx| {
            let row = sandbox::find_any(tx, &id)?.unwrap();
            if row.desired_run != "destroyed" && row.desired_run != run.text() {
                run::apply(tx, &row, decision, clock::now_us())?;
            }
            Ok::<_, app::Error>(())
        });
        decided.await.unwrap();
        self.called = self.row().await.generation;
    }

    async fn decide_locally(&self, host: usize, run: Run) {
        let Some(mut held) = self.find_held(host).await else { return };
        if held.standing.transition(run, Cause::Idle).is_err() {
            return;
        }
        self.write_agent(host, move |tx| {
            agent::sandbox::record_standing(tx, held.id, &held.standing)?;
            agent::outbox::push_status(tx, held.id)
        })
        .await;
    }

    /// The end of everything the actor would do.
    async fn act(&self, host: usize) {
        let Some(held) = self.find_held(host).await else { return };
        let Some(target) = held.standing.target() else { return };
        let state = settled(target);
        if held.state != state && held.state != State::Destroyed {
            self.write_agent(host, move |tx| {
                agent::sandbox::record_state(tx, held.id, state, None, clock::now_us())?;
                agent::outbox::push_status(tx, held.id)
            })
            .await;
        }
    }

    async fn move_away(&mut self) {
        let row = self.row().await;
        let from = usize::from(row.host_id.as_ref() != Some(&self.hosts[0]));
        if row.desired_run == "destroyed" {
            return;
        }
        if let Some(mut held) = self.find_held(from).await {
            held.standing.fence(row.placement_epoch);
            self.write_agent(from, move |tx| agent::sandbox::record_standing(tx, held.id, &held.standing))
                .await;
        } else {
            // A wish may still be under way to a host that holds nothing to fence.
            return;
        }
        let (old, new) = (self.hosts[from].clone(), self.hosts[1 - from].clone());
        let moved = self.side.store.write(move |tx| {
            let signed = |value: u64| i64::try_from(value).unwrap();
            let (memory, disk) = (signed(row.memory_reserved_mib), signed(row.disk_reserved_mib));
            host::adjust_reservation(tx, &old, -memory, -disk)?;
            assert!(host::reserve(tx, &new, row.memory_mib, row.disk_mib)?);
            sandbox::set_placement(tx, &row, &new, clock::now_us())
        });
        assert!(moved.await.unwrap());
        self.called = self.row().await.generation;
        // What either side forgets of a move is not the subject: nothing tells a host again that it was given up.
        (self.backup, self.agent_backups) = (None, [None, None]);
    }

    async fn back_up(&self) -> Backup {
        let (row, subject) = (self.row().await, self.tenant().await);
        let ids = self.hosts.clone();
        let read = self.side.store.read(move |tx| {
            let hosts = ids.iter().map(|id| Ok(host::find(tx, id)?.unwrap()));
            let hosts = hosts.collect::<Result<_, roost_scheduler::store::Error>>()?;
            Ok((quota::find_use(tx, &subject)?.unwrap(), hosts))
        });
        let (used, hosts) = read.await.unwrap();
        Backup { row, used, hosts }
    }

    async fn restore(&self, backup: Backup) {
        let Backup { row, used, hosts } = backup;
        let restored = self.side.store.write(move |tx| {
            restore_row(tx, &row)?;
            let sql = "UPDATE quota_use SET sandboxes = ?2, concurrent = ?3, vcpus = ?4, memory_mib = ?5,
                disk_mib = ?6 WHERE tenant_id = ?1";
            let amounts = params![
                &used.tenant_id,
                used.sandboxes,
                used.concurrent,
                used.vcpus,
                used.memory_mib,
                used.disk_mib
            ];
            tx.execute(sql, amounts)?;
            for host in &hosts {
                let sql = "UPDATE host SET memory_reserved_mib = ?2, disk_reserved_mib = ?3 WHERE id = ?1";
                tx.execute(sql, params![&host.id, host.memory_reserved_mib, host.disk_reserved_mib])?;
            }
            Ok(())
        });
        restored.await.unwrap();
    }

    async fn restore_agent(&self, host: usize, backup: record::Sandbox) {
        self.write_agent(host, move |tx| {
            agent::sandbox::record_standing(tx, backup.id, &backup.standing)?;
            agent::sandbox::record_state(tx, backup.id, backup.state, None, backup.changed_us)
        })
        .await;
    }

    pub async fn check_serving(&self) {
        let mut serving = 0;
        for host in 0..2 {
            let target = self.find_held(host).await.and_then(|held| held.standing.target());
            serving += usize::from(target == Some(Run::Running));
        }
        assert!(serving <= 1, "two hosts serve");
    }

    /// Nothing is lost any more: everybody says what they have until both sides rest.
    pub async fn settle(&mut self) {
        self.wire.clear();
        for _ in 0..ROUNDS {
            for host in 0..2 {
                self.exchange(host).await;
            }
        }
        self.check_serving().await;
        let row = self.row().await;
        let host = usize::from(row.host_id.as_ref() != Some(&self.hosts[0]));
        let held = self.find_held(host).await.unwrap();
        let context = format!("{row:?}\n{held:?}");
        let wanted = Run::find(&row.desired_run).unwrap();
        assert_eq!(held.standing.target(), Some(wanted), "{context}");
        assert_eq!(held.standing.report(), None, "{context}");
        // A host that has destroyed it is told nothing more, not even that it was right.
        if wanted != Run::Destroyed {
            assert_eq!(held.standing.desired.generation, row.generation, "{context}");
        }
        assert_eq!((row.state.as_str(), held.state), (settled(wanted).text(), settled(wanted)), "{context}");
        let subject = self.tenant().await;
        let used = self.side.store.read(move |tx| quota::find_use(tx, &subject)).await.unwrap().unwrap();
        let counted = (i64::from(wanted != Run::Destroyed), i64::from(wanted == Run::Running));
        assert_eq!((used.sandboxes, used.concurrent), counted, "{context}");
    }

    pub async fn row(&self) -> Sandbox {
        let id = self.id.clone();
        self.side.store.read(move |tx| sandbox::find_any(tx, &id)).await.unwrap().unwrap()
    }

    async fn tenant(&self) -> Subject {
        let tenant = self.row().await.tenant_id;
        Subject { tenant_id: tenant.clone(), subject: "tenant", subject_id: tenant }
    }

    async fn find_held(&self, host: usize) -> Option<record::Sandbox> {
        let id: SandboxId = self.id.parse().unwrap();
        self.write_agent(host, move |tx| agent::sandbox::find(tx, id)).await
    }

    async fn write_agent<T, F>(&self, host: usize, job: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Transaction<'_>) -> Result<T, agent::Error> + Send + 'static,
    {
        self.agents[host].write(job).await.unwrap()
    }
}

fn settled(run: Run) -> State {
    match run {
        Run::Running => State::Running,
        Run::Paused => State::Paused,
        Run::Stopped => State::Stopped,
        Run::Destroyed => State::Destroyed,
    }
}

fn restore_row(tx: &mut Tx<'_>, row: &Sandbox) -> Result<(), roost_scheduler::store::Error> {
    let sql = "UPDATE sandbox SET desired_run = ?2, generation = ?3, adopted_seq = ?4, state = ?5,
        observed_generation = ?6, local_seq = ?7, local_cause = ?8, changed_us = ?9, destroyed_us = ?10,
        memory_reserved_mib = ?11, disk_reserved_mib = ?12, execution_id = ?13 WHERE id = ?1";
    let columns = params![
        &row.id,
        &row.desired_run,
        row.generation,
        row.adopted_seq,
        &row.state,
        row.observed_generation,
        row.local_seq,
        &row.local_cause,
        row.changed_us,
        row.destroyed_us,
        row.memory_reserved_mib,
        row.disk_reserved_mib,
        &row.execution_id
    ];
    tx.execute(sql, columns).map(|_| ())
}
