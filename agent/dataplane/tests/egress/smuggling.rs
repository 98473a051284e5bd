//! Requests that two parsers could read differently: refused, or written again as exactly one.

use crate::lab::{self, Upstream};

/// What came of a probe: the statuses the guest read, and the targets the upstream saw.
async fn probe(lab: &lab::Lab, upstream: &Upstream, bytes: &[u8]) -> (Vec<u16>, Vec<String>) {
    let before = upstream.seen().len();
    let stream = lab.guest.connect("api.example.com", 80).await;
    let answer = lab.guest.exchange(stream, bytes).await;
    let answer = String::from_utf8_lossy(&answer);
    let statuses =
        answer.match_indices("HTTP/1.").filter_map(|(at, _)| answer.get(at + 9..at + 12)?.parse().ok());
    (statuses.collect(), upstream.seen().drain(before..).map(|seen| seen.target).collect())
}

const HOST: &str = "Host: api.example.com\r\n";

#[test]
fn d1_to_d5_probes_are_refused_or_become_one_request() {
    lab::run(|lab| async move {
        let upstream = Upstream::http(80).await;
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: api.example.com\r\n\r\n";
        let long_extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(20_000));
        for (name, head, body) in [
            ("two lengths", "Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"),
            ("signed length", "Content-Length: +5\r\n", "hello"),
            ("hex length", "Content-Length: 0x5\r\n", "hello"),
            ("list of lengths", "Content-Length: 5, 6\r\n", "hello!"),
            ("chunked not last", "Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
            ("xchunked", "Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
            ("identity and length", "Transfer-Encoding: identity\r\nContent-Length: 5\r\n", "hello"),
            ("space before colon", "Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
            ("vertical tab", "Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"),
            ("folded header", "X: a\r\n b\r\n", ""),
            ("NUL in value", "X: a\0b\r\n", ""),
            ("CR in value", "X: a\rb\r\n", ""),
        ] {
            let bytes = format!("POST /probe HTTP/1.1\r\n{HOST}{head}\r\n{body}{smuggled}");
            let (statuses, seen) = probe(&lab, &upstream, bytes.as_bytes()).await;
            assert!(statuses.iter().all(|status| *status >= 400), "{name}: {statuses:?}");
            assert!(seen.is_empty(), "{name}: {seen:?}");
        }
        for (name, framing, body) in [
            (
                "chunk size overflow",
                "Transfer-Encoding: chunked\r\n",
                "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
            ),
            ("LF in extension", "Transfer-Encoding: chunked\r\n", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
            ("bad end of chunk", "Transfer-Encoding: chunked\r\n", "5\r\nhelloXX0\r\n\r\n"),
            ("long extension", "Transfer-Encoding: chunked\r\n", &long_extension),
        ] {
            let bytes = format!("POST /probe HTTP/1.1\r\n{HOST}{framing}\r\n{body}{smuggled}");
            let (statuses, seen) = probe(&lab, &upstream, bytes.as_bytes()).await;
            assert!(!statuses.contains(&200), "{name}: {statuses:?}");
            assert!(!seen.contains(&"/smuggled".to_owned()), "{name}: {seen:?}");
        }
    });
}

#[test]
fn d1_a_length_beside_chunks_is_written_again_as_one_request() {
    lab::run(|lab| async move {
        let upstream = Upstream::http(80).await;
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: api.example.com\r\n\r\n";
        let both = format!(
            "POST /probe HTTP/1.1\r\n{HOST}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
        );
        let (statuses, seen) = probe(&lab, &upstream, both.as_bytes()).await;
        assert_eq!((statuses.len(), seen.as_slice()), (1, &["/probe".to_owned()][..]), "{statuses:?}");
        let seen = upstream.seen().remove(0);
        assert!(
            !(seen.headers.contains_key("content-length") && seen.headers.contains_key("transfer-encoding"))
        );
        assert_eq!(&seen.body[..], b"");
    });
}

#[test]
fn d3_d4_old_versions_and_bare_line_ends() {
    lab::run(|lab| async move {
        let upstream = Upstream::http(80).await;
        for (name, bytes) in [
            (
                "HTTP/1.0 with chunks",
                "POST /p HTTP/1.0\r\nHost: api.example.com\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            ),
            ("HTTP/0.9", "GET /p\r\n\r\n"),
            ("two spaces", "GET  /p HTTP/1.1\r\nHost: api.example.com\r\n\r\n"),
            ("two hosts", "GET /p HTTP/1.1\r\nHost: api.example.com\r\nHost: other.example.com\r\n\r\n"),
            (
                "absolute target of another host",
                "GET http://other.example.com/p HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
            ),
        ] {
            let (statuses, seen) = probe(&lab, &upstream, bytes.as_bytes()).await;
            assert!(
                statuses.iter().all(|status| *status >= 400) && seen.is_empty(),
                "{name}: {statuses:?} {seen:?}"
            );
        }
        let bare = "GET /bare HTTP/1.1\nHost: api.example.com\n\n";
        let (statuses, seen) = probe(&lab, &upstream, bare.as_bytes()).await;
        assert_eq!((statuses, seen), (vec![200], vec!["/bare".to_owned()]), "read and written again");
    });
}

#[test]
fn d9_d13_tunnels_and_oversized_heads() {
    lab::run(|lab| async move {
        let upstream = Upstream::http(80).await;
        let many: String = (0..140).map(|index| format!("X-{index}: 1\r\n")).collect();
        let large = format!("X-Large: {}\r\n", "a".repeat(70_000));
        for (request, expected) in [
            (format!("CONNECT api.example.com:80 HTTP/1.1\r\n{HOST}\r\n"), 405),
            (format!("TRACE / HTTP/1.1\r\n{HOST}\r\n"), 405),
            (format!("GET / HTTP/1.1\r\n{HOST}{many}\r\n"), 431),
            (format!("GET / HTTP/1.1\r\n{HOST}{large}\r\n"), 431),
            (format!("GET /{} HTTP/1.1\r\n{HOST}\r\n", "a".repeat(17_000)), 414),
        ] {
            let (statuses, seen) = probe(&lab, &upstream, request.as_bytes()).await;
            assert!(seen.is_empty());
            assert_eq!(statuses, [expected], "{}", &request[..40]);
        }
    });
}

#[test]
fn d10_nominated_headers_do_not_pass() {
    lab::run(|lab| async move {
        let upstream = Upstream::http(80).await;
        let bytes = format!(
            "GET /ok HTTP/1.1\r\n{HOST}Connection: close, X-Gone\r\nX-Gone: 1\r\nProxy-Authorization: x\r\nX-Kept: 1\r\n\r\n"
        );
        assert_eq!(probe(&lab, &upstream, bytes.as_bytes()).await.1, ["/ok"]);
        let headers = upstream.seen().remove(0).headers;
        assert!(headers.contains_key("x-kept") && !headers.contains_key("x-gone"));
        assert!(!headers.contains_key("proxy-authorization"));
        let bytes = format!("GET /p HTTP/1.1\r\n{HOST}Connection: host\r\n\r\n");
        assert_eq!(probe(&lab, &upstream, bytes.as_bytes()).await, (vec![400], vec![]));
    });
}
