//! HTTP/2 frames that no library sends: what HTTP/1 would read as something else, and floods of every kind.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{self, Lab, Upstream};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Fields as literals without indexing: any bytes at all.
fn block(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.extend([0, name.len() as u8]);
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(*value);
    }
    block
}

/// Sends one request and says how it was answered: the status, or none if the stream or connection was ended.
async fn ask(lab: &Lab, fields: &[(&str, &[u8])], body: &[u8]) -> Option<u16> {
    let mut stream = lab.guest.connect_tls("api.example.com", 443, &["h2"]).await;
    let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let ends = if body.is_empty() { END_STREAM } else { 0 };
    bytes.extend(frame(HEADERS, END_HEADERS | ends, 1, &block(fields)));
    if !body.is_empty() {
        bytes.extend(frame(DATA, END_STREAM, 1, body));
    }
    let answered = async move {
        stream.write_all(&bytes).await.unwrap();
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            stream.read_exact(&mut payload).await.ok()?;
            match head[3] {
                // `:status` is the first field: 200, 400 and 404 of the static table, any other as a literal.
                HEADERS => return Some(status(&payload)),
                RST_STREAM | GOAWAY => return None,
                _ => {}
            }
        }
    };
    lab.guest.run(answered).await
}

fn status(block: &[u8]) -> u16 {
    match block[0] {
        0x88 => 200,
        0x8c => 400,
        0x8d => 404,
        _ => 0,
    }
}

const USUAL: [(&str, &[u8]); 4] =
    [(":method", b"GET"), (":scheme", b"https"), (":authority", b"api.example.com"), (":path", b"/")];

#[test]
fn d11_what_http1_would_read_otherwise_is_refused() {
    lab::run(|lab| async move {
        let upstream = Upstream::https(&lab.upstream_root, &["api.example.com"], 443, &["http/1.1"]).await;
        let with = |name: &'static str, value: &'static [u8]| {
            let mut fields = USUAL.to_vec();
            match fields.iter_mut().find(|(field, _)| *field == name) {
                Some(field) => field.1 = value,
                None => fields.push((name, value)),
            }
            fields
        };
        assert_eq!(ask(&lab, &USUAL, b"").await, Some(200), "positive control");
        assert_eq!(ask(&lab, &with("x-mine", b"yes"), b"").await, Some(200), "positive control");
        let honest = upstream.seen().len();
        assert_eq!(honest, 2);

        let refused: [(&str, &[u8]); 22] = [
            ("x-mine", b"a\r\nx-injected: 1"),
            ("x-mine", b"a\nx-injected: 1"),
            ("x-mine", b"a\rx-injected: 1"),
            ("x-mine", b"a\0b"),
            ("x-mine: a\r\nx-injected", b"1"),
            ("x mine", b"1"),
            ("x-mine:", b"1"),
            ("X-Mine", b"1"),
            ("", b"1"),
            (":method", b"GET / HTTP/1.1\r\nx-injected: 1\r\n\r\nGET"),
            (":method", b"GET /x"),
            (":method", b""),
            (":path", b"/ HTTP/1.1\r\nx-injected: 1\r\n\r\n"),
            (":path", b"/a b"),
            (":path", b""),
            (":path", b"http://other.example.com/"),
            (":scheme", b"https\r\nx-injected: 1"),
            (":authority", b"api.example.com\r\nx-injected: 1"),
            (":authority", b"api.example.com/path"),
            (":unknown", b"1"),
            ("transfer-encoding", b"chunked"),
            ("connection", b"x-mine"),
        ];
        for (name, value) in refused {
            let status = ask(&lab, &with(name, value), b"").await;
            let what = format!("{:?}: {}", name, value.escape_ascii());
            assert_ne!(status, Some(200), "{what}");
            assert_eq!(upstream.seen().len(), honest, "{what} went upstream: {:?}", upstream.seen().last());
        }
        let lie = ask(&lab, &with("content-length", b"1"), b"\r\nGET /smuggled HTTP/1.1\r\n\r\n").await;
        assert_ne!(lie, Some(200), "a length that is too short");
        assert!(upstream.seen().iter().all(|seen| seen.target == "/"), "{:?}", upstream.seen());
        assert!(upstream.seen().iter().all(|seen| !seen.headers.contains_key("x-injected")));
    });
}

/// Writes the opening and then the flood again and again, reading whatever comes. Whether the connection was ended.
async fn is_ended_by(
    lab: &Lab,
    opening: Vec<u8>,
    rounds: usize,
    flood: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static,
) -> bool {
    let stream = lab.guest.connect_tls("api.example.com", 443, &["h2"]).await;
    let (mut read, mut write) = tokio::io::split(stream);
    let begin = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &opening].concat();
    let flooding = lab.guest.run(async move {
        let write = async {
            write.write_all(&begin).await.ok()?;
            for round in 0..rounds as u32 {
                write.write_all(&flood(round)).await.ok()?;
            }
            // All was taken: the end, if there is one, is read.
            std::future::pending::<()>().await;
            Some(())
        };
        let mut buffer = vec![0; 16 << 10];
        let end = async { while matches!(read.read(&mut buffer).await, Ok(1..)) {} };
        tokio::select! {
            _ = write => true,
            () = end => true,
        }
    });
    tokio::time::timeout(Duration::from_secs(10), flooding).await.unwrap_or(false)
}

#[test]
fn d15_d16_d17_floods_of_requests_headers_and_nothing_end_the_connection() {
    lab::run(|lab| async move {
        let upstream = Upstream::https(&lab.upstream_root, &["api.example.com"], 443, &["http/1.1"]).await;
        let stream_of = |round: u32| 2 * round + 1;
        let reset = move |round| {
            let request = frame(HEADERS, END_HEADERS | END_STREAM, stream_of(round), &block(&USUAL));
            [request, frame(RST_STREAM, 0, stream_of(round), &8_u32.to_be_bytes())].concat()
        };
        assert!(is_ended_by(&lab, vec![], 4000, reset).await, "requests that are taken back at once");
        let begun = frame(HEADERS, END_STREAM, 1, &block(&USUAL));
        let more = |_| frame(CONTINUATION, 0, 1, &block(&[("x-more", &[b'x'; 120])]).repeat(8));
        assert!(is_ended_by(&lab, begun, 4000, more).await, "headers without an end");
        let mut post = USUAL;
        post[0].1 = b"POST";
        let upload = frame(HEADERS, END_HEADERS, 1, &block(&post));
        assert!(is_ended_by(&lab, upload, 40_000, |_| frame(DATA, 0, 1, &[])).await, "data without content");
        assert!(upstream.connections() < 300, "{} connections", upstream.connections());
        assert_eq!(ask(&lab, &USUAL, b"").await, Some(200), "and the next connection is served");
    });
}

#[test]
fn d18_who_floods_and_does_not_read_is_not_read_either() {
    lab::run(|lab| async move {
        Upstream::https(&lab.upstream_root, &["api.example.com"], 443, &["http/1.1"]).await;
        for flood in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[])] {
            let mut stream = lab.guest.connect_tls("api.example.com", 443, &["h2"]).await;
            let taken = lab.guest.run(async move {
                stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
                let many = flood.repeat(1000);
                let mut taken = 0;
                while taken < 64 << 20 {
                    // An ended connection takes no more either.
                    let written = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&many));
                    let Ok(Ok(())) = written.await else { break };
                    taken += many.len();
                }
                taken
            });
            let taken = taken.await;
            assert!(taken < 32 << 20, "{taken} bytes were taken from a guest that reads no answer");
        }
        assert_eq!(ask(&lab, &USUAL, b"").await, Some(200), "and the next connection is served");
    });
}
