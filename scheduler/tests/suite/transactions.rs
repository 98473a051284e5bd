//! What both engines promise of any transaction, whatever its rows mean: opening, isolation, failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use roost_scheduler::store::{Error, Settings, Store, params, tenant};

use crate::engines::{on_both, on_both_settings, runtime};
use crate::rows::{self, NOW_US};

#[test]
fn schema_applies_from_empty_and_again() {
    on_both_settings(|settings| {
        let version = |store: &Store| {
            let store = store.clone();
            runtime().block_on(async move {
                let sql = "SELECT MAX(version) AS v, COUNT(*) AS n FROM schema_version";
                store.read(move |tx| tx.query_one("version", sql, params![])).await.unwrap()
            })
        };
        let first = Store::open(settings.clone()).unwrap();
        let again = Store::open(settings.clone()).unwrap();
        let (before, after) = (version(&first), version(&again));
        assert_eq!(before.int("v").unwrap(), before.int("n").unwrap());
        assert_eq!(before.int("n").unwrap(), after.int("n").unwrap());
    });
}

#[test]
fn a_newer_schema_is_refused() {
    on_both_settings(|settings| {
        let store = Store::open(settings.clone()).unwrap();
        runtime().block_on(async {
            let sql = "INSERT INTO schema_version (version) VALUES (?1)";
            store.write(move |tx| tx.execute(sql, params![9999i64])).await.unwrap();
        });
        let error = Store::open(settings).unwrap_err();
        assert!(matches!(error, Error::SchemaNewer { found: 9999, .. }), "{error}");
    });
}

#[test]
fn a_refused_job_leaves_nothing_and_its_neighbours_stay() {
    on_both(|store| async move {
        let jobs = (0..100).map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                store
                    .decide(move |tx| {
                        let sql = "INSERT INTO event (id, tenant_id, kind, data, created_us)
                            VALUES (?1, 't', 'k', '{}', ?2)";
                        tx.execute(sql, params![format!("evt_{n}"), i64::from(n)])?;
                        if n % 3 == 0 { Err(Refused) } else { Ok(()) }
                    })
                    .await
            })
        });
        let mut kept = 0;
        for job in jobs.collect::<Vec<_>>() {
            kept += i64::from(job.await.unwrap().is_ok());
        }
        let count =
            store.read(|tx| tx.query_one("n", "SELECT COUNT(*) AS n FROM event", params![])).await.unwrap();
        assert_eq!(kept, 66);
        assert_eq!(count.int("n").unwrap(), kept);
    });
}

#[derive(Debug)]
struct Refused;

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        panic!("the store failed: {error:?}")
    }
}

#[test]
fn concurrent_read_then_write_loses_no_update() {
    on_both(|store| async move {
        let owner = rows::owner(&store).await;
        let runs = Arc::new(AtomicU32::new(0));
        let tasks: Vec<_> = (0..40)
            .map(|_| {
                let (store, tenant, runs) = (store.clone(), owner.tenant.clone(), runs.clone());
                tokio::spawn(async move {
                    store
                        .write(move |tx| {
                            runs.fetch_add(1, Ordering::Relaxed);
                            let row = tx.query_one(
                                "t",
                                "SELECT created_us FROM tenant WHERE id = ?1",
                                params![&tenant],
                            )?;
                            let next = row.int("created_us")? + 1;
                            tx.execute(
                                "UPDATE tenant SET created_us = ?2 WHERE id = ?1",
                                params![&tenant, next],
                            )
                        })
                        .await
                        .unwrap();
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let tenant = store.read(move |tx| tenant::find(tx, &owner.tenant)).await.unwrap().unwrap();
        assert_eq!(tenant.created_us, NOW_US + 40);
        assert!(runs.load(Ordering::Relaxed) >= 40);
    });
}

#[test]
fn a_panic_in_one_transaction_is_that_ones_alone() {
    on_both(|store| async move {
        let panics = |write: bool| {
            let store = store.clone();
            async move {
                let sql = "INSERT INTO event (id, tenant_id, kind, data, created_us) VALUES ('e', 't', 'k', '{}', 1)";
                let work = move |tx: &mut roost_scheduler::store::Tx<'_>| {
                    if write {
                        tx.execute(sql, params![])?;
                    }
                    if tx.query("SELECT id FROM event", params![])?.len() < 2 {
                        panic!("on purpose");
                    }
                    Ok(())
                };
                if write { store.write(work).await } else { store.read(work).await }
            }
        };
        for _ in 0..8 {
            assert!(matches!(panics(true).await, Err(Error::Panicked)));
            assert!(matches!(panics(false).await, Err(Error::Panicked)));
        }
        let left = store.read(|tx| tx.query("SELECT id FROM event", params![])).await.unwrap();
        assert!(left.is_empty());
    });
}

#[test]
fn a_lost_connection_is_replaced() {
    on_both_settings(|settings| {
        if !matches!(settings, Settings::Postgres { .. }) {
            return;
        }
        let store = Store::open(settings).unwrap();
        runtime().block_on(async {
            let others = "SELECT CAST(COUNT(pg_terminate_backend(pid)) AS BIGINT) AS n FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()";
            let ended = store.write(move |tx| tx.query_one("backends", others, params![])).await.unwrap();
            assert_eq!(ended.int("n").unwrap(), 5, "all connections but the one that asked");
            for _ in 0..12 {
                store.write(|tx| tx.query("SELECT id FROM event", params![])).await.unwrap();
                store.read(|tx| tx.query("SELECT id FROM event", params![])).await.unwrap();
            }
        });
    });
}

#[test]
fn a_reader_cannot_write() {
    on_both(|store| async move {
        let refused = store.read(|tx| tx.execute("DELETE FROM event", params![])).await;
        assert!(refused.is_err());
        store.read(|tx| tx.query("SELECT id FROM event", params![])).await.unwrap();
    });
}

#[test]
fn wrong_types_are_refused_alike() {
    on_both(|store| async move {
        let sql =
            "INSERT INTO event (id, tenant_id, kind, data, created_us) VALUES ('e', 't', 'k', '{}', ?1)";
        assert!(store.write(move |tx| tx.execute(sql, params!["text"])).await.is_err());
        store.write(move |tx| tx.execute(sql, params![1i64])).await.unwrap();
        assert!(matches!(store.write(move |tx| tx.execute(sql, params![1i64])).await, Err(Error::Unique)));
    });
}

#[test]
fn settings_name_a_file_that_cannot_be_made() {
    let error = Store::open(Settings::Sqlite { path: "/nonexistent/roost/scheduler.db".into() }).unwrap_err();
    assert_eq!(error.to_string(), "open the store: open the database file");
}
