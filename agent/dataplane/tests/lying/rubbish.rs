//! Whole connections of rubbish: garbage, headers without end, and nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::agent::{self, Reply};
use crate::support::attached::{Attached, TOKEN};

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_writes_garbage_for_ever_costs_no_memory() {
    let mut attached = Attached::new().await;
    attached.serve_raw(|mut stream| async move {
        let garbage = vec![0xa5; 64 * 1024];
        while stream.write_all(&garbage).await.is_ok() {}
    });
    let before = attached.resident_kib();
    let reply =
        attached.agent.call(agent::claim(attached.execution, TOKEN, Duration::from_secs(3)), vec![]).await;
    assert!(matches!(&reply, Reply::Refused(refused) if refused.code == "guest_timeout"), "{reply:?}");
    let grown = attached.resident_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_sends_endless_headers_costs_no_memory() {
    let mut attached = Attached::new().await;
    let flooding = Arc::new(AtomicBool::new(false));
    let flag = flooding.clone();
    attached.serve_raw(move |mut stream| {
        let flag = flag.clone();
        async move {
            let mut preface = vec![0; 24];
            if stream.read_exact(&mut preface).await.is_err() {
                return;
            }
            // SETTINGS, then interim answers (`:status 103`) on stream 1 without end.
            let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
            let mut interim = vec![0, 0, 5, 1, 4, 0, 0, 0, 1, 0x08, 3];
            interim.extend_from_slice(b"103");
            let block = interim.repeat(1000);
            if stream.write_all(&settings).await.is_err() {
                return;
            }
            // On purpose only once the call is under way.
            tokio::time::sleep(Duration::from_millis(50)).await;
            flag.store(true, Ordering::Relaxed);
            while stream.write_all(&block).await.is_ok() {}
        }
    });
    let before = attached.resident_kib();
    let reply =
        attached.agent.call(agent::claim(attached.execution, TOKEN, Duration::from_secs(4)), vec![]).await;
    assert!(matches!(&reply, Reply::Refused(refused) if refused.code == "guest_timeout"), "{reply:?}");
    assert!(flooding.load(Ordering::Relaxed));
    let grown = attached.resident_kib().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_accepts_and_says_nothing_is_given_up_at_the_deadline() {
    let mut attached = Attached::new().await;
    attached.serve_raw(|stream| async move {
        // Silent on purpose, longer than the deadline.
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    });
    let started = Instant::now();
    let reply =
        attached.agent.call(agent::claim(attached.execution, TOKEN, Duration::from_secs(1)), vec![]).await;
    assert!(matches!(&reply, Reply::Refused(refused) if refused.code == "guest_timeout"), "{reply:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
}
