//! The vault's rules on both engines: who gets which value, and who does not. (Keys are in `sealing.rs`.)

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use roost_daemon::clock::Manual;
use roost_domain::placeholder::Format;
use roost_domain::resolver::Step;
use roost_scheduler::secret::{
    Change, Error, NewBinding, NewSecret, Outcome, Plaintext, SWITCH_SETTING, Scope, Stored, Vault,
};
use roost_scheduler::store::sandbox::Sandbox;
use roost_scheduler::store::setting::{self, Setting};
use roost_scheduler::store::{Store, params};

use crate::engines::on_both;
use crate::rows::{self, NOW_US, Owner};

pub const BOUND: Duration = Duration::from_secs(30);

pub struct World {
    store: Store,
    pub vault: Vault,
    pub clock: Manual,
    owner: Owner,
    host: String,
    _directory: tempfile::TempDir,
}

impl World {
    pub async fn new(store: Store) -> World {
        let directory = tempfile::tempdir().unwrap();
        let clock = Manual::at(NOW_US);
        let master = Vault::ensure_master_key(&directory.path().join("master.key")).unwrap();
        let vault = Vault::new(store.clone(), Arc::new(clock.clone()), master, Format::default());
        let owner = rows::owner(&store).await;
        let host = rows::host();
        rows::insert_host(&store, &host).await;
        World { store, vault, clock, owner, host: host.id, _directory: directory }
    }

    pub fn secret(&self, scope: Scope, value: &str) -> NewSecret {
        NewSecret {
            tenant_id: self.owner.tenant.clone(),
            name: "openai".into(),
            value: Plaintext::from(value),
            scope,
            expose_as_env: Some("OPENAI_API_KEY".into()),
            kind: "api_key".into(),
            allowed_hosts: None,
            slots: None,
            provider: None,
            expires_us: None,
            metadata: BTreeMap::new(),
            sandbox_id: None,
            actor: "api_key:msk_live_abc".into(),
        }
    }

    pub async fn set(&self, new: NewSecret) -> Result<Stored, Error> {
        let vault = self.vault.clone();
        self.store.decide(move |tx| vault.set(tx, &new)).await
    }

    async fn change(&self, id: &str, change: Change) -> Result<(), Error> {
        let (vault, tenant, id) = (self.vault.clone(), self.owner.tenant.clone(), id.to_owned());
        self.store.decide(move |tx| vault.change(tx, &tenant, &id, &change).map(|_| ())).await
    }

    async fn bind(&self, new: NewBinding) -> Result<String, Error> {
        let vault = self.vault.clone();
        self.store.decide(move |tx| vault.bind(tx, &new).map(|binding| binding.id)).await
    }

    fn binding(&self, secret: &str, sandbox: &Sandbox) -> NewBinding {
        NewBinding {
            tenant_id: self.owner.tenant.clone(),
            secret_id: secret.to_owned(),
            sandbox_id: sandbox.id.clone(),
            expose_as_env: None,
            value: None,
            actor: "api_key:msk_live_abc".into(),
        }
    }

    pub async fn sandbox(&self, change: impl Fn(&mut Sandbox)) -> Sandbox {
        rows::running_sandbox(&self.store, &self.owner, &self.host, change).await
    }

    pub async fn placeholder(&self, sandbox: &Sandbox) -> Option<String> {
        self.vault.environment(sandbox).await.unwrap().remove("OPENAI_API_KEY")
    }

    pub async fn resolve(&self, sandbox: &Sandbox, placeholder: &str) -> Answer {
        let (vault, sandbox, asked) = (self.vault.clone(), sandbox.clone(), vec![placeholder.to_owned()]);
        let answered = self.store.examine(move |tx| vault.resolve(tx, &sandbox, &asked, BOUND));
        match answered.await.unwrap().remove(0).1 {
            Outcome::Lease(lease) => Answer::Lease {
                step: lease.step,
                value: String::from_utf8(lease.secret_bytes().to_vec()).unwrap(),
                expires_us: lease.expires_us,
            },
            Outcome::Nothing { reason } => Answer::Nothing(reason),
            Outcome::Foreign { reason } => Answer::Foreign(reason),
        }
    }

    async fn set_switch(&self, value: serde_json::Value) {
        let row = Setting {
            tenant_id: self.owner.tenant.clone(),
            name: SWITCH_SETTING.into(),
            value,
            actor: "a".into(),
            updated_us: NOW_US,
        };
        self.store.write(move |tx| setting::set(tx, &row)).await.unwrap();
    }
}

#[derive(Debug, PartialEq)]
pub enum Answer {
    Lease { step: Step, value: String, expires_us: i64 },
    Nothing(String),
    Foreign(&'static str),
}

impl Answer {
    pub fn value(&self) -> &str {
        match self {
            Answer::Lease { value, .. } => value,
            other => panic!("no lease: {other:?}"),
        }
    }
}

fn labelled(row: &mut Sandbox) {
    row.owner_user_id = Some("usr".into());
    row.external_user_id = Some("user_42".into());
    row.external_workspace_id = Some("clinic1".into());
}

#[test]
fn a12_all_64_subsets_of_the_six_steps_resolve_in_order() {
    on_both(|store| async move {
        let world = World::new(store).await;
        let workspace = world.owner.workspace.clone();
        let scopes = [
            Scope::User("usr".into()),
            Scope::ExternalUser("user_42".into()),
            Scope::ExternalWorkspace("clinic1".into()),
            Scope::Workspace(workspace),
            Scope::Tenant,
        ];
        let mut ids = Vec::new();
        for scope in scopes {
            let word = scope.word();
            ids.push(
                world.set(world.secret(scope, &format!("value-of-{word}-123456"))).await.unwrap().secret.id,
            );
        }
        // What is bound belongs to somebody else of the tenant: only the binding makes it resolve.
        let mut bound = world.secret(Scope::User("other".into()), "value-of-binding-123456");
        bound.name = "bound".into();
        let bound = world.set(bound).await.unwrap().secret.id;
        let plain = world.sandbox(labelled).await;
        let tied = world.sandbox(labelled).await;
        world.bind(world.binding(&bound, &tied)).await.unwrap();
        let order = ["user", "external_user", "external_workspace", "workspace", "tenant"];
        let placeholders =
            (world.placeholder(&plain).await.unwrap(), world.placeholder(&tied).await.unwrap());
        for subset in 0..64u32 {
            for (at, id) in ids.iter().enumerate() {
                let enabled = Some(subset & (1 << at) != 0);
                world.change(id, Change { enabled, ..Change::default() }).await.unwrap();
            }
            let enabled = Some(subset & 32 != 0);
            world.change(&bound, Change { enabled, ..Change::default() }).await.unwrap();
            let expected =
                order.iter().enumerate().find(|(at, _)| subset & (1 << at) != 0).map(|(_, word)| *word);
            for (sandbox, placeholder, is_tied) in
                [(&plain, &placeholders.0, false), (&tied, &placeholders.1, true)]
            {
                let expected = if is_tied && subset & 32 != 0 { Some("binding") } else { expected };
                let answer = world.resolve(sandbox, placeholder).await;
                match (expected, answer) {
                    (Some(word), Answer::Lease { step, value, .. }) => {
                        assert_eq!(
                            (step.text(), value),
                            (word, format!("value-of-{word}-123456")),
                            "{subset:06b}"
                        );
                    }
                    (None, Answer::Nothing(reason)) => {
                        assert!(reason.contains("tenant: disabled"), "{reason}")
                    }
                    (expected, answer) => panic!("{subset:06b}: wanted {expected:?}, got {answer:?}"),
                }
            }
        }
    });
}

#[test]
fn a8_a9_placeholders_are_a_lineages_own_and_foreign_elsewhere() {
    on_both(|store| async move {
        let world = World::new(store.clone()).await;
        world.set(world.secret(Scope::Tenant, "sk-live-0123456789abcdef")).await.unwrap();
        let (one, other) = (world.sandbox(|_| ()).await, world.sandbox(|_| ()).await);
        let parent = one.clone();
        let fork = world
            .sandbox(move |row| {
                row.lineage.clone_from(&parent.lineage);
                row.forked_from = Some(parent.id.clone());
            })
            .await;
        let (of_one, of_other) =
            (world.placeholder(&one).await.unwrap(), world.placeholder(&other).await.unwrap());
        assert!(of_one.starts_with("sk-proj-MIOSA"), "{of_one}");
        assert_ne!(of_one, of_other);
        assert_eq!(of_one, world.placeholder(&one).await.unwrap(), "the same at every exec");
        assert_eq!(of_one, world.placeholder(&fork).await.unwrap(), "the same in a fork");
        assert_eq!(world.resolve(&one, &of_one).await.value(), "sk-live-0123456789abcdef");
        assert_eq!(world.resolve(&one, &of_other).await, Answer::Foreign("other_lineage"));
        assert_eq!(world.resolve(&other, &of_one).await, Answer::Foreign("other_lineage"));
        assert_eq!(
            world.resolve(&one, "sk-live-0123456789abcdef").await,
            Answer::Foreign("not_a_placeholder")
        );
        // Another tenant with the same name for its key.
        let stranger = World::new(store).await;
        stranger.set(stranger.secret(Scope::Tenant, "sk-live-of-the-stranger")).await.unwrap();
        let theirs = stranger.sandbox(|_| ()).await;
        assert_eq!(stranger.resolve(&theirs, &of_one).await, Answer::Foreign("other_lineage"));
    });
}

#[test]
fn a14_a_fork_for_another_user_never_gets_the_parents_key() {
    on_both(|store| async move {
        let world = World::new(store).await;
        world.set(world.secret(Scope::ExternalUser("alice".into()), "sk-live-of-alice-1234")).await.unwrap();
        world.set(world.secret(Scope::ExternalUser("bob".into()), "sk-live-of-bob-123456")).await.unwrap();
        let of = |user: &'static str| move |row: &mut Sandbox| row.external_user_id = Some(user.into());
        let alice = world.sandbox(of("alice")).await;
        let lineage = alice.lineage.clone();
        let fork = |user: Option<&'static str>| {
            let lineage = lineage.clone();
            move |row: &mut Sandbox| {
                row.lineage.clone_from(&lineage);
                row.external_user_id = user.map(str::to_owned);
            }
        };
        let placeholder = world.placeholder(&alice).await.unwrap();
        let bob = world.sandbox(fork(Some("bob"))).await;
        assert_eq!(world.resolve(&bob, &placeholder).await.value(), "sk-live-of-bob-123456");
        for nobody in [None, Some("Alice"), Some("carol")] {
            let row = world.sandbox(fork(nobody)).await;
            assert!(matches!(world.resolve(&row, &placeholder).await, Answer::Nothing(_)), "{nobody:?}");
            assert_eq!(world.placeholder(&row).await, None, "nothing resolves, so nothing is set");
        }
    });
}

#[test]
fn a10_rotation_disabling_expiry_and_removal_are_seen_at_the_next_question() {
    on_both(|store| async move {
        let world = World::new(store.clone()).await;
        let id = world.set(world.secret(Scope::Tenant, "sk-live-first-123456")).await.unwrap().secret.id;
        let sandbox = world.sandbox(|_| ()).await;
        let placeholder = world.placeholder(&sandbox).await.unwrap();
        let lease = world.resolve(&sandbox, &placeholder).await;
        let expires_us = NOW_US + 30_000_000;
        assert_eq!(
            lease,
            Answer::Lease { step: Step::Tenant, value: "sk-live-first-123456".into(), expires_us }
        );
        let rotate = Change { value: Some("sk-live-second-12345".into()), ..Change::default() };
        world.change(&id, rotate).await.unwrap();
        assert_eq!(world.placeholder(&sandbox).await.as_ref(), Some(&placeholder), "the placeholder stays");
        assert_eq!(world.resolve(&sandbox, &placeholder).await.value(), "sk-live-second-12345");
        let kept = "SELECT COUNT(*) AS n FROM secret_version WHERE secret_id = ?1";
        let secret = id.clone();
        let versions =
            store.read(move |tx| tx.query_one("n", kept, params![&secret])?.int("n")).await.unwrap();
        assert_eq!(versions, 1, "nobody can open an older value");
        let soon = Change { expires_us: Some(Some(NOW_US + 5_000_000)), ..Change::default() };
        world.change(&id, soon).await.unwrap();
        match world.resolve(&sandbox, &placeholder).await {
            Answer::Lease { expires_us, .. } => {
                assert_eq!(expires_us, NOW_US + 5_000_000, "not beyond the secret")
            }
            other => panic!("{other:?}"),
        }
        world.clock.advance_us(5_000_000);
        assert!(matches!(world.resolve(&sandbox, &placeholder).await, Answer::Nothing(_)));
        let back = Change { expires_us: Some(None), ..Change::default() };
        world.change(&id, back).await.unwrap();
        world.resolve(&sandbox, &placeholder).await.value();
        let (vault, tenant) = (world.vault.clone(), world.owner.tenant.clone());
        store.decide(move |tx| vault.remove(tx, &tenant, &id)).await.unwrap();
        assert!(
            matches!(world.resolve(&sandbox, &placeholder).await, Answer::Nothing(_)),
            "removed, not foreign"
        );
        assert_eq!(world.placeholder(&sandbox).await, None);
    });
}

#[test]
fn widening_needs_the_value_and_narrowing_does_not() {
    on_both(|store| async move {
        let world = World::new(store).await;
        let stored = world.set(world.secret(Scope::Tenant, "sk-live-0123456789abcdef")).await.unwrap();
        assert_eq!(stored.secret.allowed_hosts, ["api.openai.com"], "from the catalogue");
        let id = stored.secret.id;
        let hosts = |hosts: &[&str], value: Option<&str>| Change {
            allowed_hosts: Some(hosts.iter().map(|host| (*host).to_owned()).collect()),
            value: value.map(Plaintext::from),
            ..Change::default()
        };
        let refused = |outcome| assert!(matches!(outcome, Err(Error::ValueRequired { .. })), "{outcome:?}");
        refused(world.change(&id, hosts(&["evil.example.com"], None)).await);
        refused(world.change(&id, hosts(&["api.openai.com", "evil.example.com"], None)).await);
        refused(world.change(&id, hosts(&["*.openai.com"], None)).await);
        let slots = Change { slots: Some(vec!["x-mine".into()]), ..Change::default() };
        refused(world.change(&id, slots).await);
        world
            .change(&id, hosts(&["*.openai.com", "a.test.com"], Some("sk-live-0123456789abcdef")))
            .await
            .unwrap();
        world.change(&id, hosts(&["eu.openai.com"], None)).await.unwrap();
        refused(world.change(&id, hosts(&["*.openai.com"], None)).await);
        let sandbox = world.sandbox(|_| ()).await;
        let placeholder = world.placeholder(&sandbox).await.unwrap();
        assert_eq!(
            world.resolve(&sandbox, &placeholder).await.value(),
            "sk-live-0123456789abcdef",
            "sealed anew"
        );
        world.change(&id, hosts(&[], None)).await.unwrap();
        refused(world.change(&id, hosts(&["eu.openai.com"], None)).await);
    });
}

#[test]
fn one_key_per_owner_and_name_and_the_same_name_again_replaces() {
    on_both(|store| async move {
        let world = World::new(store).await;
        let first = world.set(world.secret(Scope::Tenant, "sk-live-0123456789abcdef")).await.unwrap();
        let again = world.set(world.secret(Scope::Tenant, "sk-live-replaced-123")).await.unwrap();
        assert_eq!((first.created, again.created), (true, false));
        assert_eq!((first.secret.id == again.secret.id, again.secret.version), (true, 2));
        let mut other_name = world.secret(Scope::Tenant, "sk-live-0123456789abcdef");
        other_name.name = "openai-2".into();
        assert!(matches!(world.set(other_name.clone()).await, Err(Error::EnvTaken { .. })));
        other_name.expose_as_env = Some("OTHER".into());
        world.set(other_name.clone()).await.unwrap();
        other_name.expose_as_env = Some("OPENAI_API_KEY".into());
        assert!(matches!(world.set(other_name).await, Err(Error::EnvTaken { .. })), "nor by renaming");
        let user = world.secret(Scope::ExternalUser("user_42".into()), "sk-live-of-the-user-1");
        assert!(world.set(user).await.unwrap().created, "another owner");
    });
}

#[test]
fn a13_the_switch_stops_end_users_credentials_and_nothing_else() {
    on_both(|store| async move {
        let world = World::new(store).await;
        let user = world
            .set(world.secret(Scope::ExternalUser("user_42".into()), "sk-live-of-the-user-1"))
            .await
            .unwrap();
        world.set(world.secret(Scope::Tenant, "sk-live-of-the-tenant")).await.unwrap();
        let sandbox = world.sandbox(labelled).await;
        let placeholder = world.placeholder(&sandbox).await.unwrap();
        assert_eq!(world.resolve(&sandbox, &placeholder).await.value(), "sk-live-of-the-user-1");
        world.set_switch(serde_json::json!(false)).await;
        assert_eq!(world.resolve(&sandbox, &placeholder).await.value(), "sk-live-of-the-tenant");
        let again = world.secret(Scope::ExternalUser("user_43".into()), "sk-live-of-another-1");
        assert!(matches!(world.set(again).await, Err(Error::EndUserCredentialsDisabled)));
        world.bind(world.binding(&user.secret.id, &sandbox)).await.unwrap();
        assert_eq!(
            world.resolve(&sandbox, &placeholder).await.value(),
            "sk-live-of-the-tenant",
            "bound or not"
        );
        world.set_switch(serde_json::json!(true)).await;
        assert_eq!(world.resolve(&sandbox, &placeholder).await.value(), "sk-live-of-the-user-1");
    });
}

#[test]
fn another_customers_secret_is_bound_only_by_who_knows_it() {
    on_both(|store| async move {
        let world = World::new(store).await;
        let alice = world
            .set(world.secret(Scope::ExternalUser("alice".into()), "sk-live-of-alice-1234"))
            .await
            .unwrap();
        let bob = world.sandbox(|row| row.external_user_id = Some("bob".into())).await;
        let mut binding = world.binding(&alice.secret.id, &bob);
        assert!(matches!(world.bind(binding.clone()).await, Err(Error::NotTheirs)));
        binding.value = Some("sk-live-of-alice-1235".into());
        assert!(matches!(world.bind(binding.clone()).await, Err(Error::NotTheirs)));
        binding.value = Some("sk-live-of-alice-1234".into());
        let id = world.bind(binding.clone()).await.unwrap();
        assert!(matches!(world.bind(binding).await, Err(Error::EnvTaken { .. })));
        let placeholder = world.placeholder(&bob).await.unwrap();
        assert_eq!(world.resolve(&bob, &placeholder).await.value(), "sk-live-of-alice-1234");
        let (vault, tenant) = (world.vault.clone(), world.owner.tenant.clone());
        world.store.decide(move |tx| vault.unbind(tx, &tenant, &id)).await.unwrap();
        assert!(
            matches!(world.resolve(&bob, &placeholder).await, Answer::Nothing(_)),
            "unbound, not foreign"
        );
        let stranger = World::new(world.store.clone()).await;
        let theirs = stranger.sandbox(|_| ()).await;
        assert!(matches!(world.bind(world.binding(&alice.secret.id, &theirs)).await, Err(Error::NoSandbox)));
    });
}
