//! What a connection speaks, from its first bytes: TLS, HTTP or neither.
//!
//! ```text
//! server-first port ─▶ silent at once
//! web port          ─▶ waits as long as a request head may take; silence ends it
//! any other port    ─▶ waits 300 ms; silence is a protocol in which the server speaks first
//! ```
//! Silence is not a way around inspection: when a silent guest then speaks before its server does, what it
//! says is classified again (`relay`). Owns no policy.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

const SILENCE: Duration = Duration::from_millis(300);
const WEB_SILENCE: Duration = Duration::from_secs(60);
const WEB_PORTS: [u16; 8] = [80, 443, 3000, 5000, 8000, 8080, 8443, 8888];
/// FTP, SSH, SMTP, POP, IMAP, MySQL, VNC: the server greets.
const SERVER_FIRST_PORTS: [u16; 9] = [21, 22, 25, 110, 143, 220, 587, 3306, 5900];
const MAX_METHOD_BYTES: usize = 32;

/// What the first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tls,
    /// HTTP/1 without TLS.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    Opaque,
    /// Nothing came in time.
    Silent,
}

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a guest may be silent on a port before its server is asked.
pub fn choose_patience(port: u16) -> Duration {
    if SERVER_FIRST_PORTS.contains(&port) {
        Duration::ZERO
    } else if is_web_port(port) {
        WEB_SILENCE
    } else {
        SILENCE
    }
}

/// Ports on which silence never becomes an uninspected connection.
pub fn is_web_port(port: u16) -> bool {
    WEB_PORTS.contains(&port)
}

/// Reads until the protocol is clear, in as many segments as it takes; what was read is in `bytes`, also when
/// the future is dropped. Errors if the guest closes before.
pub async fn read_greeting<S: AsyncRead + Unpin>(
    stream: &mut S,
    patience: Duration,
    bytes: &mut BytesMut,
) -> io::Result<Protocol> {
    let mut deadline = Instant::now().checked_add(patience);
    loop {
        match read_before(stream, deadline, bytes).await {
            None if bytes.is_empty() => return Ok(Protocol::Silent),
            None => return Ok(decide_unfinished(bytes)),
            Some(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error),
        }
        if let Some(protocol) = decide_protocol(bytes) {
            return Ok(protocol);
        }
        // Something came: what is begun has to be finished soon.
        let soon = Instant::now() + SILENCE;
        deadline = Some(deadline.map_or(soon, |deadline| deadline.min(soon)));
    }
}

async fn read_before<S: AsyncRead + Unpin>(
    stream: &mut S,
    deadline: Option<Instant>,
    bytes: &mut BytesMut,
) -> Option<io::Result<usize>> {
    match deadline {
        Some(deadline) => timeout_at(deadline, stream.read_buf(bytes)).await.ok(),
        None => Some(stream.read_buf(bytes).await),
    }
}

/// The protocol, once the bytes allow only one.
pub fn decide_protocol(bytes: &[u8]) -> Option<Protocol> {
    match bytes {
        [] | [0x16] => None,
        [0x16, 0x03, ..] => Some(Protocol::Tls),
        _ if bytes.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(bytes) => None,
        _ if bytes.starts_with(HTTP2_PREFACE) => Some(Protocol::Http2),
        _ => decide_http1(bytes),
    }
}

/// A request line begins with a token, one space, and a target that starts in one of three ways.
fn decide_http1(bytes: &[u8]) -> Option<Protocol> {
    let method_bytes = bytes.iter().take_while(|byte| is_token(**byte)).count();
    let is_method = (1..=MAX_METHOD_BYTES).contains(&method_bytes);
    match (is_method, &bytes[method_bytes..]) {
        (true, [] | [b' ']) => None,
        (true, [b' ', b'/' | b'*' | b'h' | b'H', ..]) => Some(Protocol::Http1),
        (true, [b' ', ..]) if bytes.starts_with(b"CONNECT ") => Some(Protocol::Http1),
        _ => Some(Protocol::Opaque),
    }
}

/// Bytes that stopped coming while they could still have been several protocols: the one that is inspected.
fn decide_unfinished(bytes: &[u8]) -> Protocol {
    match bytes[0] {
        0x16 => Protocol::Tls,
        byte if is_token(byte) && bytes.contains(&b' ') => Protocol::Http1,
        _ => Protocol::Opaque,
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    #[test]
    fn first_bytes_tell_the_protocol() {
        for (bytes, protocol) in [
            (&b"\x16\x03\x01\x02"[..], Some(Protocol::Tls)),
            (b"\x16", None),
            (b"\x15\x03", Some(Protocol::Opaque)),
            (b"GET / HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"PROPFIND /x", Some(Protocol::Http1)),
            (b"get http://x/", Some(Protocol::Http1)),
            (b"OPTIONS *", Some(Protocol::Http1)),
            (b"CONNECT a.example:443", Some(Protocol::Http1)),
            (b"GE", None),
            (b"GET ", None),
            (b"PRI * HTTP/2.0\r\n", None),
            (HTTP2_PREFACE, Some(Protocol::Http2)),
            (b"PRI * HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Protocol::Opaque)),
            (b"PING\r\n", Some(Protocol::Opaque)),
            (b"get key\r\n", Some(Protocol::Opaque)),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Some(Protocol::Opaque)),
            (b" GET / HTTP/1.1", Some(Protocol::Opaque)),
        ] {
            assert_eq!(decide_protocol(bytes), protocol, "{}", bytes.escape_ascii());
        }
    }

    /// What a guest that writes these segments is taken for, and what was read of it.
    async fn greet(segments: &[&[u8]], pause: Duration, patience: Duration) -> (Protocol, Vec<u8>) {
        let (mut guest, mut proxy) = tokio::io::duplex(64 * 1024);
        let mut bytes = BytesMut::new();
        let write = async {
            for segment in segments {
                guest.write_all(segment).await.unwrap();
                tokio::time::sleep(pause).await;
            }
            std::future::pending::<()>().await
        };
        tokio::select! {
            () = write => unreachable!(),
            greeting = read_greeting(&mut proxy, patience, &mut bytes) => (greeting.unwrap(), bytes.to_vec()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_greeting_in_pieces_is_put_together() {
        let pause = Duration::from_millis(50);
        let greeting = greet(&[b"G", b"ET", b" ", b"/"], pause, SILENCE).await;
        assert_eq!(greeting, (Protocol::Http1, b"GET /".to_vec()));
        let greeting = greet(&[b"\x16", b"\x03\x01"], pause, SILENCE).await;
        assert_eq!(greeting, (Protocol::Tls, b"\x16\x03\x01".to_vec()));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_after_the_patience_of_the_port() {
        for port in [22, 443, 5432] {
            let began = Instant::now();
            let (protocol, _) = greet(&[], SILENCE, choose_patience(port)).await;
            assert_eq!(protocol, Protocol::Silent);
            assert_eq!(began.elapsed().as_millis(), choose_patience(port).as_millis(), "{port}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn d20_a_greeting_that_stops_halfway_is_inspected() {
        let slow = Duration::from_secs(1);
        assert_eq!(greet(&[b"\x16"], slow, SILENCE).await.0, Protocol::Tls);
        assert_eq!(greet(&[b"GET "], slow, SILENCE).await.0, Protocol::Http1);
        assert_eq!(greet(&[b"PRI * HTTP/2"], slow, SILENCE).await.0, Protocol::Http1);
    }

    proptest! {
        /// However a greeting is cut, the decision is that of the whole.
        #[test]
        fn a_decision_never_changes_with_more_bytes(
            bytes in prop::collection::vec(any::<u8>(), 1..40),
            cut in 0usize..40,
        ) {
            let cut = cut.min(bytes.len());
            if let Some(early) = decide_protocol(&bytes[..cut]) {
                prop_assert_eq!(decide_protocol(&bytes), Some(early));
            }
        }

        #[test]
        fn every_method_with_a_path_is_http(method in "[A-Z]{1,32}", rest in ".{0,20}") {
            let line = format!("{method} /{rest}");
            prop_assert_eq!(decide_protocol(line.as_bytes()), Some(Protocol::Http1));
        }
    }
}
