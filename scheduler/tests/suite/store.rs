//! The rules of the store's tables, the same list on both engines. (Any transaction: `transactions.rs`.)

use std::collections::BTreeSet;

use roost_scheduler::store::{api_key, audit_log, host, idempotency, quota, sandbox, tenant, usage};

use crate::engines::on_both;
use crate::rows::{self, NOW_US};

#[test]
fn reservations_never_exceed_a_host() {
    on_both(|store| async move {
        let mut host = rows::host();
        (host.memory_mib, host.disk_mib) = (1000, 1_000_000);
        rows::insert_host(&store, &host).await;
        let tasks: Vec<_> = (0..30)
            .map(|_| {
                let (store, id) = (store.clone(), host.id.clone());
                tokio::spawn(
                    async move { store.write(move |tx| host::reserve(tx, &id, 100, 10)).await.unwrap() },
                )
            })
            .collect();
        let mut granted = 0;
        for task in tasks {
            granted += u32::from(task.await.unwrap());
        }
        let id = host.id.clone();
        let row = store.read(move |tx| host::find(tx, &id)).await.unwrap().unwrap();
        assert_eq!((granted, row.memory_reserved_mib, row.disk_reserved_mib), (10, 1000, 100));
        let id = host.id.clone();
        store.write(move |tx| host::adjust_reservation(tx, &id, -200, -20)).await.unwrap();
        let id = host.id.clone();
        store.write(move |tx| host::set_state(tx, &id, "cordoned")).await.unwrap();
        let id = host.id.clone();
        assert!(!store.write(move |tx| host::reserve(tx, &id, 100, 10)).await.unwrap());
    });
}

#[test]
fn quotas_hold_under_concurrency_and_count_without_a_limit() {
    on_both(|store| async move {
        let owner = rows::owner(&store).await;
        let subject = quota::Subject {
            tenant_id: owner.tenant.clone(),
            subject: "external_user",
            subject_id: "user_42".into(),
        };
        let one = quota::Amount { sandboxes: 1, concurrent: 1, vcpus: 1, memory_mib: 256, disk_mib: 1024 };
        let reserve = |amount| {
            let (store, subject) = (store.clone(), subject.clone());
            tokio::spawn(
                async move { store.write(move |tx| quota::reserve(tx, &subject, amount)).await.unwrap() },
            )
        };
        assert!(reserve(one).await.unwrap());
        let limit = quota::Quota {
            tenant_id: owner.tenant.clone(),
            subject: "external_user".into(),
            subject_id: "user_42".into(),
            max_sandboxes: Some(5),
            max_concurrent: None,
            max_vcpus: None,
            max_memory_mib: None,
            max_disk_mib: Some(1024 * 100),
            max_credit_cents: None,
            updated_us: NOW_US,
        };
        store.write(move |tx| quota::set(tx, &limit)).await.unwrap();
        let mut granted = 0;
        for task in (0..12).map(|_| reserve(one)).collect::<Vec<_>>() {
            granted += i32::from(task.await.unwrap());
        }
        assert_eq!(granted, 4);
        let back = quota::Amount { sandboxes: -1, ..quota::Amount::default() };
        assert!(reserve(back).await.unwrap());
        assert!(reserve(one).await.unwrap());
        let used = store.read(move |tx| quota::find_use(tx, &subject)).await.unwrap().unwrap();
        assert_eq!((used.sandboxes, used.concurrent, used.memory_mib), (5, 6, 6 * 256));
    });
}

#[test]
fn one_idempotency_key_has_one_owner() {
    on_both(|store| async move {
        let claim = |owner: u32, request: &'static [u8], now_us: i64| {
            let store = store.clone();
            tokio::spawn(async move {
                let row = idempotency::Idempotency {
                    tenant_id: "ten_a".into(),
                    key: "k".into(),
                    request_sha256: request.to_vec(),
                    owner: format!("o{owner}"),
                    owner_until_us: now_us + 100,
                    status: None,
                    body: None,
                    created_us: now_us,
                    expires_us: now_us + 1000,
                };
                store.write(move |tx| idempotency::claim(tx, &row, now_us)).await.unwrap()
            })
        };
        let mut owners = 0;
        for task in (0..20).map(|n| claim(n, b"same", NOW_US)).collect::<Vec<_>>() {
            owners += u32::from(task.await.unwrap());
        }
        assert_eq!(owners, 1);
        assert!(!claim(30, b"other", NOW_US + 200).await.unwrap(), "another request never takes over");
        assert!(claim(31, b"same", NOW_US + 200).await.unwrap(), "the owner's time was over");
        let renewed = |owner: &'static str, until_us: i64| {
            store.write(move |tx| idempotency::renew(tx, "ten_a", "k", owner, until_us))
        };
        assert!(!renewed("o1", NOW_US + 900).await.unwrap(), "only its owner renews");
        assert!(renewed("o31", NOW_US + 400).await.unwrap());
        assert!(!claim(34, b"same", NOW_US + 350).await.unwrap(), "the owner said that it lives");
        assert!(store.write(|tx| idempotency::abandon(tx, "ten_a", "k", "o31")).await.unwrap());
        assert!(!renewed("o31", NOW_US + 900).await.unwrap(), "what was given back stays so");
        assert!(claim(31, b"same", NOW_US + 360).await.unwrap());
        let done = |claim: &idempotency::Idempotency| {
            let claim = claim.clone();
            store.write(move |tx| idempotency::complete(tx, &claim, 201, b"{}"))
        };
        let row = store.read(|tx| idempotency::find(tx, "ten_a", "k")).await.unwrap().unwrap();
        let before = idempotency::Idempotency { created_us: NOW_US - 1, ..row.clone() };
        assert!(!done(&before).await.unwrap(), "the key was used anew since");
        let lost = idempotency::Idempotency { owner: "o1".into(), ..row.clone() };
        assert!(done(&lost).await.unwrap(), "whoever of its owners is first");
        assert!(!done(&row).await.unwrap());
        assert!(!renewed("o31", NOW_US + 900).await.unwrap(), "an answer needs no owner");
        assert!(!claim(32, b"same", NOW_US + 900).await.unwrap());
        let row = store.read(|tx| idempotency::find(tx, "ten_a", "k")).await.unwrap().unwrap();
        assert_eq!((row.status, row.body), (Some(201), Some(b"{}".to_vec())));
        assert!(claim(33, b"other", NOW_US + 5000).await.unwrap(), "an expired answer makes room");
    });
}

#[test]
fn slugs_are_unique_in_workspace_and_domain_until_destroyed() {
    on_both(|store| async move {
        let (owner, stranger) = (rows::owner(&store).await, rows::owner(&store).await);
        let with_slug = |of: &rows::Owner, domain: &str| {
            let mut row = rows::sandbox(of);
            (row.slug, row.preview_domain) = ("brand".into(), domain.into());
            row
        };
        let insert = |row: sandbox::Sandbox| store.write(move |tx| sandbox::insert(tx, &row));
        let first = with_slug(&owner, "a.example");
        assert!(insert(first.clone()).await.unwrap());
        assert!(!insert(with_slug(&owner, "b.example")).await.unwrap(), "same workspace");
        assert!(!insert(with_slug(&stranger, "a.example")).await.unwrap(), "same domain");
        assert!(insert(with_slug(&stranger, "b.example")).await.unwrap());
        let id = first.id.clone();
        let generation =
            store.write(move |tx| sandbox::set_desired(tx, &id, "destroyed", NOW_US + 1)).await.unwrap();
        assert_eq!(generation, Some(2));
        let id = first.id.clone();
        let after =
            store.write(move |tx| sandbox::set_desired(tx, &id, "running", NOW_US + 2)).await.unwrap();
        assert_eq!(after, None, "nothing follows destroyed");
        assert!(insert(with_slug(&owner, "a.example")).await.unwrap());
    });
}

#[test]
fn lists_filter_exactly_and_page_completely() {
    on_both(|store| async move {
        let (owner, other) = (rows::owner(&store).await, rows::owner(&store).await);
        for n in 0..25 {
            let mut row = rows::sandbox(if n % 5 == 0 { &other } else { &owner });
            row.external_user_id = Some(if n % 2 == 0 { "user_42" } else { "User_42" }.into());
            row.tags = vec![format!("n{n}"), "all%".into()];
            row.metadata.insert("team".into(), serde_json::json!(format!("t{}", n % 3)));
            row.created_us = NOW_US + n / 4;
            rows::insert_sandbox(&store, &row).await;
        }
        let base = sandbox::Filter { tenant_id: owner.tenant.clone(), limit: 3, ..Default::default() };
        let list = |filter: sandbox::Filter| {
            let store = store.clone();
            async move { store.read(move |tx| sandbox::list(tx, &filter)).await.unwrap() }
        };
        let mut seen = BTreeSet::new();
        let mut after = None;
        loop {
            let page =
                list(sandbox::Filter { after: after.clone(), newest_first: true, ..base.clone() }).await;
            let Some(last) = page.last() else { break };
            after = Some((last.created_us, last.id.clone()));
            seen.extend(page.iter().map(|row| row.id.clone()));
        }
        assert_eq!(seen.len(), 20);
        let all = sandbox::Filter { limit: 100, ..base.clone() };
        let user = sandbox::Filter { external_user_id: Some("user_42".into()), ..all.clone() };
        assert!(list(user).await.iter().all(|row| row.external_user_id.as_deref() == Some("user_42")));
        let tagged = |tags: &[&str]| sandbox::Filter {
            tags: tags.iter().map(|t| (*t).to_owned()).collect(),
            ..all.clone()
        };
        assert_eq!(list(tagged(&["n1", "all%"])).await.len(), 1, "n1 is not n11");
        assert_eq!(list(tagged(&["ALL%"])).await.len(), 0, "matching is case-sensitive");
        assert_eq!(list(tagged(&["al%"])).await.len(), 0, "no wildcards from outside");
        let team = sandbox::Filter { metadata: [("team".into(), "t1".into())].into(), ..all.clone() };
        assert!(list(team).await.iter().all(|row| row.metadata["team"] == "t1"));
        let counts = store.read(move |tx| sandbox::count_by_state(tx, &all)).await.unwrap();
        assert_eq!(counts["creating"], 20);
    });
}

#[test]
fn observations_only_go_forward_and_only_from_the_placement() {
    on_both(|store| async move {
        let owner = rows::owner(&store).await;
        let (here, there) = (rows::host(), rows::host());
        rows::insert_host(&store, &here).await;
        rows::insert_host(&store, &there).await;
        let mut row = rows::sandbox(&owner);
        row.host_id = Some(here.id.clone());
        rows::insert_sandbox(&store, &row).await;
        let observe = |host: &str, epoch, generation, seq, state: &str, changed_us| {
            let seen = sandbox::Observed {
                id: row.id.clone(),
                host_id: host.to_owned(),
                placement_epoch: epoch,
                state: state.into(),
                state_reason: String::new(),
                generation,
                local_seq: seq,
                local_cause: String::new(),
                execution_id: None,
                changed_us,
                boot_path: "cold".into(),
                boot_us: Some(1),
                started_us: None,
                ready_us: None,
                destroyed_us: None,
            };
            let store = store.clone();
            async move { store.write(move |tx| sandbox::record_observed(tx, &seen, NOW_US)).await.unwrap() }
        };
        assert!(observe(&here.id, 1, 1, 0, "running", 10).await);
        assert!(!observe(&here.id, 1, 1, 0, "creating", 9).await, "older");
        assert!(!observe(&there.id, 1, 2, 0, "paused", 20).await, "another host");
        assert!(!observe(&here.id, 2, 2, 0, "paused", 20).await, "another placement");
        assert!(observe(&here.id, 1, 1, 3, "paused", 20).await);
        assert!(!observe(&here.id, 1, 1, 2, "running", 30).await, "an earlier local transition");
        assert!(observe(&here.id, 1, 2, 0, "running", 30).await);
        let id = row.id.clone();
        assert!(!store.write(move |tx| sandbox::adopt_local(tx, &id, 7, "paused", 4, NOW_US)).await.unwrap());
        let id = row.id.clone();
        assert!(store.write(move |tx| sandbox::adopt_local(tx, &id, 1, "paused", 4, NOW_US)).await.unwrap());
        let id = row.id.clone();
        let row = store.read(move |tx| sandbox::find_any(tx, &id)).await.unwrap().unwrap();
        assert_eq!((row.generation, row.adopted_seq, row.desired_run.as_str()), (2, 4, "paused"));
    });
}

#[test]
fn a_delta_counts_once_and_sums_are_exact() {
    on_both(|store| async move {
        let owner = rows::owner(&store).await;
        let row = rows::sandbox(&owner);
        rows::insert_sandbox(&store, &row).await;
        let hour_us = 3_600_000_000i64;
        let start_us = NOW_US / hour_us * hour_us;
        let delta = |seq: u64| usage::Delta {
            execution_id: "exe_a".into(),
            seq,
            sandbox_id: row.id.clone(),
            tenant_id: owner.tenant.clone(),
            from_us: start_us + i64::try_from(seq).unwrap() * 60_000_000,
            to_us: start_us + i64::try_from(seq + 1).unwrap() * 60_000_000,
            wall_us: 60_000_000,
            vcpu_alloc_us: 60_000_000,
            // Four of these overflow 64 bits; their sum must not.
            mem_alloc_mib_us: 3_000_000_000_000_000_007,
            cpu_used_us: 7,
            mem_used_mib_us: 11,
            disk_mib_us: 13,
            snapshot_mib_us: 0,
            net_egress_bytes: 17,
            net_ingress_bytes: 19,
        };
        for seq in [0, 60, 120, 180, 0, 60] {
            let (delta, sandbox) = (delta(seq), row.clone());
            store.write(move |tx| usage::ingest(tx, &delta, &sandbox)).await.unwrap();
        }
        let filter = usage::Filter {
            tenant_id: owner.tenant.clone(),
            from_us: start_us,
            to_us: start_us + 10 * hour_us,
            ..Default::default()
        };
        let (hours, deltas) = store
            .read(move |tx| Ok((usage::sum_hours(tx, &filter)?, usage::sum_deltas(tx, &filter)?)))
            .await
            .unwrap();
        assert_eq!(hours.len(), 1);
        assert_eq!(hours[0].amounts, deltas[0].amounts);
        assert_eq!(hours[0].amounts[0], 4 * 60_000_000);
        assert_eq!(hours[0].amounts[2], 4 * 3_000_000_000_000_000_007);
    });
}

#[test]
fn keys_stop_at_revocation_expiry_and_suspension() {
    on_both(|store| async move {
        let owner = rows::owner(&store).await;
        let key = api_key::ApiKey {
            id: "key_a".into(),
            tenant_id: owner.tenant.clone(),
            workspace_id: None,
            name: "ci".into(),
            prefix: "msk_live_abc".into(),
            sha256: vec![7; 32],
            scopes: vec!["admin".into()],
            rate_limit_rpm: None,
            actor: "operator".into(),
            created_us: NOW_US,
            expires_us: Some(NOW_US + 10),
            revoked_us: None,
            last_used_us: None,
        };
        store.write(move |tx| api_key::insert(tx, &key)).await.unwrap();
        let live = |now_us: i64| {
            let store = store.clone();
            async move { store.read(move |tx| api_key::find_live(tx, &[7; 32], now_us)).await.unwrap().is_some() }
        };
        assert!(live(NOW_US).await);
        assert!(!live(NOW_US + 10).await, "expired");
        let tenant = owner.tenant.clone();
        store.write(move |tx| tenant::set_state(tx, &tenant, "suspended")).await.unwrap();
        assert!(!live(NOW_US).await, "suspended");
        let tenant = owner.tenant.clone();
        store.write(move |tx| tenant::set_state(tx, &tenant, "active")).await.unwrap();
        let revoke = || {
            let tenant = owner.tenant.clone();
            store.write(move |tx| api_key::revoke(tx, &tenant, "key_a", NOW_US))
        };
        assert!(revoke().await.unwrap());
        assert!(!revoke().await.unwrap(), "only once");
        assert!(!live(NOW_US).await, "revoked");
    });
}

#[test]
fn the_audit_log_filters_and_pages() {
    on_both(|store| async move {
        for n in 0..10i64 {
            let row = audit_log::AuditRow {
                id: format!("evt_{n:02}"),
                tenant_id: "ten_a".into(),
                time_us: NOW_US + n / 3,
                action: if n % 2 == 0 { "sandbox.created" } else { "secret.created" }.into(),
                actor: "api_key:msk_live_abc".into(),
                resource_type: "sandbox".into(),
                resource_id: format!("sbx_{n}"),
                workspace_id: None,
                project_id: None,
                external_workspace_id: None,
                external_user_id: Some("user_42".into()),
                external_project_id: None,
                metadata: Default::default(),
                ip_address: None,
                request_id: None,
            };
            store.write(move |tx| audit_log::insert(tx, &row)).await.unwrap();
        }
        let base = audit_log::Filter {
            tenant_id: "ten_a".into(),
            limit: 4,
            newest_first: true,
            ..Default::default()
        };
        let first = base.clone();
        let page = store.read(move |tx| audit_log::list(tx, &first)).await.unwrap();
        let last = page.last().unwrap();
        let next = audit_log::Filter { after: Some((last.time_us, last.id.clone())), ..base.clone() };
        let rest = store.read(move |tx| audit_log::list(tx, &next)).await.unwrap();
        assert_eq!(
            page.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(),
            ["evt_09", "evt_08", "evt_07", "evt_06"]
        );
        assert_eq!(rest[0].id, "evt_05");
        let created = audit_log::Filter { action: Some("sandbox.created".into()), limit: 100, ..base };
        assert_eq!(store.read(move |tx| audit_log::list(tx, &created)).await.unwrap().len(), 5);
    });
}
