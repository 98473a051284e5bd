//! Executions come and go, agents restart, processes die; rows and names stay.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use roost_dataplane::control::{Code, Handler};
use roost_dataplane::egress::Settings;
use roost_dataplane::egress::audit::ship;
use roost_domain::audit::{Action, Record};
use roost_proto::dataplane::{Configure, FloorException};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{self, Lab, Upstream, raw};

/// An upstream that keeps every connection open and says nothing.
async fn silent_upstream(port: u16) {
    raw(port, |mut stream| async move {
        let _ = tokio::io::copy(&mut stream.split().0, &mut tokio::io::sink()).await;
    })
    .await;
}

async fn open_call(lab: &Lab) -> tokio::net::TcpStream {
    let mut stream = lab.guest.connect("api.example.com", 6379).await;
    let begun = lab.guest.run(async move {
        stream.write_all(b"*1\r\n").await.unwrap();
        stream
    });
    let stream = begun.await;
    lab::eventually("an open row", || (lab.rows().len() == 1).then_some(())).await;
    stream
}

#[test]
fn inv_5_nothing_is_dialled_before_the_intent_is_written() {
    lab::run(|lab| async move {
        let journal = lab.directory.join("audit/shipped");
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        raw(6379, move |_| {
            let written = told.send(lab::rows(&journal).len());
            async move { written.unwrap() }
        })
        .await;
        let mut stream = lab.guest.connect("api.example.com", 6379).await;
        lab.guest.run(async move { stream.write_all(b"*1\r\n").await.unwrap() }).await;
        let rows = tokio::time::timeout(Duration::from_secs(10), heard.recv()).await.expect("it is dialled");
        assert_eq!(rows, Some(1), "rows on disk when the upstream heard of the call");
        let (intent, _) = lab.only_row().await;
        assert_eq!((intent.host.as_str(), intent.port), ("api.example.com", 6379));
    });
}

#[test]
fn e12_a_detach_ends_everything_and_its_rows() {
    lab::run(|lab| async move {
        silent_upstream(6379).await;
        let mut stream = open_call(&lab).await;
        assert_eq!(lab.egress.held(), [(lab.attachment.execution, 1)]);
        lab.egress.detach(lab.attachment.execution).await;
        assert_eq!(lab.egress.held(), []);
        let end = lab.guest.run(async move { stream.read(&mut [0; 1]).await.unwrap_or(0) });
        assert_eq!(tokio::time::timeout(Duration::from_secs(2), end).await.expect("the connection ends"), 0);
        let (_, completion) = lab.only_row().await;
        assert_eq!((completion.action, completion.bytes_out), (Action::Tunnel, 4));
        let connecting = lab.guest.connect_address(([198, 18, 0, 1], 6379));
        let connected = tokio::time::timeout(Duration::from_millis(500), connecting).await;
        assert!(!matches!(connected, Ok(Ok(_))), "nobody listens any more");
        lab.egress.detach(lab.attachment.execution).await;
    });
}

#[test]
fn e12_an_older_attach_is_refused_and_the_same_does_nothing() {
    lab::run(|lab| async move {
        let attach = |generation, sockets| {
            let attachment = roost_dataplane::control::Attachment { generation, ..lab.attachment.clone() };
            lab.egress.attach(attachment, sockets)
        };
        attach(1, lab.descriptors()).await.unwrap();
        let error = attach(0, lab.descriptors()).await.unwrap_err();
        assert_eq!(error.code, Code::StaleGeneration);
        let error = attach(2, lab.descriptors().split_off(1)).await.unwrap_err();
        assert_eq!(error.code, Code::Invalid);
        assert_eq!(lab.egress.held(), [(lab.attachment.execution, 1)], "a refused attach changes nothing");
        // A new identity behind the same sockets, as when a pooled execution gets its sandbox.
        attach(3, Vec::new()).await.unwrap();
        Upstream::http(80).await;
        let stream = lab.guest.connect("api.example.com", 80).await;
        let request = Request::get("/").header("host", "api.example.com");
        assert_eq!(lab.guest.send_http1(stream, request, "").await.status, 200);
        assert_eq!(lab.egress.held(), [(lab.attachment.execution, 3)]);
        attach(4, Vec::new()).await.unwrap();
        let used = lab.egress.detach(lab.attachment.execution).await.unwrap();
        assert!(used.from_guest_bytes > 0 && used.to_guest_bytes > 0, "it counts on: {used:?}");
    });
}

#[test]
fn names_keep_their_addresses_over_detach_and_attach() {
    lab::run(|lab| async move {
        let first = lab.guest.resolve("one.example.com").await;
        let second = lab.guest.resolve("two.example.com").await;
        lab.egress.detach(lab.attachment.execution).await;
        lab.egress.attach(lab.attachment.clone(), lab.descriptors()).await.unwrap();
        assert_eq!(lab.guest.resolve("two.example.com").await, second);
        assert_eq!(lab.guest.resolve("one.example.com").await, first);
        assert!(lab.guest.resolve("three.example.com").await > second);
        // An address from before works without asking again.
        Upstream::http(80).await;
        let stream = lab.guest.connect_address((first, 80)).await.unwrap();
        let request = Request::get("/").header("host", "one.example.com");
        assert_eq!(lab.guest.send_http1(stream, request, "").await.status, 200);
    });
}

#[test]
fn the_agent_s_exceptions_lift_the_floor_for_one_name_and_port() {
    lab::run(|lab| async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:8088").await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        });
        let get = async || {
            let stream = lab.guest.connect("rebound.example.com", 8088).await;
            let request = Request::get("/").header("host", "rebound.example.com:8088");
            lab.guest.send_http1(stream, request, "").await.status
        };
        assert_eq!(get().await, 403);
        let exception = |name: &str, cidr: &str| Configure {
            floor_exceptions: vec![FloorException {
                name: name.to_owned(),
                port: 8088,
                cidr: cidr.to_owned(),
            }],
        };
        assert!(
            lab.egress.configure(exception("rebound.example.com", "127.0.0.1/8")).await.is_err(),
            "not exact"
        );
        lab.egress.configure(exception("rebound.example.com", "127.0.0.0/8")).await.unwrap();
        assert_eq!(get().await, 200);
        lab.egress.configure(Configure::default()).await.unwrap();
        assert_eq!(get().await, 403, "the settings are replaced as a whole");
    });
}

/// What a crash leaves behind: the directory as it is at this moment.
fn copy_journal(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn f3_a_call_that_was_open_when_the_process_died_is_aborted_exactly_once() {
    lab::run(|lab| async move {
        silent_upstream(6379).await;
        let _stream = open_call(&lab).await;
        let crashed = lab.directory.with_file_name("crashed");
        copy_journal(&lab.directory.join("audit/shipped"), &crashed.join("audit/shipped"));
        copy_journal(&lab.directory.join("audit/local"), &crashed.join("audit/local"));
        let journal = crashed.join("audit/shipped");
        assert!(lab::rows(&journal)[0].completion.is_none(), "the intent is there before the outcome");
        // Torn in the middle of a record, on top.
        let segment = std::fs::read_dir(&journal).unwrap().map(|entry| entry.unwrap().path());
        let segment = segment.filter(|path| path.extension().is_some_and(|e| e == "jsonl")).max().unwrap();
        let mut content = std::fs::read(&segment).unwrap();
        content.extend_from_slice(br#"{"record":"intent","event_id":"evt_0"#);
        std::fs::write(&segment, content).unwrap();
        for _ in 0..3 {
            drop(lab.open_at(&crashed, &Settings::default()));
            let rows = lab::rows(&journal);
            assert_eq!(rows.len(), 1);
            assert_eq!(rows[0].rejected_by(), Some("aborted"));
        }
    });
}

/// Keeps what it is sent, refusing now and then, acknowledging only a part at times.
#[derive(Debug, Default)]
struct Store {
    received: Mutex<Vec<(String, u64, Bytes)>>,
    calls: Mutex<usize>,
}

#[async_trait::async_trait]
impl ship::Shipper for Store {
    async fn ship(&self, segment: &str, offset: u64, records: Bytes) -> Result<u64, ship::Error> {
        let call = {
            let mut calls = self.calls.lock().unwrap();
            *calls += 1;
            *calls
        };
        if call == 1 {
            return Err(ship::Error::Send("the scheduler is away".into()));
        }
        let whole = records.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let taken = if call.is_multiple_of(2) { whole } else { records.len() };
        self.received.lock().unwrap().push((segment.to_owned(), offset, records.slice(..taken)));
        Ok(offset + taken as u64)
    }
}

#[test]
fn f2_every_record_is_shipped_in_order_and_none_is_lost_by_failures() {
    lab::run(|lab| async move {
        Upstream::http(80).await;
        let store = Arc::new(Store::default());
        let (egress, shipper) = (Arc::clone(&lab.egress), Arc::clone(&store));
        tokio::spawn(async move { egress.ship_audit(&*shipper).await });
        for _ in 0..20 {
            let stream = lab.guest.connect("api.example.com", 80).await;
            let request = Request::get("/").header("host", "api.example.com");
            lab.guest.send_http1(stream, request, "").await;
        }
        lab.complete_rows(20).await;
        let lines = || {
            let received = store.received.lock().unwrap();
            let bytes: Vec<u8> = received.iter().flat_map(|(_, _, records)| records.to_vec()).collect();
            String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        };
        lab::eventually("40 records", || (lines().len() >= 40).then_some(())).await;
        let records: Vec<Record> = lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(records.len(), 40);
        let intents = records.iter().filter(|record| matches!(record, Record::Intent(_))).count();
        assert_eq!(intents, 20);
        let received = store.received.lock().unwrap();
        let contiguous = received
            .windows(2)
            .all(|pair| pair[0].0 != pair[1].0 || pair[0].1 + pair[0].2.len() as u64 == pair[1].1);
        assert!(contiguous, "each begins where the one before was acknowledged");
    });
}
