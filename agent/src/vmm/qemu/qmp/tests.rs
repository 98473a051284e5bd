//! The control protocol against a peer that misbehaves.

use std::time::Instant;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::UnixListener;

use super::*;

const GREETING: &str = "{\"QMP\":{\"version\":{},\"capabilities\":[]}}\n";

/// A peer that greets, answers the negotiation, then says `script` to the next command.
async fn peer(script: String) -> (tempfile::TempDir, Qmp, Farewell) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("qmp");
    let listener = UnixListener::bind(&path).expect("bound");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        stream.write_all(GREETING.as_bytes()).await.expect("greeted");
        let mut stream = BufStream::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.expect("negotiated");
        stream.write_all(b"{\"return\":{},\"id\":1}\n").await.expect("negotiated");
        stream.flush().await.expect("negotiated");
        stream.read_line(&mut line).await.expect("asked");
        // The client under test may hang up at any time from here.
        let _ = stream.write_all(script.as_bytes()).await;
        let _ = stream.flush().await;
        let _ = stream.read_line(&mut line).await;
    });
    let (qmp, farewell) = Qmp::connect(&path).await.expect("connected");
    (dir, qmp, farewell)
}

#[tokio::test]
async fn events_and_late_replies_do_not_confuse_a_command() {
    let script = "{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":true,\"reason\":\"guest-reset\"}}\n\
                  {\"return\":{\"status\":\"late\"},\"id\":1}\n{\"return\":{\"status\":\"running\"},\"id\":2}\n";
    let (_dir, qmp, farewell) = peer(script.to_owned()).await;
    assert_eq!(qmp.ask_text("query-status", "status").await.expect("answered"), "running");
    drop(qmp);
    assert_eq!(farewell.heard().await, Some(Shutdown::GuestReset));
}

#[tokio::test]
async fn a_refusal_carries_its_reason() {
    let (_dir, qmp, _farewell) =
        peer("{\"error\":{\"class\":\"GenericError\",\"desc\":\"no disk\"},\"id\":2}\n".to_owned()).await;
    let error = qmp.execute("cont", Value::Null).await.expect_err("refused");
    assert_eq!(error.to_string(), "cont was refused: no disk");
}

#[tokio::test]
async fn an_endless_line_ends_the_connection() {
    let (_dir, qmp, _farewell) =
        peer(format!("{{\"return\":\"{}\"}}\n", "x".repeat(2 * MAX_LINE_BYTES))).await;
    let error = qmp.execute("cont", Value::Null).await.expect_err("too long");
    assert!(matches!(error, Error::Closed { .. }), "{error:?}");
}

#[tokio::test]
async fn what_is_not_json_ends_the_connection() {
    let (_dir, qmp, _farewell) = peer("hello\n".to_owned()).await;
    let error = qmp.execute("cont", Value::Null).await.expect_err("not JSON");
    assert!(matches!(error, Error::Closed { .. }), "{error:?}");
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let (_dir, qmp, _farewell) = peer(String::new()).await;
    let before = Instant::now();
    let error = qmp.run("cont", Value::Null, None, Duration::from_millis(50)).await.expect_err("silent");
    assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
    assert!(before.elapsed() < Duration::from_secs(5));
}
