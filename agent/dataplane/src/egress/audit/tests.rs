//! Journals over restarts, rotations, full disks, callers that go away and receivers that fail.

mod shipping;

use std::collections::HashMap;

use super::*;

const SMALL: Limits = Limits {
    segment_bytes: 1,
    segment_age: Duration::from_secs(3600),
    total_bytes: 1 << 20,
    drop_oldest: false,
};

fn subject(local: bool) -> Arc<Subject> {
    Arc::new(Subject { local, ..execution_of("exe_test", "sbx_test") })
}

fn execution_of(execution: &str, sandbox: &str) -> Subject {
    let (execution, sandbox) = (execution.to_owned(), sandbox.to_owned());
    Subject { execution, sandbox, local: false, detached: AtomicBool::new(false) }
}

/// Begins calls until one is refused.
async fn flood(audit: &Audit, mut next: impl FnMut() -> Arc<Subject>) -> (Vec<Pending>, Error) {
    let mut pending = Vec::new();
    loop {
        match audit.begin(&next(), call("a.example")).await {
            Ok(call) => pending.push(call),
            Err(error) => return (pending, error),
        }
    }
}

fn call(host: &str) -> Call<'_> {
    Call { scheme: Scheme::Tcp, host, port: 1, method: None, path: None, secrets: Vec::new() }
}

/// How often each event was begun and completed, by what its completions say.
fn events(journal: &Path) -> HashMap<String, (usize, Vec<Option<String>>)> {
    let mut events: HashMap<String, (usize, Vec<Option<String>>)> = HashMap::new();
    for entry in std::fs::read_dir(journal).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "jsonl") {
            continue;
        }
        for line in std::fs::read_to_string(path).unwrap().lines() {
            match serde_json::from_str(line).unwrap() {
                Record::Intent(intent) => events.entry(intent.event_id).or_default().0 += 1,
                Record::Completion(completion) => {
                    events.entry(completion.event_id).or_default().1.push(completion.rejected_by);
                }
            }
        }
    }
    events
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        tokio::task::yield_now().await;
    }
}

/// Waits until nothing writes into the directory any more, so that it can be removed.
async fn end(audit: Audit) {
    let journals = [audit.shipped.durable(), audit.local.durable()];
    drop(audit);
    for mut durable in journals {
        while durable.changed().await.is_ok() {}
    }
}

#[tokio::test]
async fn f3_an_open_call_survives_rotation_and_is_aborted_once() {
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("shipped");
    let audit = Audit::open_with(directory.path(), SMALL, SMALL).unwrap();
    let open = audit.begin(&subject(false), call("open.example")).await.unwrap();
    // Every further record begins a segment of its own.
    for _ in 0..10 {
        audit
            .reject(&subject(false), call("other.example"), Outcome::rejected(reason::POLICY))
            .await
            .unwrap();
    }
    until("all rows", || {
        events(&journal).values().map(|(_, completions)| completions.len()).sum::<usize>() == 10
    })
    .await;
    // The process dies: nothing is dropped in order.
    std::mem::forget(open);
    let segments = || segment::list_segments(&journal).unwrap();
    assert!(segments().len() >= 10, "{}", segments().len());
    // Even when the segment of the intent is shipped and gone.
    segment::remove_segment(&journal, segments()[1]).unwrap();
    for _ in 0..3 {
        end(Audit::open_with(directory.path(), SMALL, SMALL).unwrap()).await;
    }
    let all = events(&journal);
    let aborted =
        all.values().filter(|(_, completions)| completions.contains(&Some("aborted".to_owned()))).count();
    assert_eq!(aborted, 1);
    assert!(all.values().all(|(_, completions)| completions.len() <= 1), "{all:?}");
}

#[tokio::test]
async fn f2_a_full_journal_refuses_calls_and_keeps_their_ends() {
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("shipped");
    let limits = Limits { total_bytes: 2000, segment_bytes: 1 << 20, ..SMALL };
    let audit = Audit::open_with(directory.path(), limits.clone(), limits).unwrap();
    // Each call is another sandbox's, so that nobody's share ends first.
    let mut sandboxes = (0..).map(|index| Arc::new(execution_of("exe_test", &format!("sbx_{index}"))));
    let (pending, error) = flood(&audit, || sandboxes.next().unwrap()).await;
    assert!(matches!(error, Error::NoRoom(NoRoom::Full(bytes)) if bytes >= 2000), "{error}");
    assert!(pending.len() > 5);
    let count = pending.len();
    for call in pending {
        call.finish(Outcome::allowed(200));
    }
    until("their ends", || events(&journal).values().all(|(_, completions)| completions.len() == 1)).await;
    assert_eq!(events(&journal).len(), count, "what was refused left no trace");
    assert!(
        audit.begin(&subject(true), call("a.example")).await.is_ok(),
        "the operator's own journal is another"
    );
    end(audit).await;
}

/// Takes everything it is sent, once it is there.
#[derive(Default)]
struct Receiver(AtomicBool);

#[async_trait::async_trait]
impl ship::Shipper for Receiver {
    async fn ship(&self, _: &str, offset: u64, records: bytes::Bytes) -> Result<u64, ship::Error> {
        match self.0.load(Ordering::Relaxed) {
            true => Ok(offset + records.len() as u64),
            false => Err(ship::Error::Send("the scheduler is away".into())),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn f2_a_hog_is_refused_at_its_share_and_others_go_on_until_it_is_shipped() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { total_bytes: 100_000, segment_bytes: 5000, ..SMALL };
    let audit = Audit::open_with(directory.path(), limits.clone(), limits).unwrap();
    let receiver = Arc::new(Receiver::default());
    let (ships, receives) = (audit.clone(), Arc::clone(&receiver));
    let shipping = tokio::spawn(async move { ships.ship(&*receives).await });

    let hog = Arc::new(execution_of("exe_hog", "sbx_hog"));
    let (pending, refused) = flood(&audit, || Arc::clone(&hog)).await;
    assert!(matches!(refused, Error::NoRoom(NoRoom::Share { own, .. }) if own >= 49_000), "{refused}");
    let resumed = Arc::new(execution_of("exe_resumed", "sbx_hog"));
    let again = audit.begin(&resumed, call("a.example")).await;
    assert!(matches!(again, Err(Error::NoRoom(NoRoom::Share { .. }))), "another execution, no other share");
    for index in 0..50 {
        let another = Arc::new(execution_of("exe_another", "sbx_another"));
        let host = format!("n{index}.example");
        audit.reject(&another, call(&host), Outcome::rejected(reason::POLICY)).await.unwrap();
    }
    // Ends are taken whatever they bring their sandbox to.
    let count = pending.len();
    for call in pending {
        call.finish(Outcome::allowed(200));
    }
    let journal = directory.path().join("shipped");
    let ended = || events(&journal).values().filter(|(_, ends)| ends.len() == 1).count();
    until("the ends of all calls", || ended() == count + 50).await;
    assert!(matches!(audit.begin(&hog, call("a.example")).await, Err(Error::NoRoom(_))));

    receiver.0.store(true, Ordering::Relaxed);
    let deadline = Instant::now() + Duration::from_secs(10);
    while audit.begin(&hog, call("a.example")).await.is_err() {
        assert!(Instant::now() < deadline, "what is shipped is the hog's again");
        // The paused clock goes on to the shipper's next attempt.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    shipping.abort();
    assert!(shipping.await.unwrap_err().is_cancelled());
    end(audit).await;
}

#[tokio::test]
async fn a_caller_that_goes_away_while_it_waits_leaves_a_whole_row_or_none() {
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("shipped");
    let limits = Limits { segment_bytes: 1 << 20, ..SMALL };
    let audit = Audit::open_with(directory.path(), limits.clone(), limits).unwrap();
    for round in 0..200u32 {
        let subject = subject(false);
        let begin = audit.begin(&subject, call("a.example"));
        tokio::pin!(begin);
        // Polled a few times, then dropped at whatever point it is.
        for _ in 0..round % 4 {
            if futures::poll!(&mut begin).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    audit.reject(&subject(false), call("last.example"), Outcome::rejected(reason::POLICY)).await.unwrap();
    let whole = || {
        let all = events(&journal);
        !all.is_empty() && all.values().all(|(intents, completions)| (*intents, completions.len()) == (1, 1))
    };
    until("whole rows only", whole).await;
    end(audit).await;
}

#[tokio::test]
async fn the_operator_s_own_journal_forgets_its_oldest() {
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("local");
    let limits = Limits { total_bytes: 2000, segment_bytes: 500, drop_oldest: true, ..SMALL };
    let audit = Audit::open_with(directory.path(), limits.clone(), limits).unwrap();
    for index in 0..100 {
        let host = format!("n{index}.example");
        audit.reject(&subject(true), call(&host), Outcome::rejected(reason::POLICY)).await.unwrap();
    }
    let bytes = || -> u64 {
        let sizes = segment::list_segments(&journal).unwrap().into_iter();
        sizes
            .filter_map(|name| std::fs::metadata(segment::records_path(&journal, name)).ok())
            .map(|m| m.len())
            .sum()
    };
    until("a bounded journal", || bytes() < 4000).await;
    end(audit).await;
}

/// A file system of its own, gone with the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(mib: u32) -> Self {
        let place = tempfile::tempdir().unwrap();
        let options = format!("size={mib}m");
        nix::mount::mount(
            Some("tmpfs"),
            place.path(),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(options.as_str()),
        )
        .expect("this test mounts a small file system, as root");
        Self(place)
    }

    /// Leaves not one byte.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.path().join("filler")).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            while std::io::Write::write_all(&mut file, &vec![1; size]).is_ok() {}
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn f2_on_a_full_disk_no_call_begins_and_those_that_did_end() {
    let disk = SmallDisk::mount(24);
    let journal = disk.0.path().join("shipped");
    let limits = Limits { segment_bytes: 16 << 20, total_bytes: 1 << 30, ..SMALL };
    let open = || Audit::open_with(disk.0.path(), limits.clone(), limits.clone()).unwrap();
    let audit = open();
    let mut pending = Vec::new();
    for _ in 0..2000 {
        pending.push(audit.begin(&subject(false), call("a.example")).await.unwrap());
    }
    let left_open = pending.pop();
    disk.fill();
    // The last page of the segment may take a few more.
    let refused = loop {
        match audit.begin(&subject(false), call("a.example")).await {
            Ok(call) => pending.push(call),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::Disk), "{refused}");
    let count = pending.len();
    for call in pending {
        call.finish(Outcome::allowed(200));
    }
    let ended = || events(&journal).values().filter(|(_, ends)| ends.len() == 1).count();
    until("the ends of all calls but one", || ended() == count).await;
    let again = audit.begin(&subject(false), call("a.example")).await;
    assert!(matches!(again, Err(Error::Disk)), "{again:?}");

    // The process dies on the full disk: the next one ends what it left.
    std::mem::forget(left_open);
    drop(audit);
    let audit = open();
    let aborted = Some("aborted".to_owned());
    assert_eq!(events(&journal).values().filter(|(_, ends)| *ends == [aborted.clone()]).count(), 1);
    assert!(events(&journal).values().all(|(begun, ends)| (*begun, ends.len()) == (1, 1)));

    disk.empty();
    let begun = async {
        loop {
            match audit.begin(&subject(false), call("a.example")).await {
                Ok(call) => break call.finish(Outcome::allowed(200)),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), begun).await.expect("calls begin again");
}
